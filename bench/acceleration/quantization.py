"""Linear layers in other number formats by torchao's schemes, taken back without a trace; which of
them, and how much of the work."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditbench.method.probe import Trainee
from ditbench.models.sublayers import Sublayer, sublayers
from ditbench.profiling.flop_counter import aside

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom

SHARE = "share_of_linear_macs"
"""Note in the record: the share, 0..1, of the transformer's linear multiplications that are in the
other format."""
ERROR = "relative_output_error"
"""Note in the record: what the other format changes in the outputs of the linear layers it holds,
each on the inputs it gets, over the transformer's first run of the generation that is counted: the
root of the summed squares of the changes over those of the outputs."""
SMOOTHING = 0.5
"""How much of the activations' range moves into the weights (SmoothQuant's alpha, its default)."""
BATCH = 8


def without_anatomy(pipeline: Any) -> str | None:
    """Why nothing of this pipeline can be quantised, in one sentence: nobody has said which of its
    linear layers are safe."""
    try:
        sublayers(pipeline.transformer)
    except ValueError as error:
        return str(error)
    return None


def undivided(pipeline: Any, group: int) -> str | None:
    """Why groups of so many inputs cannot share a scale in this pipeline's linear layers, in one
    sentence; None when they can."""
    if reason := without_anatomy(pipeline):
        return reason
    widths = {linear.in_features for linear in linears_of(sublayers(pipeline.transformer))}
    odd = [width for width in sorted(widths) if width % group]
    return f"groups of {group} do not divide a layer of {odd[0]} inputs" if odd else None


def quantize(
    pipeline: Any, at: Attachment, scheme: Any, spared: Collection[nn.Linear] = ()
) -> None:
    """Quantise the linear layers of attention and MLP but those `spared`, by a configuration of
    torchao's or a function of a layer; the very parameters that were there come back on detach.

    Embedders, modulation and the last projection keep their format: they are few of the
    multiplications and most of the damage. Away from the CPU the originals wait in host memory
    meanwhile, so that the device's memory is what it would be without them.
    """
    from torchao.quantization import quantize_

    change = scheme if callable(scheme) else lambda linear: quantize_(linear, scheme)
    chosen = {m: m.weight for m in linears_of(at.sublayers) if m not in spared}
    for linear, original in chosen.items():
        at.undo(_put_back, linear, original, original.device, "extra_repr" in vars(linear))
        change(linear)
        if original.device.type not in ("cpu", "meta"):
            original.data = original.data.cpu()
        at.count("linears")
    at.on_inspection(lambda undo: _note_first_run(pipeline.transformer, at, chosen, undo))


def unread(safe_int_mm: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """torchao's integer product [m,k] x [k,n] without its look at the text of a tensor, for which a
    GPU is read 48 times a linear layer (pytorch/ao#4872; torchao 0.17 and 0.18).

    What it gives is the same; on the CPU, where products are compiled, and for sizes cuBLAS does
    not take, it is torchao's own.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        eights = a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0
        if a.device.type in ("cpu", "meta") or torch.compiler.is_compiling() or not eights:
            return safe_int_mm(a, b)
        if len(a) <= 16:  # too few rows for cuBLAS: in float32, as torchao does then
            return (a.float() @ b.float()).to(torch.int32)
        return torch._int_mm(a, b.contiguous())

    return product


def down_projections(parts: Collection[Sublayer]) -> list[nn.Linear]:
    """The last linear layer of every MLP; of FLUX's single blocks the one that joins attention and
    MLP."""
    names = {"mlp": "net.2", "context_mlp": "net.2", "single": "proj_out"}
    return [s.module.get_submodule(names[s.kind]) for s in parts if s.kind in names]  # type: ignore[misc]


def smooth(at: Attachment, folder: Path) -> None:
    """Move outliers of the down-projections' inputs into their weights, as calibrated (SmoothQuant,
    arXiv:2211.10438, eq. 4)."""
    ranges = load_file(folder / "ranges.safetensors")
    for i, linear in enumerate(down_projections(at.sublayers)):
        reach = ranges[str(i)].to(linear.weight.device, linear.weight.dtype).clamp(min=1e-5)
        factor = reach**SMOOTHING / linear.weight.detach().abs().amax(0).clamp(min=1e-5) ** (
            1 - SMOOTHING
        )
        at.patch(
            linear, "weight", nn.Parameter(linear.weight.detach() * factor, requires_grad=False)
        )

        def divide(_module: Any, inputs: tuple[Tensor], factor: Tensor = factor) -> tuple[Tensor]:
            return (inputs[0] / factor,)

        at.undo(linear.register_forward_pre_hook(divide).remove)


class _Ranges(Trainee):
    """Sees the largest input of every channel of some linear layers."""

    def __init__(self, chosen: Callable[[Collection[Sublayer]], list[nn.Linear]]) -> None:
        self.chosen = chosen
        self.found: dict[str, Tensor] = {}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the layers."""
        for i, linear in enumerate(self.chosen(at.sublayers)):

            def see(_module: Any, inputs: tuple[Tensor], name: str = str(i)) -> None:
                reach = inputs[0].detach().abs().flatten(0, -2).amax(0)
                self.found[name] = torch.maximum(reach, self.found.get(name, reach))

            at.undo(linear.register_forward_pre_hook(see).remove)


def prepare_ranges(
    folder: Path,
    room: Workroom,
    chosen: Callable[[Collection[Sublayer]], list[nn.Linear]] = down_projections,
) -> dict[str, Any]:
    """Sample training requests and write the reach of every channel of the chosen layers,
    `ranges.safetensors`; returns notes."""
    ranges = _Ranges(chosen)
    room.generate(ranges, room.at_once(BATCH))
    room.tell({"done": 1, "of": 1})
    save_file(ranges.found, folder / "ranges.safetensors")
    largest = max(float(r.max() / r.median()) for r in ranges.found.values())
    return {"largest_over_median": round(largest, 2)}


def read_ranges(folder: Path, layers: int) -> list[Tensor]:
    """The reach [I] of every channel of each of so many layers, as `prepare_ranges` wrote them;
    ValueError where they are of another number."""
    ranges = load_file(folder / "ranges.safetensors")
    if len(ranges) != layers:
        raise ValueError(
            f"{folder / 'ranges.safetensors'} is of {len(ranges)} linear layers, and the model has "
            f"{layers}"
        )
    return [ranges[str(i)] for i in range(layers)]


def share_of_linear_macs(pipeline: Any, generate: Callable[[], object]) -> float:
    """The share (0..1) of the multiplications in the transformer's linear layers that are in
    sub-layers, which `quantize` chooses.

    Counted over `generate()`, which runs the pipeline; it may be attached or not.
    """
    with ExitStack() as undo:
        macs = _counting(pipeline.transformer, linears_of(sublayers(pipeline.transformer)), undo)
        generate()
    return macs[True] / (macs[True] + macs[False])


def linears_of(parts: Collection[Sublayer]) -> list[nn.Linear]:
    """The linear layers of sub-layers, in their order: what is quantised."""
    return [linear for part in parts for linear in part.linears]


def _counting(
    transformer: nn.Module,
    chosen: Collection[nn.Linear],
    undo: ExitStack,
    batch: Callable[[], int] | None = None,
) -> dict[bool, int]:
    """Multiplications of linear layers from now on, by whether they are among the chosen. `batch`: the
    rows of the call under way, where a layer that is given more vectors of conditions than those, of all
    steps at once (`modulation_ahead`), counts for this call's alone."""
    macs, chosen_ids = {True: 0, False: 0}, {id(linear) for linear in chosen}

    def count(linear: nn.Linear, inputs: tuple[Any, ...]) -> None:
        (given, *_), is_chosen = inputs, id(linear) in chosen_ids
        if batch is not None and not is_chosen and given.ndim == 2:
            given = given[: batch()]
        macs[is_chosen] += given.numel() * linear.out_features

    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            undo.callback(module.register_forward_pre_hook(count).remove)
    return macs


def _note_first_run(
    transformer: nn.Module, at: Attachment, chosen: dict[nn.Linear, Tensor], undo: ExitStack
) -> None:
    """Watch the transformer's next run, and leave the share and the error as notes."""
    macs = _counting(transformer, chosen, undo, lambda: at.now.batch)
    squares = _comparing(chosen, undo)

    def done(*_: Any) -> None:
        at.notes[SHARE] = macs[True] / max(1, macs[True] + macs[False])
        if squares["output"]:
            at.notes[ERROR] = math.sqrt(squares["change"] / squares["output"])
        undo.close()

    undo.callback(transformer.register_forward_hook(done).remove)


def _comparing(chosen: dict[nn.Linear, Tensor], undo: ExitStack) -> dict[str, float]:
    """Sums of squares of outputs in the original format and of the changes from them, from now on,
    without layers that a method above has rerouted. One layer at a time is there twice."""
    squares = {"output": 0.0, "change": 0.0}

    def compare(linear: nn.Linear, inputs: tuple[Tensor], recorded: Tensor) -> None:
        rerouted = (inputs[0].shape[-1], recorded.shape[-1]) != (
            linear.in_features,
            linear.out_features,
        )
        if recorded.is_meta or rerouted:
            return
        with torch.no_grad(), aside():
            exact = nn.functional.linear(inputs[0], chosen[linear].to(recorded.device), linear.bias)
            squares["output"] += float(exact.float().square().sum())
            squares["change"] += float((recorded - exact).float().square().sum())

    for linear in chosen:
        undo.callback(linear.register_forward_hook(compare).remove)
    return squares


def _put_back(linear: Any, original: Any, device: Any, had_repr: bool) -> None:
    original.data = original.data.to(device)
    linear.weight = original
    if not had_repr:
        vars(linear).pop("extra_repr", None)
