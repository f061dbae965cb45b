"""Token caches: what is kept, what is refreshed, and by which ranking; blocks rerouted whole; the
rules of ToCa and DuCa."""

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from ditbench.acceleration.caching import attention_map, schedule, selectors
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.caching.token_cache import TokenCache, _with_bonus
from ditbench.acceleration.caching.token_settings import DUCA, SELECTORS, TOCA, TOCA_DDPM250
from ditbench.method import METHODS, Attachment, find
from ditbench.method.generation import Now
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack
from ditbench.models.sublayers import sublayers
from ditbench.models.token_rows import SingleRun, put, take
from ditbench.simulation.device import NAME, simulated
from ditbench.testing import KINDS, check_method, tiny


class Part:
    """A sub-layer that adds one to what it is given."""

    index, block, kind, stream, norm = 0, 0, "mlp", "image", None

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


RULES = replace(TOCA["dit"], soft=0.0, bonus=0.0)


def cache_of(selector, passes=1, **settings):
    now = Now(num_steps=4, samples=1, grid=(1, 2, 2), passes=passes)
    at = Attachment(None, now, ExitStack())
    part = Part()
    at.sublayers = [part]
    return TokenCache(at, selector, replace(RULES, **settings)), part


def ranked(cache, part, x, before=None):
    """The order of `x` after a whole computation of `before` (None: of x)."""
    before = x if before is None else before
    cache.compute(part, part.run(before), before)
    return cache.order(part, x)


def test_refresh_recomputes_the_tokens_that_moved_most_and_keeps_the_rest():
    cache, part = cache_of("change")
    before = torch.zeros(1, 4, 3)
    cache.compute(part, part.run(before), before)
    moved = before.clone()
    moved[0, 2], moved[0, 1] = 5.0, 1.0
    out = cache.refresh(part, part.run(moved), moved, 1)
    assert out[0, 2].tolist() == [6.0] * 3 and (out[0, [0, 1, 3]] == 1).all()
    # token 2 has not moved since, so token 1 is next
    out = cache.refresh(part, part.run(moved), moved, 1)
    assert out[0, 1].tolist() == [2.0] * 3
    assert cache.at.counters == {"mlp_tokens_recomputed": 6, "mlp_tokens_reused": 6}


def test_no_rows_runs_nothing_and_all_rows_runs_densely():
    cache, part = cache_of("change")
    x = torch.randn(2, 4, 3)
    first = cache.compute(part, part.run(x), x)
    assert torch.equal(cache.refresh(part, part.run(x * 2), x * 2, 0), first)
    assert torch.equal(cache.refresh(part, part.run(x * 2), x * 2, 4), x * 2 + 1)
    assert part.calls == [None, None]


def test_tokens_that_wait_longest_come_first_when_waiting_counts():
    cache, part = cache_of("norm", soft=10.0)
    x = torch.tensor([[[4.0], [3.0], [2.0], [1.0]]])
    cache.compute(part, part.run(x), x)
    for _ in range(3):
        cache.refresh(part, part.run(x), x, 1)
    assert [rows[0][0] for rows in part.calls[1:]] == [0, 1, 2]


@pytest.mark.parametrize(("shared", "first"), [(True, [2, 2]), (False, [0, 2])])
def test_passes_of_a_guided_batch_share_a_ranking_where_the_familys_rules_say_so(shared, first):
    cache, part = cache_of("change", passes=2, shared=shared)
    x = torch.tensor([[[5.0], [0.0], [4.0]], [[0.0], [4.0], [4.5]]])  # one sample, two passes
    assert ranked(cache, part, x, torch.zeros_like(x))[:, 0].tolist() == first


@pytest.mark.parametrize("selector", ["norm", "change"])
def test_samples_of_a_batch_choose_their_own_tokens(selector):
    cache, part = cache_of(selector)
    x = torch.tensor([[[5.0], [0.0]], [[0.0], [4.0]]])
    assert ranked(cache, part, x, torch.zeros_like(x))[:, 0].tolist() == [0, 1]


