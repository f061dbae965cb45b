"""What a partly computed sub-layer launches above a wholly computed one."""

import pytest
from narrow import narrow

from ditbench.simulation.device import simulated
from ditbench.testing.level_kernels import few_blocks, level_kernels

ADDED = {
    "dit-xl-2-256": {"self": 14, "mlp": 14},
    "pixart-alpha-256": {"self": 21, "cross": 21, "mlp": 21},
    "flux-1-dev": {"joint": 9, "mlp": 8, "context_mlp": 8, "single": 6},
    "wan-2.1-1.3b": {"self": 11, "cross": 15, "mlp": 14},
    "sd3-medium": {"joint": 8, "mlp": 8, "context_mlp": 8},
}
"""Kernels above dense of a sub-layer of half of its rows by torch's operations, its own ranking by
attention included; no ranking looks at what these rows show. A dense single block of FLUX, which runs as
it is, joins two tensors without columns where attention and MLP wait for its last layer."""


def counted(name, **more):
    model, changes = narrow(name)
    with simulated() as device:
        return {row.kind: row for row in level_kernels(device, model, changes, **more)}


@pytest.mark.parametrize("name", ADDED)
def test_kernels_of_some_rows_by_torchs_operations(name):
    rows = counted(name)
    assert {kind: row.added for kind, row in rows.items()} == ADDED[name]
    for row in rows.values():
        assert row.partial["gather"] >= 1 and row.partial["scatter_"] == 2
        assert row.dense["addmm"] == row.partial["addmm"]


def test_a_random_ranking_launches_fewer():
    by_attention, shuffled = (
        counted("dit-xl-2-256", selector=selector) for selector in ("attention", "shuffle")
    )
    for kind in ("self", "mlp"):
        assert shuffled[kind].partial.total() < by_attention[kind].partial.total()
        assert shuffled[kind].dense == by_attention[kind].dense


def test_what_a_later_ranking_looks_at_is_a_map_and_its_means():
    alone, noted = (counted("dit-xl-2-256", noted=noted)["self"] for noted in (False, True))
    more = noted.partial - alone.partial
    assert more["bmm"] == more["_softmax"] == 1 and more["mean"] == 2


def test_few_blocks_of_a_model_are_of_every_list():
    assert few_blocks("flux-1-dev") == {
        "transformer.num_layers": 2,
        "transformer.num_single_layers": 2,
    }
