"""zipr1: shares of tokens chosen for each sample, as sub-batches over one token cache."""

import pytest
from test_rapid3 import Told

from ditbench.acceleration.policies import RATIO
from ditbench.acceleration.policies.acting import act_by_tokens
from ditbench.method.stack import Stack
from ditbench.testing import KINDS, check_method, tiny

TABLE = {0: [0, 2, 1, 4, 2], 1: [0, 0, 2, 2, 3], 2: [0, 4, 3, 2, 0]}
"""Levels by sample and step; the first step, which is whole, is not asked for."""


class Scripted:
    heads = frozenset({RATIO})

    def __init__(self, table):
        self.table, self.asked = table, []

    def levels(self, samples, step, times, latents):
        self.asked.append(step)
        return [self.table[i][step] for i in samples]


class Shared(Told):
    def __init__(self, decider, selector):
        super().__init__(decider)
        self.selector = selector

    def attach(self, pipeline, at):
        self.acts = act_by_tokens(self.selector)(pipeline, at, self.decider)


def sampled(subject, trainee, which):
    with Stack((trainee,)).attached(subject.pipeline) as attached:
        attached.start(subject.sampling.steps, len(which))
        samples = subject.generate(subject.sampling, list(which))
        return samples, trainee.acts.history, attached


@pytest.mark.parametrize("selector", ["attention", "norm", "change", "similarity"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_choose_apart_are_as_each_alone(kind, selector):
    subject = tiny(kind, steps=5)
    decider = Scripted(TABLE)
    together, history, attached = sampled(subject, Shared(decider, selector), (0, 1, 2))
    assert set(decider.asked) == {1, 2, 3, 4}
    for i in range(3):
        assert [action[2] for action in history[i]] == TABLE[i]
        alone, _, _ = sampled(subject, Shared(Scripted({0: TABLE[i]}), selector), (i,))
        gap = (together[i : i + 1].double() - alone.double()).norm() / alone.double().norm()
        assert float(gap) < 1e-4
    keep = attached.schedule()["keep"]
    assert [row[0] for row in keep] == pytest.approx(
        [1, 1.5 / 3, 1.5 / 3, 1 / 3, 1.75 / 3], abs=1e-4
    )


def test_one_share_for_all_is_diffsparses_uniform_cache(tmp_path):
    """With the same share in every sub-layer at every step but the first."""
    import numpy as np
    import torch

    from ditbench.acceleration.caching.schedule import Schedule
    from ditbench.models.sublayers import sublayers

    subject = tiny("dit", steps=4)
    names = tuple(s.name for s in sublayers(subject.pipeline.transformer))
    chosen = np.full((4, len(names)), 2)
    chosen[0] = 0  # levels from whole to none
    Schedule(sublayers=names, chosen=chosen).write(tmp_path / "half.json")
    samples = []
    for text in (
        "zipr1(decide='fixed',ratio=0.5,selector='norm')",
        f"diffsparse(schedule={str(tmp_path / 'half.json')!r},selector='norm')",
    ):
        with Stack.parse(text).attached(subject.pipeline) as attached:
            attached.start(4, 2)
            samples.append(subject.generate(subject.sampling, [0, 1]))
    assert torch.equal(*samples)


def test_off_changes_nothing_and_contradictions_are_one_sentence():
    assert not [
        c for c in check_method("zipr1(decide='fixed')", tiny("flux", steps=4))
        if not c.passed and c.name != "it engages"
    ]  # fmt: skip
    for knobs, message in (
        ("ratio=0.5", "with decide='policy' ratio has no meaning"),
        ("decide='fixed',ratio=0.4", "ratio is one of 1.0, 0.75, 0.5, 0.25, 0.0, not 0.4"),
        ("decide='fixed',price=2.0", "with decide='fixed' price has no meaning"),
    ):
        with pytest.raises(ValueError, match=message):
            Stack.parse(f"zipr1({knobs})")