def test_a_shuffle_is_another_order_every_step_and_the_same_for_every_sample():
    cache, part = cache_of("shuffle")
    x = torch.zeros(3, 50, 2)
    first = ranked(cache, part, x)
    cache.at.now.step = 1
    assert not torch.equal(first, cache.order(part, x)) and torch.equal(first[0], first[2])


@pytest.mark.parametrize("kind", ["pixart", "wan"])
def test_a_shuffle_is_drawn_in_the_first_generation_and_freed_with_each(kind, monkeypatch):
    subject, draws = tiny(kind, steps=4), []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: draws.append(k["generator"].initial_seed()) or rand(*a, **k))  # fmt: skip
    with Stack.parse("duca(selector='shuffle')").attached(subject.pipeline) as attached:
        made = []
        for _ in range(2):
            attached.start(4, 2)
            made.append(subject.generate(subject.sampling, [0, 1]))
            assert not list(attached.method_tensors())
    assert torch.equal(*made)
    # for both guidance passes at once, by step and sub-layer
    assert len(draws) == len(set(draws)) > 0
    assert {seed // 1_000_003 for seed in draws} <= set(range(1, 4))


def test_a_later_generation_brings_the_shuffles_to_the_device_in_one_copy():
    with simulated() as device, torch.no_grad():
        cache, part = cache_of("shuffle")
        x, other = (torch.empty(2, n, 3, device=NAME, dtype=torch.bfloat16) for n in (4, 8))
        copies = []
        for _ in range(2):
            before = device.work.kernels.copy()
            for step in range(3):
                cache.at.now.step = step
                cache.selector.score(part, x, x)
                cache.selector.score(part, other, other)
            on_device = {t.untyped_storage()._cdata for t in cache.selector.orders.values()}
            copies.append(len(on_device))
            assert all(t.dtype == torch.float32 for t in cache.selector.orders.values())
            assert device.work.kernels.total() == before.total() and not device.work.copies
            cache.at.release()
            assert not cache.selector.orders
    assert copies == [6, 2]  # one for each length


class Attending(Part):
    """A sub-layer whose tokens attend to each other."""

    kind, text_first = "self", False

    def run(self, hidden):
        def run(rows=None):
            q = hidden if rows is None else hidden.gather(1, rows[..., None].expand(-1, -1, 64))
            q, k = q.unflatten(2, (2, 32)).transpose(1, 2), hidden.unflatten(2, (2, 32))
            return functional.scaled_dot_product_attention(
                q, k.transpose(1, 2), k.transpose(1, 2)
            ).flatten(2)

        return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("selector", ["attention", "change", "norm", "shuffle", "similarity"])
def test_tokens_are_ranked_in_float32_whatever_the_dtype_of_the_model(selector, dtype):
    """Ranked in bfloat16, 1024 tokens that have waited for three steps have a dozen scores, and
    ties decide which are computed."""
    g = torch.Generator().manual_seed(0)
    hidden, before = (torch.randn(1, 1024, 64, generator=g).to(dtype) for _ in range(2))
    scores, orders = [], []
    for kind in (torch.float32, dtype):
        cache, part = cache_of(selector, soft=0.25)
        if selector == "attention":
            part = Attending()
            cache.at.now.grid = (1, 32, 32)
        x = hidden.to(kind)
        cache.compute(part, part.run(before.to(kind)), before.to(kind))
        for _ in range(3):
            cache.reuse(part)
        cached = cache.kept[cache.selector.key(part)].view(1, 1024, 64)
        score = cache.selector.score(part, x, cached)
        assert score.dtype == torch.float32 == cache._times((0, 0), x).dtype
        scores.append((score + 3 * cache.reuse_weight).unique().numel())
        orders.append(set(cache.order(part, x)[0, :512].tolist()))
    whole, half = scores
    assert half > 0.95 * whole > 0.9 * 1024
    # products of attention are the model's own, and so is the output that is compared
    rounded = {"attention": 0.9, "similarity": 0.97}.get(selector, 1)
    assert len(orders[0] & orders[1]) >= rounded * 512


MINE = '''
from ditbench.acceleration.caching.selectors import Selector, selector
from ditbench.method import Stage, method


@selector("first_tokens")
class FirstTokens(Selector):
    """The first tokens of the picture."""

    def score(self, sublayer, hidden, kept):
        import torch

        return -torch.arange(hidden.shape[1]).float().expand(len(hidden), -1)


@method("names_a_selector", family="test", stage=Stage.SCHEDULE, claims={"scheduler"})
class Named:
    """A plug-in declares a method, and may declare a selector beside it."""

    def adapt(self, sampling):
        return sampling
'''


def test_a_plugin_adds_a_selector_which_token_caches_take_by_name(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(ValueError, match="toca: no selector 'first_token'; there are attention"):
        Stack.parse("toca(selector='first_token')")
    load_plugin(tmp_path / "mine.py")
    try:
        subject = tiny("pixart")
        with pytest.raises(ValueError, match="did you mean first_tokens"):
            Stack.parse("toca(selector='first_token')")
        stack = Stack.parse("toca(selector='first_tokens', interval=2)")
        assert not [c for c in check_method(str(stack), subject) if not c.passed]
        assert stack.methods[0].inputs() == [tmp_path / "mine.py"]  # its text is in the cell's key
        with pytest.raises(ValueError, match="is already there"):
            selectors.selector("attention")(selectors.Change)
    finally:
        SELECTORS.pop("first_tokens")
        METHODS.pop("names_a_selector")


# The authors' rankings, written once more from arXiv:2410.05317's code, on attention maps drawn at
# random.


def authors_bonus(score, window, bonus):
    """The best of every window of a square picture gets `bonus` times itself, window by window."""
    side, out = round(len(score) ** 0.5), list(score)
    for top in range(0, side, window):
        for left in range(0, side, window):
            places = [(top + i) * side + left + j for i in range(window) for j in range(window)]
            best = max(places, key=lambda p: score[p])
            out[best] += bonus * score[best]
    return out


def authors_dit(maps, age, n):
    """Every row of the batch alone: column sums of the mean map over heads, of unit length;
    waiting; windows of two."""
    rows = []
    for row, waited in zip(maps, age, strict=True):  # [H,N,N], [N]
        received = row.mean(0).sum(0)
        rows.append(
            authors_bonus((received / received.norm() + 0.25 * waited / n).tolist(), 2, 0.6)
        )
    return rows


def authors_pixart(maps, age, n):
    """Once for both rows of a pair: the entropy over both prompts' tokens of half of either map;
    waiting; windows of four."""
    pairs, half = [], len(maps) // 2
    for i in range(half):
        blank = torch.zeros_like(maps[i].mean(0))
        packed = [
            torch.cat([maps[i].mean(0), blank], 1),
            torch.cat([blank, maps[half + i].mean(0)], 1),
        ]
        mean = 0.5 * packed[0] + 0.5 * packed[1]  # [N,2M]
        entropy = 1 - (mean * (mean + 1e-7).log()).sum(-1)
        pairs.append(authors_bonus((entropy / entropy.norm() + 0.25 * age[i] / n).tolist(), 4, 0.4))
    return pairs * 2


@pytest.mark.parametrize("num", [4, 20, 40])
@pytest.mark.parametrize(
    ("family", "kind", "authors"),
    [("dit", "self", authors_dit), ("pixart", "cross", authors_pixart)],
)
def test_the_chosen_tokens_are_the_authors(family, kind, authors, num):
    """Two samples of 64 tokens under guidance: the same chosen sets when tokens have waited, sets
    of the pair included."""
    torch.manual_seed(num)
    at = cache_of("attention")[0].at
    at.now = Now(num_steps=9, samples=2, grid=(1, 8, 8), passes=2, text_tokens=12)
    cache = TokenCache(at, "attention", TOCA[family])
    q, k = 3 * torch.randn(4, 4, 64, 8), 3 * torch.randn(4, 4, 64 if kind == "self" else 12, 8)
    seen = SimpleNamespace(index=0, block=0, kind=kind, stream="image")
    mlp = SimpleNamespace(index=1, block=0, kind="mlp", stream="image")
    x = torch.zeros(4, 64, 8)
    cache.compute(
        seen, lambda: functional.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2), x
    )
    cache.compute(mlp, lambda: x, x)
    maps, age = (q @ k.mT * 8**-0.5).softmax(-1), torch.zeros(4, 64)
    for _ in range(3):
        scores = torch.tensor(authors(maps, age, 3 if family == "dit" else TOCA[family].interval))
        theirs = scores.argsort(1, descending=True)[:, :num]
        assert (
            cache.order(mlp, x)[:, :num].sort(1).values.tolist() == theirs.sort(1).values.tolist()
        )
        cache.refresh(mlp, lambda rows: x[:, : rows.shape[1]], x, num)
        age = (age + 1).scatter(1, theirs, 0.0)
    assert (family == "pixart") is bool(
        (theirs[:2].sort(1).values == theirs[2:].sort(1).values).all()
    )


@pytest.mark.parametrize(
    ("selector", "first"),
    [("norm", [1, 0, 2]), ("similarity", [2, 0, 1])],
    ids=["norm", "similarity"],
)
def test_norm_and_similarity_rank_the_residual_stream_as_the_authors_do(selector, first):
    """Lengths 2, 3 and 1; cosines with the kept outputs 0, 1 and -1; the input itself says
    something else."""
    part = Part()
    part.norm = torch.nn.Identity()
    with ExitStack() as undo:
        at = Attachment(None, Now(num_steps=4, samples=1, grid=(1, 1, 3)), undo)
        at.sublayers = [part]
        cache = TokenCache(at, selector, RULES)
        hidden = torch.tensor([[[9.0, 0.0], [0.0, 5.0], [0.0, 7.0]]])
        cache.compute(part, lambda: torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]), hidden)
        part.norm(torch.tensor([[[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]]]))
        assert cache.order(part, hidden)[0].tolist() == first
    assert "forward" not in vars(part.norm)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_every_sublayer_is_called_right_before_it_with_its_tokens(kind):
    """What enters a norm is not normalised: only PixArt's cross-attention is given the stream
    itself."""
    subject, entered, routed = tiny(kind, steps=1 if kind != "pixart" else 2), [], {}
    parts = sublayers(subject.pipeline.transformer)
    assert [s.kind for s in parts if s.norm is None] == (
        ["cross", "cross"] if kind == "pixart" else []
    )

    def attach(pipeline, at):
        for sublayer in at.sublayers:
            if sublayer.norm is not None:

                def route(run, hidden, sublayer=sublayer):
                    index, stream = entered[-1]
                    routed[sublayer.index] = (
                        index,
                        stream.shape == hidden.shape,
                        torch.equal(stream, hidden),
                    )
                    return run()

                at.reroute(sublayer, route)
                see = lambda _, args, i=sublayer.index: entered.append((i, args[0]))  # noqa: E731
                at.undo(sublayer.norm.register_forward_pre_hook(see).remove)

    traits = SimpleNamespace(claims=frozenset(), stage=40, conflicts=frozenset(), needs=frozenset())
    method = SimpleNamespace(name="probe", attach=attach, adapt=lambda s: s, traits=traits)
    with Stack((method,)).attached(subject.pipeline):
        subject.generate(subject.sampling, [0])
    assert routed == {s.index: (s.index, True, False) for s in parts if s.norm is not None}


