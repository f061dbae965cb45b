"""The full-size models under methods on the simulated device: bytes that are known beforehand."""

from dataclasses import replace

import pytest

from ditbench.method.stack import Stack
from ditbench.models.requests import make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.quiet import quiet
from ditbench.simulation.device import simulated
from ditbench.simulation.rehearsal import Stand

STACKS = "none", "diffsparse(allocator='uniform')", "toca", "taylorseer", "int8"
MODELS = {
    "dit-xl-2-256": (749_826_464 * 2 + 1_179_648, 28 * 2 * 2 * 256 * 1152 * 2, 445_906_944),
    "pixart-alpha-1024": (611_349_152 * 2 + 18_874_368, 28 * 3 * 2 * 4096 * 1152 * 2, 594_542_592),
    "flux-1-dev": (
        11_901_408_320 * 2,
        (19 * (4608 + 4608) + 38 * 4608) * 3072 * 2,
        8_606_711_808,
    ),
    "wan-2.1-1.3b": (2_844_248_192 + 1_048_576, 30 * 3 * 2 * 32760 * 1536 * 2, 1_391_984_640),
}
"""Bytes of the transformer in bfloat16, buffers included; of the outputs of all its sub-layers, both
guidance passes; and the weights that int8 holds in one byte instead of two."""


@pytest.mark.parametrize("name", MODELS)
def test_full_size_models_need_the_bytes_that_their_sizes_say(name):
    transformer, outputs, quantised = MODELS[name]
    model = select(name)[0]
    sampling = replace(sampling_of(model), steps=4)
    peaks, loops = {}, {}
    with simulated() as device, quiet():
        stand = Stand(device, model, "bfloat16")
        stacks = [s.replace("'uniform'", "'uniform',selector='norm'") for s in STACKS]
        # Wan's map is made in a hundred pieces a sub-layer, which takes minutes here
        for text, spelt in zip(STACKS, stacks if name.startswith("wan") else STACKS, strict=True):
            rehearsal = stand.rehearse(Stack.parse(spelt), sampling, make_requests(model, 1, 0))
            loop = rehearsal.stages["denoise"]
            peaks[text], loops[text] = loop.at_peak, loop.work
            assert not [line for line in loop.work.copies if line.startswith("ditbench")]
    none, sparse, toca, taylorseer, int8 = (peaks[text] for text in STACKS)
    assert none["transformer"] == transformer and none.get("kept outputs", 0) == 0
    # at the peak one output may be on its way; ages, scores and FLUX's attention come on top
    for kept in (sparse, toca):
        assert 0.95 * outputs < kept["kept outputs"] < 1.6 * outputs
    assert 0.95 * outputs < taylorseer["kept outputs"] <= 5 * outputs
    # scales of rows come on top
    assert 0 < int8["transformer"] - (transformer - quantised) < 0.01 * transformer
    # an attention map in pieces: scores, these in float32, and their softmax
    assert toca.get("ranking", 0) < (2 + 4 + 4) * 1.1 * (1 << 26) + 0.2 * outputs
    kernels = {text: work.kernels.total() for text, work in loops.items()}
    assert kernels["taylorseer"] < kernels["int8"] > 2 * kernels["none"]


def test_no_ranking_makes_a_map_of_all_tokens_by_all_tokens():
    """Wan at 480p and 81 frames, one block of it: the map has 12.9 billion numbers."""
    model = replace(select("wan-2.1-1.3b")[0], steps=3)
    sampling, sizes = sampling_of(model), []
    changes = {"transformer.num_layers": 1, "text_encoder.num_layers": 1, "vae.base_dim": 8}
    with simulated() as device, quiet():
        stand = Stand(device, model, "bfloat16", changes)
        hold = device.ledger.hold

        def noted(tensor, purpose):
            if purpose == "ranking":
                sizes.append(tensor.untyped_storage().nbytes())
            hold(tensor, purpose)

        device.ledger.hold = noted
        stack = Stack.parse("diffsparse(allocator='uniform',selector='attention')")
        rehearsal = stand.rehearse(stack, sampling, make_requests(model, 1, 0))
    tokens, heads = 21 * 30 * 52, 12
    assert heads * tokens * tokens * 2 > 25e9  # of one map, in bfloat16
    assert len(sizes) > 100 and 0.1e9 < max(sizes) < 1e9
    assert rehearsal.stages["denoise"].at_peak.get("ranking", 0) < 1e9
