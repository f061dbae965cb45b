"""Train one of the bundled diffusion transformers: `python -m ditbench.zoo.models
dit-tiny|dit-mini|pixart-tiny|pixart-small|pixart-medium|flux-tiny|flux-mini|wan-tiny|wan-small`.

The pipelines, transformers, text encoders, autoencoders and schedulers are diffusers' and
transformers' own classes; only sizes are ours. Text encoders are trained together with their
transformer. Models of half the width have the larger one's text encoders (`pipelines.LARGER`), as
they are, and begin with half of its channels (`halving.py`). Trained on all captions of the split
"train": what `shapes.held_out` holds out is held out of the training of methods, not of the models.
Needs the codec of `train.py` first. Writes a pipeline folder.

B batch, N tokens, D width. Noise prediction (DiT, PixArt): x_t = sqrt(a) x_0 + sqrt(1 - a) e, the
model gives e (Ho et al. 2020, eq. 14). Rectified flow (FLUX, Wan): x_s = (1 - s) x_0 + s e, the
model gives e - x_0 (Liu et al. 2022; Esser et al. 2024).
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
)
from torch import Tensor, nn

from ditbench.acceleration.distillation.training_loop import fit, steps_within
from ditbench.zoo.latents import EXAMPLES, latents
from ditbench.zoo.machine import Machine
from ditbench.zoo.pipelines import FRAMES, HALF_OF, LARGER, RESOLUTION, WORLD, build
from ditbench.zoo.train import note

DROP = 0.1
"""Share of captions or labels dropped in training, for classifier-free guidance."""
SHIFT = 0.5
"""Mean of the logit of the flow time drawn in training (Esser et al. 2024, section 3.1), for all
four models: where shapes are decided."""


class Trained(nn.Module):
    """What is optimised of a pipeline: the transformer and, where there are any, the text
    encoders."""

    transformer: Any
    text_encoder: Any
    text_encoder_2: Any

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.transformer = pipe.transformer
        for part in ("text_encoder", "text_encoder_2"):
            if isinstance(getattr(pipe, part, None), nn.Module):
                setattr(self, part, getattr(pipe, part))


Predict = Callable[[Trained, Tensor, Tensor, Any, Tensor | None], Tensor]
"""(parts, noisy latents, timestep in 0..1000, conditioning rows, guidance [B] or None) ->
prediction shaped as the latents."""


def predict_dit(
    m: Trained, x: Tensor, t: Tensor, labels: Tensor, guidance: Tensor | None
) -> Tensor:
    """DiT: class-conditional noise prediction."""
    out: Tensor = m.transformer(x, timestep=t, class_labels=labels).sample
    return out


def predict_pixart(
    m: Trained, x: Tensor, t: Tensor, ids: Tensor, guidance: Tensor | None
) -> Tensor:
    """PixArt: noise prediction with cross-attention to the caption."""
    mask = (ids != 0).long()
    text = m.text_encoder(ids, attention_mask=mask)[0]
    no_size = {"resolution": None, "aspect_ratio": None}
    out: Tensor = m.transformer(
        x,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=t,
        added_cond_kwargs=no_size,
    ).sample
    return out


def predict_wan(m: Trained, x: Tensor, t: Tensor, ids: Tensor, guidance: Tensor | None) -> Tensor:
    """Wan: flow velocity of a video."""
    mask = (ids != 0).long()
    # the pipeline pads with zeros
    text = m.text_encoder(ids, attention_mask=mask)[0] * mask[:, :, None]
    out: Tensor = m.transformer(x, timestep=t, encoder_hidden_states=text).sample
    return out


def predict_flux(m: Trained, x: Tensor, t: Tensor, ids: Tensor, guidance: Tensor | None) -> Tensor:
    """FLUX: flow velocity on packed latents, guidance scale embedded."""
    b, c, h, w = x.shape
    pooled = m.text_encoder(ids).pooler_output
    text = m.text_encoder_2(ids)[0]
    out = m.transformer(
        hidden_states=FluxPipeline._pack_latents(x, b, c, h, w),
        timestep=t / 1000, guidance=x.new_ones(b) if guidance is None else guidance,
        pooled_projections=pooled, encoder_hidden_states=text,
        txt_ids=x.new_zeros(ids.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
    ).sample  # fmt: skip
    unpacked: Tensor = (
        out.unflatten(1, (h // 2, w // 2))
        .unflatten(3, (c, 2, 2))
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(b, c, h, w)
    )
    return unpacked


PREDICT: dict[str, Predict] = {
    "dit-tiny": predict_dit,
    "pixart-tiny": predict_pixart,
    "pixart-small": predict_pixart,
    "pixart-medium": predict_pixart,
    "flux-tiny": predict_flux,
    "wan-tiny": predict_wan,
    "wan-small": predict_wan,
    "dit-mini": predict_dit,
    "flux-mini": predict_flux,
}
FLOW = (predict_flux, predict_wan)
"""Of models that predict a flow's velocity."""