def test_an_attention_that_was_not_seen_is_an_error_and_no_other_ranking():
    cache, part = cache_of("attention")
    x = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="the attention of block 0 was not seen"):
        ranked(cache, part, x)


def test_the_best_of_every_window_gets_more():
    # 4 x 4
    score = torch.tensor(
        [[9.0, 1.0, 2.0, 3.0, 1.0, 4.0, 2.0, 2.0, 5.0, 5.5, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0]]
    )
    raised = _with_bonus(score, (1, 4, 4), 2, 1.0)[0] - score[0]
    assert raised.nonzero().flatten().tolist() == [0, 3, 9, 15] and raised[9] == 5.5


@pytest.mark.parametrize("window", [2, 3])
def test_windows_that_do_not_divide_the_picture_are_noted(window, monkeypatch):
    """Wan at 480p has 30 rows of tokens, and its windows are of four."""
    monkeypatch.setitem(TOCA, "pixart", replace(TOCA["pixart"], window=window))
    tried = tiny("pixart")
    with torch.no_grad(), Stack.parse("toca").attached(tried.pipeline) as attached:
        tried.generate(tried.sampling, [0])
        assert attached.now.grid == (1, 4, 6)
        assert attached.notes()["toca.windows"] == {2: 6, 3: 0}[window]


