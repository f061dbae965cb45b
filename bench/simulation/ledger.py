"""Bytes on the simulated device: what is live, and what was live when it was most."""

from __future__ import annotations

import weakref
from collections import Counter as Tally
from collections.abc import Callable, Iterable

from torch import Tensor

from ditbench.simulation.costs import KEPT

ACTIVATIONS = "activations"
RANKING = "ranking"
"""What methods allocate for themselves beside what they keep: attention maps, scores, indices."""


class Ledger:
    """Live and peak bytes of one device, by what they are for. Storages are counted once, as large
    as they are asked for: an allocator's rounding and fragments, and kernels' workspaces, are not.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        """The most that was live since the last `mark`."""
        self.at_peak: dict[str, int] = {}
        """What the peak consisted of, bytes by purpose."""
        self.method_tensors: Callable[[], Iterable[Tensor]] = tuple
        """The tensors that methods keep from step to step."""
        self._sizes: dict[int, tuple[int, str]] = {}
        self._by_purpose: Tally[str] = Tally()
        self._extra = 0  # of the peak, what was live inside a replayed module
        self._snapshot_is_old = False
        self._most = 0  # since the last `begin`
        self._away: dict[int, tuple[int, str]] = {}

    def hold(self, tensor: Tensor, purpose: str) -> None:
        """Count the storage of a tensor until it is freed; one that is counted already gets the
        purpose `purpose` only where that is a part's weights."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size, purpose
        self._by_purpose[purpose] += size
        self.live += size
        self._most = max(self._most, self.live)
        if self.live > self.peak:
            self.peak, self._extra, self._snapshot_is_old = self.live, 0, True
        weakref.finalize(storage, self._free, key).atexit = False

    def rename(self, tensor: Tensor, purpose: str) -> None:
        """Count the storage of a tensor under another purpose from now on."""
        self.hold(tensor, purpose)
        key = tensor.untyped_storage()._cdata
        size, before = self._sizes[key]
        self._sizes[key] = size, purpose
        self._by_purpose[before] -= size
        self._by_purpose[purpose] += size

    def release(self, tensor: Tensor) -> None:
        """The tensor's data waits in host memory from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._away:
            self._describe()
            self._away[key] = self._sizes[key]
            self._change(key, 0)

    def take_back(self, tensor: Tensor) -> None:
        """The tensor's data is on the device again."""
        key = tensor.untyped_storage()._cdata
        if key in self._away:
            self._change(key, self._away.pop(key)[0])

    def _change(self, key: int, size: int) -> None:
        before, purpose = self._sizes[key]
        self._sizes[key] = size, purpose
        self._by_purpose[purpose] += size - before
        self.live += size - before

    def _free(self, key: int) -> None:
        self._describe()
        self._away.pop(key, None)
        size, purpose = self._sizes.pop(key)
        self._by_purpose[purpose] -= size
        self.live -= size

    def passes(self, above: int) -> None:
        """So many bytes more than now were live for a moment."""
        self._most = max(self._most, self.live + above)
        if self.live + above > self.peak:
            self._describe()
            self.peak, self._extra, self._snapshot_is_old = self.live + above, above, True
            self._describe()

    def begin(self) -> tuple[int, int]:
        """Watch the most that is live from here to `end`; returns what `end` wants, and the bytes
        that are live."""
        outer = self._most
        self._most = self.live
        return outer, self.live

    def end(self, outer: int) -> int:
        """The most that was live since `begin`."""
        most = self._most
        self._most = max(outer, most)
        return most

    def mark(self) -> None:
        """Begin a new stage: its peak starts from what is live."""
        self.peak, self._extra, self._snapshot_is_old = self.live, 0, True

    def close(self) -> tuple[int, dict[str, int]]:
        """The peak of the stage, and what it consisted of."""
        self._describe()
        return self.peak, {name: n for name, n in self.at_peak.items() if n}

    def _describe(self) -> None:
        """Write down what the peak consists of, before anything of it is freed."""
        if not self._snapshot_is_old:
            return
        self._snapshot_is_old = False
        at_peak = Tally(self._by_purpose)
        at_peak[ACTIVATIONS] += self._extra
        for key in {t.untyped_storage()._cdata for t in self.method_tensors()}:
            if key in self._sizes:
                size, purpose = self._sizes[key]
                at_peak[purpose] -= size
                at_peak[KEPT] += size
        self.at_peak = dict(at_peak)
