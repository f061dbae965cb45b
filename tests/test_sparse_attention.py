"""Sparse attention: masks against their definition in plain loops, kernels against each other, FLOPs
against a count by hand, and what it does inside pipelines."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ditbench.acceleration.attention import operator
from ditbench.acceleration.attention.tiles import Tiles, near, tile_for, window
from ditbench.method.stack import Stack
from ditbench.models.sublayers import call_sizes, sublayers
from ditbench.profiling.counting import count_generation
from ditbench.testing import check_method, tiny

GRIDS = [((1, 8, 8), (1, 2, 2)), ((3, 5, 7), (2, 2, 3)), ((4, 6, 9), (4, 4, 4))]


@cache
def subject(kind):
    return tiny(kind, steps=3)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def axis_tiles(grid, tile):
    """The tile of every token, by plain loops: (frame, row, column) of tiles."""
    return [
        tuple(place // length for place, length in zip(token, tile, strict=True))
        for token in itertools.product(*map(range, grid))
    ]


@pytest.mark.parametrize(("grid", "tile"), GRIDS)
def test_tiles_are_blocks_of_the_grid_and_the_last_is_shorter(grid, tile):
    tiles = Tiles(grid, tile)
    places = axis_tiles(grid, tile)
    assert tiles.counts == tuple(math.ceil(n / t) for n, t in zip(grid, tile, strict=True))
    assert tiles.places[tiles.of_tokens].tolist() == [list(place) for place in places]
    assert len(set(places)) == tiles.count


def test_tiles_are_the_published_where_enough_of_them_fit_and_divide_where_not():
    assert tile_for((21, 30, 52), 4) == (6, 8, 8)
    assert tile_for((1, 64, 64), 4) == (1, 8, 8)
    assert tile_for((1, 8, 8), 4) == (1, 2, 2)
    assert tile_for((2, 6, 6), 4) == (1, 1, 1) and tile_for((2, 6, 6), 3) == (1, 2, 2)
    assert tile_for((1, 7, 15), 4) == (1, 1, 3)


@pytest.mark.parametrize(("grid", "tile"), GRIDS)
@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 3, 2), (9, 9, 9)])
def test_a_window_has_so_many_tiles_round_the_querys_and_is_shifted_at_the_borders(
    grid, tile, lengths
):
    tiles = Tiles(grid, tile)
    mask = window(tiles, lengths)

    def seen(place, count, length):
        """The tiles of one axis: a run of `length`, moved until it lies inside."""
        run = range(place - length // 2, place - length // 2 + length)
        shift = max(0, -run[0]) if length <= count else -run[0]
        shift -= max(0, run[-1] - (count - 1)) if length <= count else 0
        return {i + shift for i in run}

    for u, v in itertools.product(range(tiles.count), repeat=2):
        expected = all(
            tiles.places[v, a] in seen(tiles.places[u, a], tiles.counts[a], lengths[a])
            for a in range(3)
        )
        assert mask[u, v] == expected
    assert (mask.sum(1) == math.prod(map(min, tiles.counts, lengths))).all()


@pytest.mark.parametrize(("grid", "tile"), GRIDS)
@pytest.mark.parametrize("tokens", [(2, 4, 4), (4, 6, 12), (0, 0, 0)])
def test_fpsattentions_rule_cuts_the_window_off_at_the_borders(grid, tile, tokens):
    tiles = Tiles(grid, tile)
    mask = near(tiles, tokens)
    for u, v in itertools.product(range(tiles.count), repeat=2):
        apart = [
            abs(int(x) - int(y)) for x, y in zip(tiles.places[u], tiles.places[v], strict=True)
        ]
        expected = all(2 * d * t <= w for d, t, w in zip(apart, tile, tokens, strict=True))
        assert mask[u, v] == expected


def inputs(grid=(3, 5, 7), tile=(2, 2, 3), text=4, heads=2, width=16, masks=(1, 1)):
    """q, k, v [2,H,M,d], a random mask that keeps the text and the own tile, and the tiles."""
    tiles = Tiles(grid, tile)
    index = torch.from_numpy(np.concatenate([np.full(text, tiles.count), tiles.of_tokens]))
    kept = torch.rand(
        *masks, tiles.count + 1, tiles.count + 1, generator=torch.Generator().manual_seed(3)
    )
    mask = (kept < 0.4) | torch.eye(tiles.count + 1, dtype=torch.bool)
    mask[..., -1, :] = mask[..., -1] = True
    q, k, v = (random(2, heads, len(index), width, seed=i) for i in range(3))
    return q, k, v, mask, index[None], index


def by_hand(q, k, v, mask, asking, keys):
    """Attention by plain loops over samples, heads and queries, and its multiply-accumulates."""
    out, macs = torch.zeros_like(q, dtype=torch.float64), 0
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        table = mask[min(b, len(mask) - 1), min(h, mask.shape[1] - 1)]
        own = asking[min(b, len(asking) - 1), i]
        kept = [j for j in range(len(keys)) if table[own, keys[j]]]
        scores = q[b, h, i].double() @ k[b, h, kept].double().T / math.sqrt(q.shape[-1])
        out[b, h, i] = scores.softmax(0) @ v[b, h, kept].double()
        macs += 2 * len(kept) * q.shape[-1]
    return out, macs


@pytest.mark.parametrize("masks", [(1, 1), (1, 2), (2, 2)])
def test_the_dense_kernel_and_its_flops_are_those_of_loops_over_tokens(masks, monkeypatch):
    given = inputs(masks=masks)
    expected, macs = by_hand(*given)
    torch.testing.assert_close(
        operator.block_attention(*given).double(), expected, rtol=1e-5, atol=1e-5
    )
    assert operator.flops_of(*given, operator.BY_VALUES) == 2 * macs
    monkeypatch.setattr(operator, "PIECE", 500)  # in pieces it is the same
    torch.testing.assert_close(
        operator.block_attention(*given).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_some_queries_of_each_sample_attend_as_they_do_among_all():
    q, k, v, mask, _, keys = inputs()
    rows = torch.stack([torch.tensor([3, 50, 7]), torch.tensor([100, 0, 8])])
    some = q.gather(2, rows[:, None, :, None].expand(-1, 2, -1, 16))
    asking = keys[rows]
    out = operator.block_attention(some, k, v, mask, asking, keys)
    expected, macs = by_hand(some, k, v, mask, asking, keys)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert operator.flops_of(some, k, v, mask, asking, keys, operator.BY_VALUES) == 2 * macs


def test_a_mask_that_keeps_everything_is_dense_attention():
    q, k, v, mask, asking, keys = inputs()
    out = operator.block_attention(q, k, v, torch.ones_like(mask), asking, keys)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_gradients_pass_and_are_those_of_masked_attention():
    q, k, v, mask, asking, keys = (
        x.requires_grad_() if x.is_floating_point() else x for x in inputs()
    )
    operator.block_attention(q, k, v, mask, asking, keys).square().sum().backward()
    allowed = operator.by_token(mask, asking, keys)
    again = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    F.scaled_dot_product_attention(*again, attn_mask=allowed).square().sum().backward()
    for mine, theirs in zip((q, k, v), again, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def wide(masks=(1, 1)):
    """More tokens than five blocks of 128, no multiple of it; few tiles are kept, all of a corner."""
    q, k, v, mask, asking, keys = inputs(grid=(6, 10, 11), tile=(1, 5, 6), text=9, masks=masks)
    size, generator = mask.shape[-1], torch.Generator().manual_seed(5)
    mask = torch.rand(*masks, size, size, generator=generator) < 0.02
    mask |= torch.eye(size, dtype=torch.bool)
    mask[..., :10, :10] = mask[..., -1, :] = mask[..., -1] = True
    return q, k, v, mask, asking, keys


@pytest.mark.parametrize("masks", [(1, 1), (2, 2)])
def test_the_blocks_given_to_flex_attention_are_those_that_hold_a_pair(masks):
    _, _, _, mask, asking, keys = wide(masks)
    order = keys.argsort(stable=True)
    tiles = keys[order]

    def keeps(b, h, i, j):
        return mask[b % masks[0], h % masks[1], tiles[i], tiles[j]]

    blocks = operator._blocks(mask, tiles, tiles, keeps)
    allowed = operator.by_token(mask, asking, keys)[:, :, order][..., order]
    count, size = math.ceil(len(tiles) / operator.BLOCK), operator.BLOCK
    some = blocks.to_dense()
    for b, h, i, j in itertools.product(
        range(masks[0]), range(masks[1]), range(count), range(count)
    ):
        part = allowed[b, h, i * size : (i + 1) * size, j * size : (j + 1) * size]
        assert bool(some[b, h, i, j]) == bool(part.any())
        whole = j in blocks.full_kv_indices[b, h, i, : blocks.full_kv_num_blocks[b, h, i]]
        assert bool(whole) == (bool(part.all()) and part.shape == (size, size))
    assert 0 < some.float().mean() < 0.9 and blocks.full_kv_num_blocks.sum() > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_uncompiled_is_masked_dense_attention(monkeypatch):
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(operator, "_compiled", lambda: flex_attention)
    given = wide((2, 2))
    out = operator.block_attention(*given, kernel="flex")
    torch.testing.assert_close(out, operator.block_attention(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_flex_attention_compiled_is_masked_dense_attention():
    given = wide((2, 2))
    with torch.inference_mode():
        out = operator.block_attention(*given, kernel="flex")
    torch.testing.assert_close(out, operator.block_attention(*given), rtol=1e-4, atol=1e-5)


def flops(text, kind):
    tried = subject(kind)
    stack = Stack.parse(text)
    with stack.attached(tried.pipeline) as attached:
        attached.start(tried.sampling.steps, 1)
        return count_generation(tried.pipeline, lambda: tried.generate(tried.sampling, [0]))


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "wan", "sd3"])
def test_flops_of_windows_are_those_of_a_count_by_hand(kind):
    """Everything but attention of image tokens is as it was; of that, what windows keep."""
    tried = subject(kind)
    text = "tile_window(window=3, first=0.34, tile=(1, 1, 2))"
    calls = []
    hook = tried.pipeline.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(call_sizes(m, args, kwargs)), with_kwargs=True
    )
    whole, sparse = flops("none", kind), flops(text, kind)
    hook.remove()
    _, grid, text_tokens = calls[0]
    tiles = Tiles(grid, (1, 1, 2))
    by_tile = window(tiles, (3, 3, 3))
    sizes = np.bincount(tiles.of_tokens)
    image = int(sizes @ by_tile @ sizes)
    tokens = math.prod(grid)
    saved = 0
    for part in sublayers(tried.pipeline.transformer):
        if part.spec.keys in ("own", "both"):
            width = part._linear(part.spec.rows[0]).out_features
            saved += 2 * (tokens**2 - image) * width
    # of three steps the first is dense
    passes = whole.passes * 2 // 3
    assert whole.attention_macs - sparse.attention_macs == saved * passes
    assert whole.linear_macs == sparse.linear_macs and whole.conv_macs == sparse.conv_macs
    assert (text_tokens > 0) == (kind != "dit")


@pytest.mark.parametrize("kind", ["pixart", "flux", "wan"])
def test_a_window_of_all_tiles_is_off_and_a_mask_of_all_is_the_model_itself(kind):
    tried = subject(kind)
    plain = tried.generate(tried.sampling, [0])
    texts = "tile_window(window=0)", "tile_window(window=64)", "tile_window(first=1.0)"
    wide_open = "fpsattention(quantised=False, early_window=2.0, late_window=2.0)"
    for text in (*texts, "top_tiles(first=1.0)", "lazy_queries(first=1.0)", wide_open):
        with Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(3, 1)
            assert torch.equal(tried.generate(tried.sampling, [0]), plain)
            assert not any(n for name, n in attached.counters().items() if "sparse" in name)
    for text in ("top_tiles(first=0, mass=1.0, least=1.0)", "lazy_queries(lazy=0.0, mass=1.0)"):
        with Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(3, 1)
            full = tried.generate(tried.sampling, [0])
            assert any(n for name, n in attached.counters().items() if "sparse" in name)
        torch.testing.assert_close(full, plain, rtol=1e-3, atol=1e-4)


METHODS = [
    "tile_window(first=0)",
    "top_tiles(first=0, mass=0.5)",
    "lazy_queries(first=0)",
    "fpsattention(early=0.5)",
]


@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("kind", ["pixart", "flux", "wan"])
@pytest.mark.parametrize(
    ("high", "wide", "guidance", "steps"), [(32, 80, 3.0, 2), (112, 48, 1.0, 3)]
)
def test_other_grids_guidance_and_few_steps(text, kind, high, wide, guidance, steps):
    """Non-square, odd, and prime numbers of tokens; four samples are four of one."""
    tried = subject(kind)
    sampling = replace(tried.sampling, guidance=guidance, steps=steps, height=high, width=wide)
    with Stack.parse(text).attached(tried.pipeline) as attached:
        attached.start(steps, 4)
        four = tried.generate(sampling, [0, 1, 2, 0])
        attached.start(steps, 1)
        one = tried.generate(sampling, [1])
    assert torch.isfinite(four).all()
    torch.testing.assert_close(four[1:2], one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["pixart", "flux", "wan"])
def test_rows_of_a_token_cache_attend_under_the_mask_of_their_tiles(kind):
    """A token cache that asks for all rows one by one gets what a whole run gives."""
    tried = subject(kind)
    parts = [p for p in sublayers(tried.pipeline.transformer) if p.spec.keys in ("own", "both")]
    compared = []

    def route_of(part):
        def route(run, hidden):
            whole = run()
            rows = torch.arange(hidden.shape[1] - 1, -1, -2).expand(len(hidden), -1)
            some = run(rows)
            image, own = (x[0] if part.spec.pair else x for x in (some, whole))
            compared.append((image, own[:, rows[0]]))
            return whole

        return route

    text = "tile_window(window=2, first=0)"
    with Stack.parse(text).attached(tried.pipeline) as attached:
        for part in parts:
            part.reroute(route_of(part), attached.attachments["tile_window"].patch)
        attached.start(3, 1)
        tried.generate(tried.sampling, [0])
    assert len(compared) >= 3 * len(parts)
    for some, whole in compared:
        torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-5)


def test_what_looks_at_attention_is_refused_beside_sparse_attention():
    problems = Stack.parse("toca+tile_window").problems("flux")
    assert problems == [
        "tile_window claims attention-operator, but toca ranks tokens by how much each of them is "
        "attended to; choose another selector, such as selector='change'"
    ]
    assert not Stack.parse("toca(selector='change')+tile_window").problems("flux")
    assert "reuses the attention inside FLUX" in Stack.parse("pab+tile_window").problems("flux")[0]


@pytest.mark.parametrize(
    "text", ["diffsparse", "toca(selector='change')", "duca(selector='change')", "zipr1", "frequency_tokens"]
)  # fmt: skip
def test_what_asks_for_some_rows_is_refused_beside_what_keeps_all(text):
    name = text.partition("(")[0]
    problems = Stack.parse(f"{text}+lazy_queries").problems("flux")
    why = f"{name} claims token-rows, but lazy_queries keeps what attention gives for all tokens"
    assert why in problems


@pytest.mark.parametrize(
    "text", ["fora(interval=2)+tile_window(first=0)", "fora(interval=2)+lazy_queries"]
)
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_a_cache_above_keeps_the_contract(text, kind):
    assert not [f"{c.name}: {c.note}" for c in check_method(text, subject(kind)) if not c.passed]
