"""A schedule of keep ratios: how many tokens every sub-layer recomputes at every step. A small
readable file. No torch.

T steps, L sub-layers, S levels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "ditbench schedule 1"
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of tokens a sub-layer can recompute (DiffSparse section 4.1): 0 reuses all, 1 is dense."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """Keep ratios of one model at one number of steps, the same for every prompt."""

    sublayers: tuple[str, ...]
    """Names in the order they run, such as `0.self`."""
    chosen: NDArray[np.int64]
    """[T,L]: which level."""
    levels: tuple[float, ...] = LEVELS
    notes: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, for people."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.chosen)

    @property
    def keep(self) -> NDArray[np.float64]:
        """[T,L]: the shares."""
        return np.asarray(self.levels)[self.chosen]

    def write(self, path: Path) -> None:
        """A JSON file with a line of digits per step, a digit per sub-layer: the number of its
        level."""
        document = {
            "format": FORMAT, "levels": list(self.levels), "sublayers": " ".join(self.sublayers),
            "steps": ["".join(map(str, row)) for row in self.chosen.tolist()], "notes": self.notes,
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Schedule:
        """Read what `write` wrote; ValueError in one sentence, naming the file, for anything
        else."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"there is no schedule {path}; python run_bench.py prepare diffsparse makes one"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a schedule: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"{path} is not a schedule: its format is not {FORMAT!r}")
        try:
            levels, names = (
                tuple(float(x) for x in document["levels"]),
                tuple(document["sublayers"].split()),
            )
            rows = [[int(digit) for digit in row] for row in document["steps"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a whole schedule: {type(error).__name__} {error}"
            ) from None
        if not rows or any(len(row) != len(names) for row in rows):
            raise ValueError(f"{path}: every step must have {len(names)} digits, one per sub-layer")
        if max(map(max, rows)) >= len(levels):
            raise ValueError(
                f"{path}: a digit is above {len(levels) - 1}, so its ratio is none of {levels}"
            )
        if not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"{path}: the levels {levels} are not all shares between 0 and 1")
        return cls(
            sublayers=names,
            chosen=np.array(rows),
            levels=levels,
            notes=dict(document.get("notes", {})),
        )

    def fitted(
        self, names: Sequence[str], steps: int, made_by: str, *, stretch: bool = False
    ) -> Schedule:
        """This schedule at `steps` steps, checked against a model's sub-layers.

        Another number of steps is refused, or with `stretch` takes each step's nearest by share of
        the sampling done, the first dense. ValueError, naming `made_by`, the command that makes a
        fitting one, when it is refused or the sub-layers differ.
        """
        if tuple(names) != self.sublayers:
            raise ValueError(
                f"the schedule is for {len(self.sublayers)} sub-layers "
                f"({' '.join(self.sublayers[:3])} ...), and the model has "
                f"{len(names)} ({' '.join(list(names)[:3])} ...); {made_by} makes one that fits"
            )
        if steps == self.steps:
            return self
        if not stretch:
            refuse_other_length("the schedule", self.steps, steps, made_by)
        chosen = self.chosen[nearest(self.steps, steps)].copy()
        chosen[0] = int(np.argmax(self.levels))
        return Schedule(
            sublayers=self.sublayers,
            chosen=chosen,
            levels=self.levels,
            notes=self.notes | {"resampled_from": self.steps},
        )


def refuse_other_length(what: str, made_for: int, steps: int, made_by: str) -> None:
    """Raise ValueError in one sentence when `what`, which has a row for each of `made_for` sampler
    steps, meets a sampler that makes another number of `steps`; `made_by` is the command that makes
    a fitting one."""
    if made_for != steps:
        raise ValueError(
            f"{what} is for {made_for} sampler steps, and the scheduler makes {steps}; {made_by} "
            "makes one that fits"
        )


def nearest(steps: int, to: int) -> NDArray[np.int64]:
    """[to]: of `steps` steps the ones nearest, by share of the sampling done, to those of a
    sampling of `to` steps."""
    return np.round(np.linspace(0, steps - 1, to)).astype(np.int64)


def looked_at(keep: NDArray[np.float64], blocks: Sequence[int]) -> NDArray[np.bool_]:
    """[T,L]: whether anything ranks tokens by what is noted of a sub-layer when it runs at a step:
    some sub-layer of its block computes a part of its tokens after that, before this one runs again
    or as it does, for tokens are ranked before any of them is computed.

    `keep` [T,L] are the shares; `blocks` [L] says which block a sub-layer is of.
    """
    partial, ran = (keep > 0) & (keep < 1), keep > 0
    same = np.asarray(blocks)[:, None] == np.asarray(blocks)[None]
    # those of the block that run after it; the others, itself among them, rank before it has run
    after = same & (np.arange(len(same))[:, None] < np.arange(len(same))[None])
    later, sooner = ((partial[:, None, :] & part).any(2) for part in (after, same & ~after))
    ranking, until = np.zeros_like(partial), np.zeros(partial.shape[1], bool)
    for t in reversed(range(len(keep))):
        ranking[t] = later[t] | until
        until = sooner[t] | (~ran[t] & ranking[t])
    return ranking
