"""Per-sample values of very many samples as means of blocks of whole prompts, so that what a report
reads does not grow with n. No torch.

n samples of G prompts; up to `MOST` of them are read as they are. Beyond, prompts are dealt out in
turn to B blocks (`ditbench.statistics.influence.num_blocks`), and a scores file holds beside every
array of values NAME [n]

NAME@blocks        its means by block, [B]
group@blocks       the numbers of the blocks, [B]
samples@blocks     samples in each block, [B]
prompts@blocks     G, [1]

Read through `Blocked` the means stand in place of the values, and the numbers of the prompts [n] are
`group@samples`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.records.score_arrays import BLOCKS
from ditbench.statistics.influence import MOST, members, num_blocks

SAMPLES, PROMPTS, GROUPS = f"samples{BLOCKS}", f"prompts{BLOCKS}", "group@samples"
FEATURE = "feature."
"""How the names of arrays of features begin."""
ROWS = "@rows"
"""After the name of values of some samples alone, which are not many: the samples' rows."""
EQUAL = "mse.vs_none"
ZEROS = f"{EQUAL}@zeros"
"""[1]: how many samples are bit-identical to the baseline's, which means of blocks do not say."""


def block_of(group: NDArray[Any]) -> NDArray[np.int64]:
    """[n]: the number of each sample's block, by the numbers of the prompts [n]."""
    member = members(len(group), group)
    block: NDArray[np.int64] = member % num_blocks(int(member.max()) + 1)
    return block


def by_block(values: NDArray[Any], group: NDArray[Any]) -> NDArray[np.float64]:
    """[B] means of values [n] by block."""
    block = block_of(group)
    means: NDArray[np.float64] = np.bincount(block, weights=values) / np.bincount(block)
    return means


def blocks_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What stands beside arrays of values for reading them by block; nothing up to `MOST` samples."""
    group = arrays.get("group")
    if group is None or len(group) <= MOST:
        return {}
    block = block_of(group)
    count = np.bincount(block)
    made: dict[str, NDArray[Any]] = {
        f"group{BLOCKS}": np.arange(len(count)),
        SAMPLES: count.astype(np.float64),
        PROMPTS: np.array([int(members(len(group), group).max()) + 1]),
    }
    for name in arrays:
        if not _plain(name, arrays) or (values := arrays[name]).shape != group.shape:
            continue
        made[f"{name}{BLOCKS}"] = np.bincount(block, weights=values) / count
        if name == EQUAL:
            made[ZEROS] = np.array([int((values == 0).sum())])
    return made


def _plain(name: str, names: Any) -> bool:
    """Whether an array may be one of values of all samples."""
    return not (
        name == "group"
        or name.startswith(FEATURE)
        or name.endswith((BLOCKS, ROWS))
        or f"{name}{ROWS}" in names
    )


class Blocked(Mapping[str, "NDArray[Any]"]):
    """Arrays of a scores file of more than `MOST` samples, with means of blocks in place of values:
    those that the file holds, or, of an older file, made when they are looked at."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        self._made: dict[str, NDArray[Any]] = {}
        self._stored = SAMPLES in arrays
        if not self._stored:
            self._made = blocks_of({"group": arrays["group"]})
        zeros = [ZEROS] if EQUAL in arrays and ZEROS not in arrays else []
        plain = (name for name in arrays if not name.endswith(BLOCKS))
        self._names = dict.fromkeys([*plain, *zeros, SAMPLES, PROMPTS, GROUPS])

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        if name == GROUPS:
            return self._arrays["group"]
        by_name = self._arrays if self._stored else self._made
        stored = name if name in (SAMPLES, PROMPTS) else f"{name}{BLOCKS}"
        if stored in by_name:
            return by_name[stored]
        return self._arrays[name] if self._stored else self._make(name)

    def _make(self, name: str) -> NDArray[Any]:
        """An array of a file without blocks."""
        group = self._arrays["group"]
        if name == ZEROS:
            return blocks_of({"group": group, EQUAL: self._arrays[EQUAL]})[ZEROS]
        values = self._arrays[name]
        if not _plain(name, self._arrays) or values.shape != group.shape:
            return values
        return self._made.setdefault(f"{name}{BLOCKS}", by_block(values, group))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
