"""One cell in one fresh process: load, attach, warm up, time, save. Runs in a child of `execute`;
what it measures it writes to files."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditbench.method.artifact import resolve
from ditbench.method.dependencies import changed
from ditbench.method.plugins import line_in_plugin
from ditbench.models.requests import Request, batches, call_arguments, fingerprint
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.models.truncation import cut_prompts
from ditbench.records.files import read_json, replacing, write_json
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell, missing_device, rebuild
from ditbench.runner.spec import Spec

LONGEST = 500
"""Characters of a reason."""


def read_requests(path: Path) -> list[Request]:
    """The requests of a model as a run folder keeps them."""
    return [Request(**fields) for fields in read_json(path)]


def run_round(
    spec: Spec,
    model: str,
    stack: str,
    round_: int,
    folder: RunFolder,
    key: str,
    depends: dict[str, Any],
) -> None:
    """Measure one round of the cell (model, stack) and leave it in the run folder under `key`; the
    first round also leaves the samples.

    `depends`: what the cell depended on when it was planned; a file that was edited since is a
    failure, for the folder is named after it. Whatever goes wrong is written down as the round's
    status and reason; only a killed process leaves nothing.
    """
    path = folder.round(key, round_)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        cell = rebuild(spec, model, stack)
        if names := [] if cell.refusal else changed(depends, cell.depends):
            raise ValueError(
                f"{' and '.join(names)} changed after the run was planned; the same command runs "
                "it again"
            )
        result = _measure(cell, round_, folder.samples(key), read_requests(folder.requests(model)))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result = _failure(error)
    spent = {"round": round_, "seconds": time.monotonic() - started}
    try:
        write_json(path, result | spent)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # what a library measured is no JSON: said, not swallowed
        write_json(
            path,
            _failure(error, "what was measured cannot be written down: ") | spent,
        )


def _measure(cell: Cell, round_: int, samples: Path, requests: list[Request]) -> dict[str, Any]:
    import torch

    from ditbench.models.loading import load
    from ditbench.models.text_ahead import TextAhead
    from ditbench.models.weights import weights_sha256
    from ditbench.profiling import counting, flops
    from ditbench.profiling.latency import Sampler, Timing
    from ditbench.profiling.memory import measure_memory
    from ditbench.quiet import quiet
    from ditbench.records import environment

    if reason := missing_device(cell.spec.device):
        return {"status": "refused", "reason": reason}
    if cell.spec.threads:
        torch.set_num_threads(cell.spec.threads)
    with quiet(), torch.inference_mode():
        began = time.monotonic()
        pipe = load(
            cell.model, weights=cell.spec.weights, device=cell.spec.device, dtype=cell.spec.dtype,
            offload=cell.spec.offload, vae=cell.spec.vae,
        )  # fmt: skip
        load_s = time.monotonic() - began
        if refusal := cell.stack.refusal(pipe):
            return {"status": "refused", "reason": refusal}
        sampling = cell.sampling
        artifacts = resolve(cell.model, cell.stack, cell.spec.weights, cell.spec.plugins)
        prepared = {name: artifact.folder for name, artifact in artifacts.items()}
        ahead = TextAhead(
            pipe, cell.spec.device, lambda batch: call_arguments(cell.model, sampling, batch),
            once=cell.encodes_once, offload=cell.spec.offload,
        )  # fmt: skip
        parts = list(batches(requests, cell.batch_size))
        coming = timed(parts)[: None if round_ == 0 else 1]
        ahead.batches = [parts[0], *(parts[i] for i in coming if i)]
        with ahead.attached() as text, ExitStack() as undo:
            text.encode(parts[0])  # before methods hold memory, and before that is measured
            attached = undo.enter_context(cell.stack.attached(pipe, prepared))
            sampler = Sampler(pipe, cell.model, sampling, attached, cell.spec.device, text)
            made: dict[int, Any] = {}
            warm: list[Timing] = []

            def warm_up() -> None:
                """With the real batch and the real number of steps; its samples count, its time
                does not."""
                made[0], took = sampler(parts[0])
                warm.append(took)

            memory = measure_memory(warm_up, pipe, attached, cell.spec.device)
            timing = []
            for i in coming:
                made[i], took = sampler(parts[i])
                timing.append({"round": round_, "batch": i, **asdict(took)})
            idle = cell.stack.idle(sampling_of(cell.model), attached)
            result: dict[str, Any] = {
                "status": "inert" if idle else "ok",
                "reason": f"{' and '.join(idle)} changed nothing and counted no event"
                if idle
                else "",
                "load_s": load_s,
                "first_call_s": warm[0].call_s,
                "timing": timing,
                "counters": attached.counters(),
                "schedule": attached.schedule(),
                "artifacts": {name: artifact.cost() for name, artifact in artifacts.items()},
                "environment": environment.describe(cell.spec.device),
                "sampling": asdict(sampling) | _calls(pipe, sampling),
                "requests_sha256": fingerprint(requests),
                "model_sha256": weights_sha256(cell.model, cell.spec.weights),
            }
            if round_ == 0:
                _save_samples(samples, [made[i] for i in sorted(made)])
                result["memory"] = memory | text.as_dict()
                if cell.spec.weights != "random":  # their tokenizer is a stand-in
                    result["prompts_cut"] = cut_prompts(pipe, cell.model, sampling, requests)
                part = parts[0] if flops.decides_per_batch(cell.stack) else parts[0][:1]
                alike = flops.alike_every_call(cell.stack)
                with attached.inspected(), text.every_call():
                    counted = counting.count_generation(pipe, lambda: sampler(part), alike=alike)
                result["flops"] = asdict(counted.divided(len(part)))
            result["notes"] = attached.notes()
    return result


def _calls(pipe: Any, sampling: Sampling) -> dict[str, int]:
    """How many steps the sampler made, where they are not as many as it was asked for (Heun's makes
    2 N - 1 of N)."""
    made = len(pipe.scheduler.timesteps)
    return {"calls": made} if made != sampling.steps else {}


def timed(parts: Sequence[Sequence[Any]]) -> list[int]:
    """Which batches are timed: all but the first, which warms up; that one too where no other is as
    large. Later rounds time the first of these again."""
    whole = len(parts) > 1 and len(parts[1]) == len(parts[0])
    return list(range(1 if whole else 0, len(parts)))


def _save_samples(path: Path, pixels: list[Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    # safetensors writes memory as it lies: a video that is a transposed view would come back
    # scrambled.
    with replacing(path) as partial:
        save_file({"samples": np.ascontiguousarray(np.concatenate(pixels))}, partial)


def _shown(text: str) -> str:
    """Text that can be written in UTF-8: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def _status(error: BaseException) -> str:
    name = type(error).__name__
    return "oom" if isinstance(error, MemoryError) or name == "OutOfMemoryError" else "failed"


def _failure(error: BaseException, why: str = "") -> dict[str, Any]:
    try:
        trace = traceback.format_exc()[-6000:]
    except Exception:  # an error that cannot be shown
        trace = ""
    return {"status": _status(error), "reason": why + _sentence(error), "traceback": _shown(trace)}


def _sentence(error: BaseException) -> str:
    """The first line of an error, with its type unless it was written for people, and where in a
    plug-in it was raised; not longer than a table bears."""
    try:
        text = str(error).strip().splitlines()
    except Exception:
        text = ["its text is not available"]
    line = _shown(text[0][:LONGEST]) if text else ""
    if isinstance(error, ValueError) and line:
        return line
    return f"{type(error).__name__}: {line}".rstrip(": ") + line_in_plugin(error)