def train(
    name: str, parts_folder: Path, out: Path, steps: int, batch: int, lr: float,
    start: Path | None = None, text: Path | None = None, examples: int | None = None,
    machine: Machine | None = None, seconds: float | None = None,
) -> None:  # fmt: skip
    """Train a tiny model and save its pipeline folder (fp16) under `out/name`.

    `examples`: pictures it is trained on; None: as many as `EXAMPLES` has. `start`: pipeline folder
    whose weights to go on from. `text`: pipeline folder whose T5 encoder to begin with (FLUX).
    `machine`: None: the CPU, one process. `seconds`: how long it may take in place of `steps`,
    without the guidance distillation of FLUX. ValueError for a number of examples that is no multiple
    of 256.
    """
    machine = machine or Machine()
    put = machine.put
    pipe = build(name, parts_folder)
    if start is not None:
        for part, module in pipe.components.items():
            if isinstance(module, nn.Module) and part != "vae":
                _take(module, start / part)
    if text is not None:
        _take(pipe.text_encoder_2, text / "text_encoder")
    world, folder = WORLD[name], out / f"train-{name}"
    x0, texts, labels = latents(
        world, pipe.vae, parts_folder, RESOLUTION.get(name), examples or EXAMPLES[world],
        FRAMES.get(name), machine.device, machine.workers,
    )  # fmt: skip
    model, predict, flow = Trained(pipe), PREDICT[name], PREDICT[name] in FLOW
    # there is no dropout to turn on, and DiT's label dropout would draw afresh in every block
    model.eval().to(machine.device)
    if machine.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    if machine.compiled:
        model.transformer.compile()
    cond = (
        labels
        if world == "class"
        else pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    )
    empty = (
        torch.tensor(1000)
        if world == "class"
        else pipe.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    )
    ddim: Any = DDIMScheduler()
    alpha = ddim.alphas_cumprod
    # [1000]: the flow time of the same signal-to-noise ratio
    level = 1 / (1 + (alpha / (1 - alpha)).sqrt())
    # an error in the noise, counted as the flow's velocity counts it
    weight = 0.1 * (1 - level).pow(-2).clamp(max=64)
    x0, cond, empty, alpha, level, weight = map(put, (x0, cond, empty, alpha, level, weight))

    def drawn(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Clean latents, noise, timestep, noisy latents, conditioning."""
        g = torch.Generator().manual_seed(step)
        rows = put(torch.randint(len(x0), (batch,), generator=g))
        clean, c = x0[rows], cond[rows]
        noise = put(torch.randn(batch, *x0.shape[1:], generator=g))
        s = put(torch.sigmoid(torch.randn(batch, generator=g) + SHIFT))
        if flow:
            wide = s.view(-1, *[1] * (clean.dim() - 1))
            return clean, noise, s * 1000, (1 - wide) * clean + wide * noise, c
        t = torch.searchsorted(level, s).clamp(max=999)
        a = alpha[t].view(-1, 1, 1, 1)
        return clean, noise, t, a.sqrt() * clean + (1 - a).sqrt() * noise, c

    def loss_of(step: int) -> Tensor:
        clean, noise, t, x, c = drawn(step)
        g = torch.Generator().manual_seed(step + 10_000_000)
        drop = put(torch.rand(batch, generator=g) < DROP)
        c = torch.where(drop.view(-1, *[1] * (c.dim() - 1)), empty, c)
        with machine.autocast():
            made = predict(model, x, t, c, None)
        error = (made.float() - (noise - clean if flow else noise)).square().flatten(1).mean(1)
        return error.mean() if flow else (error * weight[t]).mean()

    if seconds is not None:
        steps = steps_within(seconds, model, loss_of)
    spent = fit(model, loss_of, steps=steps, lr=lr, folder=folder)
    if predict is predict_flux:
        spent += distil_guidance(model, drawn, empty, folder, steps // 10, lr / 2, machine)
    save(pipe, out / name)
    note(
        folder,
        model=name,
        world=world,
        **({"resolution": RESOLUTION[name]} if name in RESOLUTION else {}),
        **({"frames": FRAMES[name]} if name in FRAMES else {}),
        **({HALF_OF: LARGER[name]} if name in LARGER else {}),
        **({"started from": start.name} if start is not None else {}),
        examples=len(x0),
        steps=steps,
        batch=batch,
        lr=lr,
        seed=0,
        seconds=round(spent),
        **machine.facts(),
    )


def _take(module: nn.Module, folder: Path) -> None:
    """Load the weights of a saved part into `module`."""
    kind: Any = type(module)
    module.load_state_dict(kind.from_pretrained(folder).float().state_dict())


def distil_guidance(
    model: Trained, examples: Any, empty: Tensor, folder: Path, steps: int, lr: float,
    machine: Machine,
) -> float:  # fmt: skip
    """Teach the guidance embedding what classifier-free guidance of that scale gives, as FLUX.1-dev
    was (Meng et al. 2023, eq. 3)."""
    teacher = copy.deepcopy(model).requires_grad_(False)

    def loss_of(step: int) -> Tensor:
        _, _, t, x, c = examples(20_000_000 + step)
        g = torch.Generator().manual_seed(step)
        scale = machine.put(1 + 4 * torch.rand(len(x), generator=g))
        with torch.no_grad(), machine.autocast():
            with_text, without = (
                predict_flux(teacher, x, t, c, None),
                predict_flux(teacher, x, t, empty.expand_as(c), None),
            )
            target = without + scale.view(-1, 1, 1, 1) * (with_text - without)
        with machine.autocast():
            made = predict_flux(model, x, t, c, scale)
        return nn.functional.mse_loss(made.float(), target.float())

    return fit(
        model, loss_of, steps=steps, lr=lr, folder=folder.with_name(folder.name + "-guidance")
    )


def save(pipe: Any, folder: Path) -> None:
    """The pipeline in an ordinary diffusers folder, weights in fp16."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.cpu().half()
    pipe.save_pretrained(folder)
    for path in (*folder.rglob("config.json"), folder / "model_index.json"):
        # a folder of this machine
        config = {
            k: v
            for k, v in json.loads(path.read_text(encoding="utf-8")).items()
            if k != "_name_or_path"
        }
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def flags() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(WORLD))
    parser.add_argument(
        "--parts", type=Path, required=True, help="folder train.py wrote its codecs to"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, help="as many steps as so long has room for")
    parser.add_argument("--examples", type=int, help="pictures, a multiple of 256")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="pipeline folder whose weights to go on from")
    parser.add_argument(
        "--text", type=Path, help="flux-tiny: pipeline folder whose T5 encoder to begin with"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="as torch names it (default: cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of products"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    return parser


def main() -> None:
    """Train the model named on the command line."""
    args = flags().parse_args()
    torch.set_num_threads(args.threads)
    train(
        args.name, args.parts, args.out, args.steps, args.batch, args.lr, args.start, args.text,
        args.examples, Machine(args.device, args.dtype == "bfloat16", args.compile, args.workers),
        args.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
