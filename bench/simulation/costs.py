"""What a generation costs on any GPU, for any batch: kernels and memory by stage, each a part that is
fixed and a part for each sample. No torch.

Both parts are known from a generation of two samples and one of three. A single sample is another
matter (what is transposed need not be copied, maps are computed in fewer pieces), and is known from
a generation of its own.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

SEEN = (1, 2, 3)
"""Samples of the generations that are simulated."""
NEAR, NEAR_AT = 0.1, (2, 8)
"""By how much, in natural logarithms, the sizes may differ of launches that are put together, and at
which batches."""
TEXT, DENOISE, DECODE = "text", "denoise", "decode"
"""Stages of a call: to the transformer's first run, to the decoder, to the end."""
TRANSFORMER, ENCODER, DECODER = "transformer", "text encoder", "decoder"
"""Weights, as the ledger calls them."""
KEPT = "kept outputs"


@dataclass(frozen=True)
class Kernel:
    """What one launch on the device does."""

    name: str
    dtype: str
    """That a product is carried out in, such as `bfloat16`; of other kernels that of the result."""
    flops: int
    """Of a product, 2 a multiply-accumulate; 0 of everything else."""
    moved: int
    """Bytes read and written, each tensor once."""


@dataclass(frozen=True)
class Affine:
    """A number that grows by as much for each sample."""

    fixed: int
    each: int

    @classmethod
    def through(cls, two: int, three: int) -> Affine:
        """From its values for two samples and for three."""
        return cls(3 * two - 2 * three, three - two)

    def at(self, batch: int) -> int:
        """For a batch of so many samples."""
        return self.fixed + self.each * batch


