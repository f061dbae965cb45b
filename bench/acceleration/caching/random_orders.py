"""Random orders of tokens, the same in every generation, which leave the device with each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

Key = tuple[int, int, int]
"""Step, sub-layer and N tokens."""


class RandomOrders:
    """Drawn in the first generation, on the host, and brought to the device in one copy for each
    length by each later one."""

    def __init__(self) -> None:
        self.drawn: dict[Key, Tensor] = {}
        """[N], on the host."""
        self.tables: list[tuple[list[Key], Tensor]] = []
        """Those of one length and generation, [K,N]: what is copied. They stay where they are, for a
        CUDA graph reads them there whenever it is replayed."""
        self.here: dict[Key, Tensor] = {}
        """Those on the device, in this generation."""

    def attach(self, at: Attachment) -> None:
        """Has them leave the device with the generation."""
        at.keeps(self.here, rows=False)
        at.on_end(self._gather)

    def of(self, key: Key, device: torch.device) -> Tensor:
        """[N], uniform over 0..1."""
        if self.drawn and not self.here:
            self._bring(device)
        if key not in self.here:
            if key not in self.drawn:
                g = torch.Generator().manual_seed(1_000_003 * key[0] + key[1])
                self.drawn[key] = torch.rand(key[2], generator=g)
            # not waited for: the host's copy is taken before the call returns, pinned or not
            self.here[key] = self.drawn[key].to(device, non_blocking=True)
        return self.here[key]

    def _bring(self, device: torch.device) -> None:
        if device.type == "cpu":
            self.here.update(self.drawn)
            return
        for keys, table in self.tables:
            rows = table.to(device, non_blocking=True).unbind()
            self.here.update(zip(keys, rows, strict=True))

    def _gather(self) -> None:
        new = [*self.drawn][sum(len(keys) for keys, _ in self.tables) :]
        for n in dict.fromkeys(n for _, _, n in new):
            keys = [key for key in new if key[2] == n]
            table = torch.stack([self.drawn[key] for key in keys])
            table = table.pin_memory() if torch.cuda.is_initialized() else table
            self.tables.append((keys, table))
            self.drawn.update(zip(keys, table.unbind(), strict=True))  # not held twice