def test_text_tokens_get_no_bonus():
    score = torch.arange(6.0).view(1, 6)
    assert torch.equal(_with_bonus(score, (1, 2, 2), 2, 1.0)[0, :2], score[0, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_watching_attention_changes_nothing_and_what_is_received_adds_up_to_one(
    kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(schedule, "looked_at", lambda keep, blocks: np.ones(keep.shape, bool))
    subject = tiny(kind, steps=3)
    plain = subject.generate(subject.sampling, [0])
    names = tuple(s.name for s in sublayers(subject.pipeline.transformer))
    Schedule(sublayers=names, chosen=np.full((3, len(names)), 4)).write(tmp_path / "dense.json")
    stack = Stack.parse(
        f"diffsparse(schedule={str(tmp_path / 'dense.json')!r}, selector='attention')"
    )
    with stack.attached(subject.pipeline) as attached:
        stores = [
            reset.__self__
            for reset in attached.attachments["diffsparse"].starts
            if isinstance(reset.__self__, dict)
        ]
        received = {}  # as it is after a call: nothing is kept after the last step
        hook = subject.pipeline.transformer.register_forward_hook(
            lambda *_: received.update(
                {k: v for store in stores for k, v in store.items() if k[0] == "received"}
            )
        )
        attached.start(3, 1)
        assert torch.equal(subject.generate(subject.sampling, [0]), plain)
        hook.remove()
    assert len({block for _, block, _ in received}) == len({name.split(".")[0] for name in names})
    assert all(torch.allclose(v.sum(1), torch.ones(len(v)), atol=1e-4) for v in received.values())


@pytest.mark.parametrize("masked", ["no", "keys", "rows", "heads", "all"])
@pytest.mark.parametrize("limit", [1, 2 * 3 * 8 * 5, 2 * 3 * 8 * 7])
def test_an_attention_map_in_pieces_gives_the_signals_of_the_whole(monkeypatch, masked, limit):
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 7, 4, generator=g), torch.randn(2, 3, 8, 4, generator=g)
    masks = {
        "no": None,
        "keys": torch.randn(2, 1, 1, 8, generator=g),
        "rows": torch.rand(2, 3, 7, 8, generator=g) < 0.9,
        "heads": torch.rand(3, 7, 8, generator=g) < 0.9,
        "all": torch.randn(7, 8, generator=g),
    }
    mask = masks[masked]
    whole = (q @ k.transpose(-1, -2)) * 4**-0.5
    whole = whole if mask is None else whole + attention_map.additive(mask, whole)
    p = whole.softmax(-1).mean(1)
    expected = p.mean(1), -(p * p.clamp(min=1e-12).log()).sum(-1)
    monkeypatch.setattr(attention_map, "MAP", limit)
    monkeypatch.setattr(attention_map, "QUERIES", 2)
    signals = attention_map.received_by(q, k, mask), attention_map.entropy_of(q, k, mask)
    compare = torch.equal if limit >= 2 * 3 * 8 * 7 else torch.allclose  # whole: to the last bit
    assert all(compare(a, b) for a, b in zip(signals, expected, strict=True))
    for size in (1, 2, 7):  # queries
        scaled = q * 4**-0.5
        pieces = [attention_map.in_pieces(scaled, k, mask, size)]
        pieces += [attention_map.in_pieces_of_heads(scaled, k, mask, size, n) for n in (1, 2, 3)]
        for some in map(list, pieces):
            assert {len(piece[0]) for piece in some} <= {size, 7 % size}
            assert torch.allclose(torch.cat(some, 1), p)


@pytest.mark.parametrize("limit", [1, 1 << 20])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_head_of_keys_is_what_all_queries_attend_to(monkeypatch, batch, limit):
    q, k = torch.randn(2, 4, 7, 6), torch.randn(batch, 1, 8, 6)
    expected = ((q @ k.transpose(-1, -2)) * 6**-0.5).softmax(-1).mean(1)
    monkeypatch.setattr(attention_map, "MAP", limit)
    monkeypatch.setattr(attention_map, "QUERIES", 2)
    assert torch.allclose(torch.cat([*attention_map.maps_of(q, k, None)], 1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["rows", "across", "every other"])
def test_rows_are_put_where_they_belong(order, dtype):
    """Whatever the order in memory: of a tensor that stands across, and of a part of one."""
    whole = torch.randn(2, 12, 5).to(dtype)
    make = {
        "rows": lambda: whole[:, :6].clone(),
        "across": lambda: whole[:, :6].transpose(1, 2).contiguous().transpose(1, 2),
        "every other": lambda: whole.clone()[:, ::2],
    }[order]
    x, value = make(), torch.randn(2, 3, 5).to(dtype)
    rows = torch.tensor([[4, 0, 2], [1, 5, 3]])
    want = x.clone()
    for sample in range(2):
        for i, row in enumerate(rows[sample]):
            want[sample, row] = value[sample, i]
    before = x.clone()
    assert torch.equal(put(x, rows, value), want) and torch.equal(x, before)
    assert torch.equal(put(x, rows, value.transpose(1, 2).contiguous().transpose(1, 2)), want)
    written = put(x, rows, value, in_place=True)
    assert torch.equal(x, want) and written.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("row", [[[6], [0]], [[0], [-1]]])
def test_a_row_that_is_not_there_is_no_row_of_another_sample(row):
    x = torch.zeros(2, 6, 4)
    for in_place in (False, True):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            put(x, torch.tensor(row), torch.ones(2, 1, 4), in_place=in_place)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        take(x, torch.tensor(row))
    assert not x.any()


def test_rows_of_another_dtype_are_refused_under_autocast_too():
    x, rows = torch.zeros(1, 3, 2, dtype=torch.bfloat16), torch.tensor([[1]])
    for in_place in (False, True):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="dtype"):
            put(x, rows, torch.ones(1, 1, 2), in_place=in_place)


def test_rows_are_found_whatever_the_default_device_and_where_there_are_none():
    x, rows, value = torch.zeros(2, 3, 2), torch.tensor([[1], [2]]), torch.ones(2, 1, 2)
    with torch.device("meta"):
        assert put(x, rows, value).sum() == 4 and take(x, rows).shape == value.shape
    assert put(x[:, :0].clone(), rows[:, :0], value[:, :0]).shape == (2, 0, 2)


def test_rows_that_are_put_have_gradients():
    x, value = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 1, 3, requires_grad=True)
    put(x, torch.tensor([[1], [3]]), value).sum().backward()
    assert torch.equal(value.grad, torch.ones(2, 1, 3))
    assert x.grad.sum(-1).tolist() == [[3, 0, 3, 3], [3, 3, 3, 0]]


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


def phases(family, interval, steps, rules=TOCA):
    return rules[family].phases(interval, steps)


def full(family, interval, steps):
    return [i for i, (first, _) in enumerate(phases(family, interval, steps)) if first == 0]


def test_full_steps_are_those_of_the_papers_code():
    assert full("pixart", 3, 20) == [0, 4, 6, 9, 12, 15, 18]
    assert [i for i, (_, others) in enumerate(phases("pixart", 3, 20)) if others == 0] == [
        0,
        6,
        9,
        12,
        15,
        18,
    ]
    assert full("flux", 4, 50) == [0, 1, *range(2, 50, 4)]
    differ = [49 - i for i, (first, others) in enumerate(phases("dit", 3, 50)) if first != others]
    assert differ == [45, 32]  # the steps at which only the first block is full


def authors_dit_types(interval, steps, block):
    """F(ull), P(artial) or S(kipped) at every step in DuCa's code for DiT, from its README's rule:
    t counts down, a full step sets the period, in the first block before the others look; a fifth
    of the steps has a period of two."""
    types, period = [], interval
    for t in reversed(range(steps)):
        place = 0 if t == steps - 1 else t % period
        if place == 0:
            sensitive = int(steps * 0.2) <= t < int(steps * 0.4)
            period = (
                2
                if sensitive
                else int(torch.round(interval / torch.tensor(1 + 0.4 - 2 * 0.4 * t / steps)))
            )
            place = t % period if block and t < steps - 1 else 0
        types.append("F" if place == 0 else "P" if place % 2 else "S")
    return "".join(types)


def types_of(family, interval, steps, block, rules=DUCA):
    letters = "FPS"
    return "".join(
        letters[0 if phase[block] == 0 else 2 - phase[block] % 2]
        for phase in phases(family, interval, steps, rules)
    )


@pytest.mark.parametrize("steps", [12, 50])
@pytest.mark.parametrize("interval", [2, 3, 4, 5])
def test_duca_skips_and_recomputes_in_the_order_of_its_code(interval, steps):
    for block in (0, 1):
        assert types_of("dit", interval, steps, block) == authors_dit_types(interval, steps, block)
    pixart = "".join(
        "F" if i % interval == 0 else "P" if i % interval % 2 else "S" for i in range(steps)
    )
    assert (
        types_of("pixart", interval, steps, 0) == types_of("pixart", interval, steps, 1) == pixart
    )


def test_duca_on_dit_skips_first_where_the_period_is_odd():
    assert types_of("dit", 3, 50, 1)[20:30] == "SPFSPFSPFS"
    assert types_of("dit", 3, 50, 0)[:20] == "FPSPFFPSPFPSPFPSPFPF"


def test_250_steps_of_ddpm_have_rules_of_their_own():
    """More tokens in front layers than at the back: ToCa-ddpm250 of arXiv:2410.05317's code."""
    for step, block in ((1, 0), (100, 13), (248, 27)):
        t, asked = 249 - step, 0.07 * (1 + 0.6 * 2.5)
        expected = asked * (1 + 0.8 - 2 * 0.8 * block / 27) * (1 + 0.4 - 2 * 0.4 * t / 250)
        assert TOCA_DDPM250.rows(0.07, step, 250, block / 27, "mlp", 256) == int(expected * 256) > 0
    assert TOCA_DDPM250.interval == 4 and TOCA["dit"].rows(0.07, 1, 250, 0, "mlp", 256) == 0
    toca, dit = find("toca"), tiny("dit").pipeline
    assert toca().rules(dit) is TOCA["dit"] and toca(sampler="ddpm250").rules(dit) is TOCA_DDPM250
    ddpm = SimpleNamespace(transformer=dit.transformer, scheduler=DDPMScheduler())
    assert toca().rules(ddpm) is TOCA_DDPM250 and toca(sampler="ddim50").rules(ddpm) is TOCA["dit"]
    assert "rules for DiT, and this is flux" in toca(sampler="ddpm250").check(tiny("flux").pipeline)


def parts_run(subject, text, monkeypatch):
    """How many rows each linear layer of the first single block computes at the fifth step."""
    block, seen, inside = subject.pipeline.transformer.single_transformer_blocks[0], {}, []
    with monkeypatch.context() as patch:
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Linear) and "norm" not in name:

                def look(hidden, name=name, forward=module.forward):
                    if inside[0].now.step == 4:
                        seen[name] = hidden.shape[1]
                    return forward(hidden)

                patch.setattr(module, "forward", look)
        with Stack.parse(text).attached(subject.pipeline) as attached:
            inside.append(attached)
            attached.start(6, 1)
            subject.generate(subject.sampling, [0])
    return seen


