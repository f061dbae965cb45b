"""The training loop of every network trained here, students too: one optimiser, one schedule,
averaged weights, a log that survives a kill."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditbench.records.files import replacing


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    folder: Path,
    average: float = 0.999,
    weight_decay: float = 0.01,
    warm_up: int = 100,
    every: int = 100,
    tell: Callable[[dict[str, Any]], None] = lambda row: print(row, flush=True),  # noqa: T201
) -> float:
    """Train the parameters of `model` that take gradients, in place, for `steps` steps of AdamW on
    a trapezoid schedule, leave their averages in it; seconds spent.

    `loss_of(step)` draws its own batch and returns a scalar. Every `every` steps a row goes to
    `folder/loss.csv` and all state to `folder/state.safetensors`, from which a killed training goes
    on to the same weights where `loss_of` depends on its step alone. `tell` hears of them. Where
    the parameters are on CUDA, the optimiser's step is one kernel for many of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    averaged = {name: p.detach().clone() for name, p in params.items()}
    log, state = folder / "loss.csv", folder / "state.safetensors"
    first, spent, smooth = 0, 0.0, math.nan
    fused = all(p.is_cuda for p in params.values())
    optimiser = torch.optim.AdamW(
        params.values(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused or None
    )
    if state.exists():
        first, spent, smooth = _resume(model, averaged, params, optimiser, state)
        _cut(log, first)
    else:
        log.write_text("step,loss,seconds\n", encoding="utf-8")
    losses: list[Tensor] = []  # read with a row only: on a GPU each reading waits for the step
    started = time.monotonic() - spent
    for step in range(first, steps):
        remaining = (steps - step) / (0.35 * steps)  # the last 35 % of the steps cool down
        rate = lr * min(1.0, (step + 1) / warm_up, remaining)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimiser.step()
        decay = min(average, 1 - 1 / (1 + 0.1 * step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), list(params.values()), 1 - decay)
        losses.append(loss.detach())
        if (step + 1) % every == 0 or step + 1 == steps:
            for value in torch.stack(losses).tolist():
                smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            losses.clear()
            spent = time.monotonic() - started
            with log.open("a", newline="", encoding="utf-8") as f:
                csv.writer(f).writerow([step + 1, f"{smooth:.6f}", f"{spent:.0f}"])
            notes = {"step": step + 1, "spent": spent, "smooth": smooth}
            _save(model, averaged, params, optimiser, state, notes)
            tell({"done": step + 1, "of": steps, "loss": smooth, "seconds": round(spent)})
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(averaged[name])
    return spent


def steps_within(seconds: float, model: nn.Module, loss_of: Callable[[int], Tensor]) -> int:
    """Steps of `fit` that so many seconds have room for on this machine as it is now, one at
    least, by eighty that change no weight."""
    spent = 0.0
    with TemporaryDirectory() as folder:
        for num in (20, 60):  # the first compile and choose their kernels
            here = Path(folder) / str(num)
            spent = fit(
                model, loss_of, steps=num, lr=0.0, folder=here, weight_decay=0.0,
                tell=lambda row: None,
            )  # fmt: skip
    return max(1, int(60 * seconds / spent))


def _save(
    model: nn.Module, averaged: dict[str, Tensor], params: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer, path: Path, notes: dict[str, float],
) -> None:  # fmt: skip
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    tensors = {f"now.{k}": v for k, v in model.state_dict().items() if k not in fixed}
    tensors |= {f"average.{k}": v for k, v in averaged.items()}
    for name, p in params.items():
        tensors |= {f"{k}.{name}": v for k, v in optimiser.state[p].items()}
    own = {name: v.detach().to("cpu", copy=True).contiguous() for name, v in tensors.items()}
    with replacing(path) as partial:
        save_file(own, partial, {name: repr(value) for name, value in notes.items()})


def _resume(
    model: nn.Module, averaged: dict[str, Tensor], params: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer, path: Path,
) -> tuple[int, float, float]:  # fmt: skip
    """Put the state of a stopped training in place; steps done, seconds spent, smoothed loss."""
    from safetensors import safe_open

    tensors = load_file(path)
    fixed = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    trained = {k[4:]: v for k, v in tensors.items() if k.startswith("now.")}
    model.load_state_dict({**fixed, **trained})
    for name, value in averaged.items():
        value.copy_(tensors[f"average.{name}"])
    fused = bool(optimiser.param_groups[0]["fused"])  # which counts steps where the parameters are
    for name, p in params.items():
        for k in ("step", "exp_avg", "exp_avg_sq"):
            if (moment := tensors.get(f"{k}.{name}")) is not None:
                count = moment.to(p.device) if fused else moment
                optimiser.state[p][k] = count if k == "step" else moment.to(p)
    with safe_open(path, "pt") as f:  # type: ignore[no-untyped-call]
        notes = f.metadata()
    return int(notes["step"]), float(notes["spent"]), float(notes["smooth"])


def _cut(log: Path, step: int) -> None:
    """Leave the rows of a log up to a step: the row of a later one was written, and its state was
    not."""
    first, *rows = log.read_text(encoding="utf-8").splitlines()
    done = [row for row in rows if int(row.partition(",")[0]) <= step]
    log.write_text("\n".join([first, *done]) + "\n", encoding="utf-8")
