"""Requests: what a model is asked for. Prompt or class, seed and size; one noise generator per
request.

A request's noise depends on its seed alone, never on batch, order or method, so that the same
request under two methods starts from the same noise. Generators live on the CPU, so it is the same
on every device too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ditbench.models.family import family_named
from ditbench.models.prompts import find_training_prompts, load_prompts, read_prompts
from ditbench.models.sampling import Request as Request
from ditbench.models.sampling import Sampling

if TYPE_CHECKING:
    from ditbench.models.table import Model


def make_requests(model: Model, num: int, seed: int, prompts: str = "") -> list[Request]:
    """The first `num` requests of the stream `seed`: a longer list begins with the shorter one.

    Tiny models are asked for scenes of their world whose captions are held out (`shapes.held_out`;
    the class world has only its 24 classes, as ImageNet its thousand, and there noise alone is
    new); full-size ones for `prompts`, a file or a set of `datasets/manifest.toml` (default:
    `datasets/prompts.txt`), entry after entry and then from the first again, or for ImageNet
    classes spread over all thousand. ValueError when the prompts cannot be had.
    """
    if model.world:
        return _scene_requests(model.world, num, EVALUATION, seed)
    if not takes_prompts(model):
        return [
            _request(i, EVALUATION, seed, label=_number(f"{seed}/{i}") % 1000) for i in range(num)
        ]
    texts = load_prompts(prompts)
    return [
        _request(i, EVALUATION, seed, prompt=texts[i % len(texts)], entry=i % len(texts))
        for i in range(num)
    ]


TRAININGS = 16
"""Trainings of one recipe that have requests of their own: 0 to 15."""


def training_requests(
    model: Model, num: int, seed: int, training: int = 0, prompts: str = ""
) -> list[Request]:
    """Requests to train a method with; `training` (of `TRAININGS`) and `seed` choose the stream.

    Full-size text models are asked for `prompts`, a file or a set (default:
    `datasets/training_captions.txt`), in an order of the stream's own, and from its first again. No
    evaluation has the same noise, nor, in worlds with captions, the same caption, whatever the
    seeds. The class world and ImageNet share their classes with evaluation. Raises ValueError for
    another training, and for prompts that cannot be had.
    """
    if not 0 <= training < TRAININGS:
        raise ValueError(f"training {training} is not between 0 and {TRAININGS - 1}")
    if model.world:
        return _scene_requests(model.world, num, PREPARATION, seed, training)
    if not takes_prompts(model):
        return [
            _request(i, PREPARATION, seed, training, label=_number(f"{seed}/{i}") % 1000)
            for i in range(num)
        ]
    texts = load_prompts(prompts) if prompts else read_prompts(find_training_prompts())
    order = sorted(range(len(texts)), key=lambda i: _number(f"{seed}/{training}/prompt {i}"))
    entries = [order[i % len(order)] for i in range(num)]
    return [
        _request(i, PREPARATION, seed, training, prompt=texts[entry], entry=entry)
        for i, entry in enumerate(entries)
    ]


def takes_prompts(model: Model) -> bool:
    """Whether a model is asked for the prompts of a file: neither for scenes of a world nor for
    classes."""
    return not model.world and not family_named(model.family).class_labels


@dataclass(frozen=True)
class _Purpose:
    """What requests are for."""

    split: str
    """Of `shapes.SPLITS`."""
    held_out: bool
    """Which captions."""
    mark: int
    """The highest of the 32 bits of a noise seed, so that noise of two purposes never meets."""
    chunk_bits: int
    """Of the split's 28 bits: 17 are the seed's, these the chunk's, and what is left the
    training's."""


EVALUATION = _Purpose("evaluation", True, 0, 11)
PREPARATION = _Purpose("preparation", False, 1 << 31, 7)
CHUNK = 4096
"""Scenes are drawn by the chunk, so that the first requests do not depend on how many follow."""


def _scene_requests(
    world: str, num: int, purpose: _Purpose, seed: int, training: int = 0
) -> list[Request]:
    from ditbench.shapes import scenes as shapes

    if not 0 <= seed < 1 << 17:
        raise ValueError(f"seed {seed} of requests is not between 0 and {(1 << 17) - 1}")
    requests: list[Request] = []
    for chunk in range(1 << purpose.chunk_bits):
        stream = ((training << 17 | seed) << purpose.chunk_bits) | chunk
        scenes = shapes.draw(world, CHUNK, split=purpose.split, seed=stream)
        if world != "class":
            scenes = scenes[shapes.held_out(scenes) == purpose.held_out]
        scenes = scenes[: num - len(requests)]
        texts, labels = shapes.captions(scenes), scenes.labels.tolist()
        for i, truth in enumerate(scenes.truths()):
            content = {"label": labels[i]} if world == "class" else {"prompt": texts[i]}
            requests.append(
                _request(len(requests), purpose, seed, training, truth=truth, **content)
            )
        if len(requests) == num:
            return requests
    raise ValueError(
        f"the world {world} has no more than {len(requests)} requests for the seed {seed}, not "
        f"{num}"
    )


def _request(
    index: int, purpose: _Purpose, seed: int, training: int = 0, **content: Any
) -> Request:
    number = _number(f"{seed}/{index}" + (f"/{training}" if training else ""))
    return Request(id=f"{index:05d}", seed=number & 0x7FFFFFFF | purpose.mark, **content)


def _number(text: str) -> int:
    """A 32-bit number (torch's CPU generator keeps no more) that two texts hardly ever share."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def fingerprint(requests: Sequence[Request]) -> str:
    """sha256 of the requests: two cells with the same one answered the same requests from the same
    noise."""
    return hashlib.sha256(
        json.dumps([asdict(r) for r in requests], sort_keys=True).encode()
    ).hexdigest()


def batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Consecutive batches of at most `size` requests."""
    for start in range(0, len(requests), size):
        yield list(requests[start : start + size])


def call_arguments(model: Model, sampling: Sampling, requests: Sequence[Request]) -> dict[str, Any]:
    """Keyword arguments that ask `model`'s pipeline for these requests, but for `output_type`."""
    import torch

    common: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
    }
    if model.negative_prompt:
        common["negative_prompt"] = [model.negative_prompt] * len(requests)
    return common | family_named(model.family).call(sampling, requests)