def test_a_single_block_of_flux_reuses_its_attention_unless_told_to_attend(monkeypatch):
    """Partial steps run the MLP and the shared projection of the fresh tokens, as
    arXiv:2410.05317's code for FLUX does."""
    subject = tiny("flux", steps=6)
    few = int(0.3 * 1.5 * 1.6 * 40)  # of 24 image and 16 text tokens
    assert parts_run(subject, "toca(ratio=0.3)", monkeypatch) == {"proj_mlp": few, "proj_out": few}
    everything = {
        "attn.to_q": few,
        "attn.to_k": 40,
        "attn.to_v": 40,
        "proj_mlp": few,
        "proj_out": few,
    }
    assert parts_run(subject, "toca(ratio=0.3, attend=True)", monkeypatch) == everything


def test_a_fresh_token_of_a_single_block_takes_its_attention_of_the_last_full_step():
    halves = []
    run = SingleRun(
        lambda rows: (halves.append(rows), torch.full((1, 4, 2), float(len(halves))))[1],
        lambda mixed, rows: mixed + 10 * len(halves),
    )
    cache, part = cache_of("shuffle")
    part.kind, cache.attend, x = "single", False, torch.zeros(1, 4, 2)
    assert (cache.compute(part, run, x) == 11).all()
    assert (cache.refresh(part, run, x, 2) == 11).all() and halves == [None]
    cache.attend = True
    fresh = cache.refresh(
        part,
        SingleRun(lambda rows: (halves.append(rows), torch.ones(1, 2, 2))[1], run.project),
        x,
        2,
    )
    assert len(halves) == 2 and sorted(fresh[0, :, 0].tolist()) == [11, 11, 21, 21]


def test_rows_are_written_into_what_the_cache_alone_holds_and_into_nothing_else():
    cache, part = cache_of("norm", soft=1.0)
    x = torch.tensor([[[4.0], [3.0], [2.0], [1.0]]])
    with torch.no_grad():
        first = cache.compute(part, part.run(x), x)
        assert cache.refresh(part, part.run(2 * x), 2 * x, 1) is first
        before = cache.state()
        values = [first.clone(), before[2][0, 0].clone()]
        second = cache.refresh(part, part.run(3 * x), 3 * x, 2)
        assert second is not first
        assert cache.refresh(part, part.run(4 * x), 4 * x, 1) is second
        assert torch.equal(first, values[0]) and torch.equal(before[2][0, 0], values[1])
        cache.restore(before)
        assert cache.refresh(part, part.run(5 * x), 5 * x, 1) is not first
        assert torch.equal(first, values[0])
    whole = cache.compute(part, part.run(x), x)  # with gradients, which need what was there
    again = cache.refresh(part, part.run(2 * x), 2 * x, 1)
    assert cache.refresh(part, part.run(2 * x), 2 * x, 1) is not again is not whole
