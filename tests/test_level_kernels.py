"""What a partly computed sub-layer launches above a wholly computed one."""

import pytest
from narrow import narrow

from ditbench.simulation.device import simulated
from ditbench.testing.level_kernels import few_blocks, level_kernels

ADDED = {
    "dit-xl-2-256": {"self": 24, "mlp": 16},
    "pixart-alpha-256": {"self": 31, "cross": 37, "mlp": 23},
    "flux-1-dev": {"joint": 19, "mlp": 10, "context_mlp": 10, "single": 17},
    "wan-2.1-1.3b": {"self": 21, "cross": 30, "mlp": 16},
    "sd3-medium": {"joint": 16, "mlp": 10, "context_mlp": 10},
}
"""Kernels above dense of a sub-layer of half of its rows, its own ranking by attention included, on a
few tokens: of thousands attention maps are made in pieces, and there are more."""


def counted(name, **more):
    model, changes = narrow(name)
    with simulated() as device:
        return {row.kind: row for row in level_kernels(device, model, changes, **more)}


@pytest.mark.parametrize("name", ADDED)
def test_kernels_of_some_rows_by_torchs_operations(name):
    rows = counted(name)
    assert {kind: row.added for kind, row in rows.items()} == ADDED[name]
    for row in rows.values():
        assert row.partial["gather"] >= 1 and row.dense["addmm"] == row.partial["addmm"]


def test_a_random_ranking_launches_fewer():
    by_attention, shuffled = (
        counted("dit-xl-2-256", selector=selector) for selector in ("attention", "shuffle")
    )
    for kind in ("self", "mlp"):
        assert shuffled[kind].partial.total() < by_attention[kind].partial.total()
        assert shuffled[kind].dense == by_attention[kind].dense


def test_few_blocks_of_a_model_are_of_every_list():
    assert few_blocks("flux-1-dev") == {
        "transformer.num_layers": 2,
        "transformer.num_single_layers": 2,
    }
