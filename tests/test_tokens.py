"""Token caches: what is kept, what is refreshed, and by which ranking; blocks rerouted whole; the rules of ToCa and DuCa."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ditbench import schedule
from ditbench.anatomy import sublayers
from ditbench.method import Attachment
from ditbench.now import Now
from ditbench.rules import TOCA
from ditbench.schedule import Schedule
from ditbench.stack import Stack
from ditbench.testing import KINDS, tiny
from ditbench.tokens import TokenCache, _with_bonus


class Part:
    """A sub-layer that adds one to what it is given."""

    index, block, kind, stream = 0, 0, "mlp", "image"

    def __init__(self):
        self.calls = []

    def run(self, hidden):
        def run(rows=None):
            self.calls.append(None if rows is None else rows.tolist())
            return (
                hidden + 1
                if rows is None
                else hidden.gather(1, rows.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])) + 1
            )

        return run


def cache_of(selector, **settings):
    at = Attachment.__new__(Attachment)
    at.now, at.counters, at.engaged, at.starts, at.held, at.shares = (
        Now(num_steps=4, samples=1, grid=(1, 2, 2)),
        {},
        False,
        [],
        [],
        {},
    )
    return TokenCache(at, selector, **settings), Part()


def test_refresh_recomputes_the_tokens_that_moved_most_and_keeps_the_rest():
    cache, part = cache_of("change")
    before = torch.zeros(1, 4, 3)
    cache.compute(part, part.run(before), before)
    moved = before.clone()
    moved[0, 2], moved[0, 1] = 5.0, 1.0
    out = cache.refresh(part, part.run(moved), moved, 1)
    assert out[0, 2].tolist() == [6.0] * 3 and (out[0, [0, 1, 3]] == 1).all()
    out = cache.refresh(part, part.run(moved), moved, 1)  # token 2 has not moved since, so token 1 is next
    assert out[0, 1].tolist() == [2.0] * 3
    assert cache.at.counters == {"mlp_tokens_recomputed": 6, "mlp_tokens_reused": 6}


def test_no_rows_runs_nothing_and_all_rows_runs_densely():
    cache, part = cache_of("norm")
    x = torch.randn(2, 4, 3)
    first = cache.compute(part, part.run(x), x)
    assert torch.equal(cache.refresh(part, part.run(x * 2), x * 2, 0), first)
    assert torch.equal(cache.refresh(part, part.run(x * 2), x * 2, 4), x * 2 + 1)
    assert part.calls == [None, None]


def test_tokens_that_wait_longest_come_first_when_waiting_counts():
    cache, part = cache_of("norm", reuse_weight=10.0)
    x = torch.tensor([[[4.0], [3.0], [2.0], [1.0]]])
    cache.compute(part, part.run(x), x)
    for _ in range(3):
        cache.refresh(part, part.run(x), x, 1)
    assert [rows[0][0] for rows in part.calls[1:]] == [0, 1, 2]


def test_passes_of_a_guided_batch_choose_the_same_tokens():
    cache, part = cache_of("norm")
    cache.at.now.passes = 2
    x = torch.tensor([[[5.0], [0.0], [1.0]], [[0.0], [4.0], [4.5]]])  # one sample, two passes
    assert cache.rank(part, x).argmax(1).tolist() == [2, 2]


def test_samples_of_a_batch_choose_their_own_tokens():
    cache, part = cache_of("norm")
    x = torch.tensor([[[5.0], [0.0]], [[0.0], [4.0]]])
    assert cache.rank(part, x).argmax(1).tolist() == [0, 1]


def test_random_is_another_order_every_step_and_the_same_for_every_sample():
    cache, part = cache_of("random")
    x = torch.zeros(3, 50, 2)
    first = cache.rank(part, x)
    cache.at.now.step = 1
    assert not torch.equal(first, cache.rank(part, x)) and torch.equal(first[0], first[2])


def test_the_best_of_every_window_gets_more():
    score = torch.tensor([[9.0, 1.0, 2.0, 3.0, 1.0, 4.0, 2.0, 2.0, 5.0, 5.5, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0]])  # 4 x 4
    raised = _with_bonus(score, (1, 4, 4), 2, 1.0)[0] - score[0]
    assert raised.nonzero().flatten().tolist() == [0, 3, 9, 15] and raised[9] == 5.5


def test_text_tokens_get_no_bonus():
    score = torch.arange(6.0).view(1, 6)
    assert torch.equal(_with_bonus(score, (1, 2, 2), 2, 1.0)[0, :2], score[0, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_watching_attention_changes_nothing_and_what_is_received_adds_up_to_one(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "looked_at", lambda keep, blocks: np.ones(keep.shape, bool))
    subject = tiny(kind, steps=3)
    plain = subject.generate(subject.sampling, [0])
    names = tuple(s.name for s in sublayers(subject.pipeline.transformer))
    Schedule(sublayers=names, chosen=np.full((3, len(names)), 4)).write(tmp_path / "dense.json")
    stack = Stack.parse(f"diffsparse(schedule={str(tmp_path / 'dense.json')!r}, selector='attention')")
    with stack.attached(subject.pipeline) as attached:
        stores = [
            reset.__self__ for reset in attached.attachments["diffsparse"].starts if isinstance(reset.__self__, dict)
        ]
        attached.start(3, 1)
        assert torch.equal(subject.generate(subject.sampling, [0]), plain)
    received = {key: value for store in stores for key, value in store.items() if key[0] == "received"}
    assert len({block for _, block, _ in received}) == len({name.split(".")[0] for name in names})
    assert all(torch.allclose(v.sum(1), torch.ones(len(v)), atol=1e-4) for v in received.values())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_whole_are_bit_identical_and_skipped_blocks_are_skipped(kind):
    subject = tiny(kind, steps=2)
    plain = subject.generate(subject.sampling, [0])
    for skip in (False, True):
        ran = []

        def attach(pipeline, at, skip=skip, ran=ran):
            for block in at.blocks:

                def route(run, streams, i=block.index):
                    ran.append(i)
                    return streams if skip and i else run(streams)

                at.reroute(block, route)

        method = SimpleNamespace(
            name="probe", attach=attach, adapt=lambda s: s,
            traits=SimpleNamespace(claims=frozenset(), stage=40, conflicts=frozenset(), needs=frozenset()),
        )  # fmt: skip
        with Stack((method,)).attached(subject.pipeline) as attached:
            assert len(attached.attachments["probe"].blocks) > 1
            assert torch.equal(subject.generate(subject.sampling, [0]), plain) is not skip
        assert ran
    assert torch.equal(subject.generate(subject.sampling, [0]), plain)


def full(family, interval, steps):
    return [i for i, (first, _) in enumerate(TOCA[family].full_steps(interval, steps)) if first]


def test_full_steps_are_those_of_the_papers_code():
    assert full("pixart", 3, 20) == [0, 4, 6, 9, 12, 15, 18]
    assert full("flux", 4, 50) == [0, 1, *range(2, 50, 4)]
    differ = [49 - i for i, (first, others) in enumerate(TOCA["dit"].full_steps(3, 50)) if first != others]
    assert differ == [45, 32]  # the steps at which only the first block is full
