"""The four models of the mission at their real sizes, with methods attached, on the simulated device."""

from dataclasses import replace

import pytest

from ditbench.method.stack import Stack
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.simulation import rebuild
from ditbench.simulation.costs import DENOISE, KEPT
from ditbench.simulation.simulate import Simulator, at_once

MODELS = ("dit-xl-2-256", "pixart-alpha-1024", "flux-1-dev", "wan-2.1-1.3b")
STACKS = ("none", "diffsparse", "toca", "taylorseer", "distill", "int8")
STEPS = 4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_methods_run_at_real_size_and_need_the_memory_of_the_bundled_rows(name):
    """Of few steps: a tensor on the wrong device and a value that is read in the sampler loop end a
    simulation. Memory of what keeps nothing between steps does not depend on them; the bundled rows
    were made by the code of another day."""
    model = select(name)[0]
    simulator, bundled = Simulator(model, rebuild.DTYPE), rebuild.rows_of(model)
    sampling = replace(sampling_of(model), steps=STEPS)
    for text in STACKS:
        stack = at_once(model, Stack.parse(text))
        costs = simulator.costs(stack, sampling)
        assert (costs.status, costs.syncs) == ("ok", {}), f"{stack}: {costs.note}"
        keeps = costs.of(1)[DENOISE].at_peak.get(KEPT)
        assert bool(keeps and keeps.at(1)) == (text in ("diffsparse", "toca", "taylorseer")), stack
        if keeps:
            continue
        for stage, made in costs.of(1).items():
            there = bundled[str(stack)].of(1)[stage].at_peak
            for purpose, size in made.at_peak.items():  # but for the timesteps
                assert size.at(1) == pytest.approx(there[purpose].at(1), rel=1e-4), (stack, purpose)