@dataclass(frozen=True)
class Launch:
    """A kernel for any batch."""

    name: str
    dtype: str
    flops: Affine
    moved: Affine

    def at(self, batch: int) -> Kernel:
        """The kernel for a batch of so many samples."""
        return Kernel(self.name, self.dtype, self.flops.at(batch), self.moved.at(batch))


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """What one stage costs."""

    launches: Mapping[Launch, Affine]
    """How often each kernel is launched."""
    at_peak: Mapping[str, Affine]
    """What is live at most, all parts of the pipeline being on the GPU, bytes: weights by part, kept
    outputs, ranking, activations."""

    def kernels(self, batch: int) -> Tally[Kernel]:
        """Its kernels for a batch."""
        tally: Tally[Kernel] = Tally()
        for launch, number in self.launches.items():
            if (n := number.at(batch)) > 0:
                tally[launch.at(batch)] += n
        return tally


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a model under a stack costs at one workload; without stages where that is not known."""

    stages: Mapping[str, StageCosts] = field(default_factory=dict)
    """For two samples and more."""
    single: Mapping[str, StageCosts] = field(default_factory=dict)
    """For one."""
    steps: int = 0
    """Sampler steps."""
    status: str = "ok"
    """`ok`; `at most`: values that only a real run has decide what is skipped, and the kernels are
    those of skipping nothing; `refused` or `failed`: `note` says why, and there are no stages."""
    note: str = ""
    copies: Mapping[str, int] = field(default_factory=dict)
    """Blocking copies from the host in the sampler loop, by source line."""
    syncs: Mapping[str, int] = field(default_factory=dict)
    """Reads of the device's values in the sampler loop, by source line."""

    def of(self, batch: int) -> Mapping[str, StageCosts]:
        """The stages for a batch."""
        return self.single if batch == 1 else self.stages

    def peaks(self, batch: int, *, once: bool, offload: str) -> dict[str, dict[str, int]]:
        """What each stage's peak consists of, bytes, without the weights that wait in host memory
        meanwhile. `once`: text is encoded ahead; `offload`: none, text or model."""
        return {
            name: {
                purpose: size
                for purpose, part in stage.at_peak.items()
                if purpose not in waiting(name, once, offload) and (size := part.at(batch))
            }
            for name, stage in self.of(batch).items()
        }

    def peak(self, batch: int, *, once: bool, offload: str) -> int:
        """Bytes at most, over all stages."""
        peaks = self.peaks(batch, once=once, offload=offload).values()
        return max(sum(parts.values()) for parts in peaks)

    def largest_batch(self, memory: float, *, once: bool, offload: str) -> int:
        """The largest batch whose peak fits in so many bytes, 0 where none does."""
        fitting = []
        for name, stage in self.stages.items():
            away = waiting(name, once, offload)
            parts = [part for purpose, part in stage.at_peak.items() if purpose not in away]
            fixed, each = sum(p.fixed for p in parts), sum(p.each for p in parts)
            fitting.append(int((memory - fixed) // each) if each > 0 else 10**6 * (fixed <= memory))
        largest = min(fitting)
        return largest if largest > 1 else int(self.peak(1, once=once, offload=offload) <= memory)


def waiting(stage: str, once: bool, offload: str) -> set[str]:
    """The weights that are in host memory during a stage, as `rehearsal.Stand` has them."""
    away: set[str] = set()
    if stage in (DENOISE, DECODE) and (once or offload in ("text", "model")):
        away.add(ENCODER)
    if stage == TEXT and once and offload == "text":
        away |= {TRANSFORMER, DECODER}
    if offload == "model":
        away |= {DENOISE: {DECODER}, DECODE: {TRANSFORMER}}.get(stage, {TRANSFORMER, DECODER})
    return away


def launches(two: Mapping[Kernel, int], three: Mapping[Kernel, int]) -> dict[Launch, Affine]:
    """Kernels for any batch, and how often each is launched, from those of two samples and of three.

    Kernels of one name and type are matched by size, smallest first, so that their sums are right
    whichever of two was meant. What is launched more often for three samples (a map computed in
    pieces) is launched as much more often again for each further one. Launches that differ by a tenth in
    size at most are put together.
    """
    numbers: dict[Launch, Affine] = {}

    def add(a: Kernel, b: Kernel, number: Affine) -> None:
        flops, moved = Affine.through(a.flops, b.flops), Affine.through(a.moved, b.moved)
        launch = Launch(a.name, a.dtype, flops, moved)
        before = numbers.get(launch, Affine(0, 0))
        numbers[launch] = Affine(before.fixed + number.fixed, before.each + number.each)

    for group in sorted({(k.name, k.dtype) for k in (*two, *three)}):
        a, b = (
            {k: n for k, n in kernels.items() if (k.name, k.dtype) == group}
            for kernels in (two, three)
        )
        grows = sum(a.values()) != sum(b.values())
        for kernel in sorted(a.keys() & b.keys(), key=_size):
            if grows or a[kernel] == b[kernel]:
                add(kernel, kernel, Affine.through(a.pop(kernel), b.pop(kernel)))
        _match(a, b, add)
    return _together(numbers)


def _together(numbers: Mapping[Launch, Affine]) -> dict[Launch, Affine]:
    """Launches of nearly one size as so many of their mean; token selection has a size for every
    layer and step."""
    groups: dict[Any, list[Launch]] = {}
    for launch in numbers:
        sizes_at = [size.at(n) for size in (launch.flops, launch.moved) for n in NEAR_AT]
        near = [round(log(max(1, size)) / NEAR) for size in sizes_at]
        groups.setdefault((launch.name, launch.dtype, *near), []).append(launch)
    merged: dict[Launch, Affine] = {}
    for (name, dtype, *_), alike in groups.items():
        weights = [sum(numbers[launch].at(n) for n in SEEN[1:]) for launch in alike]
        if len(alike) == 1 or not sum(weights):
            merged |= {launch: numbers[launch] for launch in alike}
            continue
        sizes = [
            [sum(w * v for w, v in zip(weights, values, strict=True)) // sum(weights) for values in
             zip(*(_pair(getattr(launch, what)) for launch in alike), strict=True)]
            for what in ("flops", "moved")
        ]  # fmt: skip
        mean = Launch(name, dtype, Affine(*sizes[0]), Affine(*sizes[1]))
        so_far = [numbers[launch] for launch in alike] + [merged.get(mean, Affine(0, 0))]
        merged[mean] = Affine(sum(n.fixed for n in so_far), sum(n.each for n in so_far))
    return merged


def _match(
    a: dict[Kernel, int], b: dict[Kernel, int], add: Callable[[Kernel, Kernel, Affine], None]
) -> None:
    """Match kernels by size, as often as each is there; what is left over of either grows alone."""
    rest_a, rest_b = (sorted(kernels, key=_size) for kernels in (a, b))
    while rest_a and rest_b:
        first, second = rest_a[0], rest_b[0]
        n = min(a[first], b[second])
        add(first, second, Affine(n, 0))
        for rest, numbers in ((rest_a, a), (rest_b, b)):
            numbers[rest[0]] -= n
            if not numbers[rest[0]]:
                rest.pop(0)
    for kernel in rest_a:
        add(kernel, kernel, Affine.through(a[kernel], 0))
    for kernel in rest_b:
        add(kernel, kernel, Affine.through(0, b[kernel]))


def _size(kernel: Kernel) -> tuple[int, int]:
    return kernel.flops, kernel.moved


def affine_parts(two: Mapping[str, int], three: Mapping[str, int]) -> dict[str, Affine]:
    """Bytes by purpose for any batch."""
    names = sorted(two.keys() | three.keys())
    return {name: Affine.through(two.get(name, 0), three.get(name, 0)) for name in names}


def to_document(rows: Mapping[str, Costs]) -> dict[str, Any]:
    """Rows by key as JSON: kernels that several share are listed once."""
    places: dict[Launch, int] = {}
    listed: dict[str, Any] = {}
    for key, costs in sorted(rows.items()):
        row: dict[str, Any] = {"steps": costs.steps, "status": costs.status, "note": costs.note}
        row |= {"copies": dict(costs.copies), "syncs": dict(costs.syncs)}
        for part in ("stages", "single"):
            row[part] = {}
            for name, stage in getattr(costs, part).items():
                for launch in sorted(stage.launches, key=_order):
                    places.setdefault(launch, len(places))
                row[part][name] = {
                    "at_peak": {purpose: _pair(size) for purpose, size in stage.at_peak.items()},
                    "launches": sorted(
                        [places[launch], *_pair(n)] for launch, n in stage.launches.items()
                    ),
                }
        listed[key] = row
    shared = [[p.name, p.dtype, *_pair(p.flops), *_pair(p.moved)] for p in places]
    return {"launches": shared, "rows": listed}


def from_document(document: Mapping[str, Any]) -> dict[str, Costs]:
    """The rows of `to_document`."""
    shared = [
        Launch(name, dtype, Affine(a, b), Affine(c, d))
        for name, dtype, a, b, c, d in document["launches"]
    ]
    rows = {}
    for key, row in document["rows"].items():
        read = {part: _stages(row[part], shared) for part in ("stages", "single")}
        rows[key] = Costs(**(row | read))
    return rows


def _stages(document: Mapping[str, Any], shared: Sequence[Launch]) -> dict[str, StageCosts]:
    return {
        name: StageCosts(
            launches={shared[place]: Affine(*n) for place, *n in stage["launches"]},
            at_peak={purpose: Affine(*part) for purpose, part in stage["at_peak"].items()},
        )
        for name, stage in document.items()
    }


def _pair(value: Affine) -> list[int]:
    return [value.fixed, value.each]


def _order(launch: Launch) -> tuple[Any, ...]:
    return (launch.name, launch.dtype, *_pair(launch.flops), *_pair(launch.moved))
