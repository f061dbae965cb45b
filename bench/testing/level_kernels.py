"""Kernels that a sub-layer launches when all, some or none of its rows are computed, by the simulated
device: `python -m ditbench.testing.level_kernels [MODEL...]`, one table.

Launches are what a partly computed sub-layer of few tokens costs: one takes as long as the products
of a hundred rows. Counted is a block whose other sub-layers are reused, less the block all of whose
sub-layers are.
"""

from __future__ import annotations

import argparse
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ditbench.acceleration.caching.level_times import LevelProbe, block_calls, lists_of
from ditbench.method.stack import Stack
from ditbench.models.family import grid_of
from ditbench.models.fused_rows import computed_by
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import Model, models
from ditbench.quiet import quiet
from ditbench.simulation.device import Device, simulated
from ditbench.simulation.rehearsal import Stand

PARTIAL = 0.5
BATCH = 2
FULL_SIZE = ("dit-xl-2-256", "pixart-alpha-256", "flux-1-dev", "wan-2.1-1.3b", "sd3-medium")


@dataclass(frozen=True, kw_only=True)
class LevelKernels:
    """Kernels by name that one sub-layer adds to a block that is reused otherwise: below 0 those that
    others take the place of, as a kernel with gate and sum in it does."""

    where: str
    """The list of blocks it is in, such as `transformer_blocks`."""
    kind: str
    dense: Tally[str]
    partial: Tally[str]
    """Half of its rows, those that come first in a ranking which is made for it alone."""
    reused: Tally[str]
    """Of the whole block, all of it reused: gates and additions, and what the gates are made of."""

    @property
    def added(self) -> int:
        """Kernels of the partial one above those of the dense one."""
        return self.partial.total() - self.dense.total()


def level_kernels(
    device: Device, model: Model, changes: Mapping[str, Any], *,
    selector: str = "attention", noted: bool = False, dtype: str = "bfloat16",
) -> Iterator[LevelKernels]:  # fmt: skip
    """Of the sub-layers of the first block of each list, inside `simulated(device)`; `changes` as of
    `Stand`. Some rows are computed right after all were, of which a ranking's signals were noted;
    `noted`: those of the rows are noted too, for a ranking that comes later."""
    with quiet():
        stand = Stand(device, model, dtype, dict(changes))
    pipe, sampling = stand.pipe, sampling_of(model)
    arguments = call_arguments(model, sampling, make_requests(model, num=BATCH, seed=0))
    probe = LevelProbe(selector)
    with torch.no_grad(), quiet():
        call = _first_call(pipe, arguments)
        given = block_calls(pipe.transformer, call)
        with Stack((probe,)).attached(pipe) as attached:
            attached.grid = grid_of(pipe, sampling)
            attached.start(2, BATCH)
            at = attached.attachments[probe.name]
            pipe.transformer(*call[0], **call[1])  # which tells how many tokens there are

            def count(block: Any, where: str, index: int, level: float) -> Tally[str]:
                def run(under: Callable[[int, int], float]) -> None:
                    attached.passes.calls = attached.now.branch = 0
                    probe.level = under
                    block(*given[where][0], **given[where][1])

                probe.cache.notes = lambda _: True
                run(lambda *_: 1.0)
                probe.cache.notes = lambda _: noted and level < 1
                before = device.work.copy()
                run(lambda _, i: level if i == index else 0.0)
                kernels: Tally[str] = Tally()
                for kernel, number in device.work.minus(before).kernels.items():
                    kernels[kernel.name] += number
                return kernels

            lists = lists_of(pipe.transformer, at.sublayers)
            for where in given:
                first = at.sublayers[lists.index(where)].block
                block = at.blocks[first].module
                reused = count(block, where, -1, 0.0)
                for sublayer in (s for s in at.sublayers if s.block == first):
                    dense, partial = (
                        count(block, where, sublayer.index, level) for level in (1.0, PARTIAL)
                    )
                    yield LevelKernels(
                        where=where, kind=sublayer.kind, reused=reused,
                        dense=_above(dense, reused), partial=_above(partial, reused),
                    )  # fmt: skip


def _above(kernels: Tally[str], reused: Tally[str]) -> Tally[str]:
    """What runs besides; below 0 what does not run any more."""
    kernels.subtract(reused)
    return kernels


class _Called(Exception):
    """Ends a pipeline's call at its first transformer call."""


def _first_call(pipe: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    calls: list[tuple[Any, Any]] = []

    def stop(_: Any, args: Any, kwargs: Any) -> None:
        calls.append((args, dict(kwargs)))
        raise _Called

    hook = pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        pipe(**arguments)
    except _Called:
        pass
    finally:
        hook.remove()
    return calls[0]


def few_blocks(name: str) -> dict[str, int]:
    """Changes to a full-size model that leave one block of each list, and a second where the last is
    of another form."""
    from ditbench.models.architecture import describe

    sizes = describe(models()[name])["transformer"]
    return {
        f"transformer.{key}": min(2, sizes[key])
        for key in ("num_layers", "num_single_layers")
        if key in sizes
    }


def _words(more: Tally[str], less: Tally[str]) -> str:
    """How much more there is of what."""
    kernels = Tally(more)
    kernels.subtract(less)
    return ", ".join(f"{n:+d} {name}" for name, n in sorted(kernels.items()) if n)


def flags() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=FULL_SIZE, metavar="MODEL")
    parser.add_argument("--selector", default="attention")
    parser.add_argument("--noted", action="store_true", help="a ranking looks at the rows later")
    parser.add_argument("--kernel", choices=("torch", "triton"), default="torch")
    return parser


def main() -> None:
    """Print the table."""
    asked = flags().parse_args()
    print("| model | sub-layer | dense | half | added | more and less than the dense one's |")  # noqa: T201
    print("|---|---|---:|---:|---:|---|")  # noqa: T201
    for name in asked.models:
        with simulated() as device, computed_by(asked.kernel):
            for row in level_kernels(
                device, models()[name], few_blocks(name), selector=asked.selector, noted=asked.noted
            ):
                print(  # noqa: T201
                    f"| {name} | {row.where}, {row.kind} | {row.dense.total()} | "
                    f"{row.partial.total()} | {row.added:+d} | {_words(row.partial, row.dense)} |"
                )


if __name__ == "__main__":
    main()
