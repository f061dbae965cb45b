"""Which tiles sparse attention chooses, by place and by values, and what eight-bit attention rounds:
against plain loops."""

import itertools
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ditbench.acceleration.attention import choosing, operator
from ditbench.acceleration.attention.rounding import by_channel, by_tile
from ditbench.acceleration.attention.sparse_attention import Call, Layout
from ditbench.acceleration.attention.tiles import Tiles, radial, tile_for
from ditbench.method.stack import Stack
from ditbench.methods.fpsattention import FpsAttention
from ditbench.models.family import grid_of
from ditbench.models.sublayers import sublayers
from ditbench.profiling.counting import count_generation
from ditbench.testing import tiny


@cache
def subject(kind):
    return tiny(kind, steps=3)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flops(text, kind):
    tried = subject(kind)
    with Stack.parse(text).attached(tried.pipeline) as attached:
        attached.start(tried.sampling.steps, 1)
        return count_generation(tried.pipeline, lambda: tried.generate(tried.sampling, [0]))


def radial_by_hand(grid, block, decay, near_frames):
    """Radial Attention's mask token by token, then block by block, by plain loops."""
    frames, size = grid[0], grid[1] * grid[2]
    count = -(-frames * size // block)
    kept = np.eye(count, dtype=bool)
    for i, j in itertools.product(range(frames), repeat=2):
        d = abs(i - j)
        width = 2 ** len(f"{size:b}") / 2 ** (len(f"{d:b}") if d else 0)
        if j == 0 or d <= near_frames:
            band = size
        elif width < block and d % int(block / width):
            continue
        else:
            band = max(width * decay, block)
        rows, columns = ({n // block for n in range(f * size, (f + 1) * size)} for f in (i, j))
        for u, v in itertools.product(rows, columns):
            heights = []
            for y in range(v * block, (v + 1) * block):
                if y // size != j:
                    continue
                pairs = [
                    x
                    for x in range(u * block, (u + 1) * block)
                    if x // size == i and abs(x % size - y % size) <= band
                ]
                heights.append(len(pairs) / block)
            some = [h for h in heights if h > 0]
            kept[u, v] |= bool(some) and sum(h > 1 / 3 for h in some) / len(some) > 0.6
    return kept


@pytest.mark.parametrize(
    ("grid", "block", "decay", "near_frames"),
    [
        ((5, 4, 6), 4, 0.25, 1),
        ((4, 5, 5), 4, 0.2, 0),
        ((9, 3, 4), 8, 1.0, 1),
        ((2, 6, 6), 2, 0.2, 0),
    ],
)
def test_radials_mask_is_that_of_loops_over_tokens(grid, block, decay, near_frames):
    mask = radial(grid, block, decay, near_frames)
    assert (mask == radial_by_hand(grid, block, decay, near_frames)).all()
    assert 0.1 < mask.mean() < 1


def test_radial_at_the_size_of_wan_leaves_out_most_blocks_and_keeps_the_first_frame():
    mask = radial((21, 30, 52), 128, 0.2, 1)
    assert mask.shape == (256, 256) and mask[:, :12].all()
    assert 0.2 < mask.mean() < 0.5


def test_radial_refuses_models_of_pictures():
    assert Stack.parse("radial").refusal(subject("flux").pipeline) == (
        "radial: its mask goes by the distance of frames, and FLUX makes pictures"
    )


def layout_of(grid, tile, text):
    tiles = Tiles(grid, tile)
    index = np.concatenate([np.full(text, tiles.count), tiles.of_tokens])
    sizes = torch.from_numpy(np.bincount(index).astype(np.float32))
    of_tokens = torch.from_numpy(index)
    return Layout(tiles.of_tokens, text, True, tiles.count + bool(text), of_tokens, sizes)


def test_masses_and_the_tiles_chosen_by_them_are_those_of_loops():
    layout = layout_of((2, 5, 7), (1, 2, 3), 3)
    q, k = random(2, 2, 73, 16, seed=1), random(2, 2, 73, 16, seed=2)
    call = SimpleNamespace(q=q, k=k, queries=lambda layout: layout.of_tokens[None])
    shares = choosing.mass(call, layout)
    image, count = layout.of_tokens, layout.tiles - 1
    kept = choosing.largest(shares, choosing.needed(shares, 0.5))
    for b, h, u in itertools.product(range(2), range(2), range(count)):
        own = q[b, h, image == u].double().mean(0)
        weights = [
            int((image == v).sum()) * math.exp(own @ k[b, h, image == v].double().mean(0) / 4)
            for v in range(count)
        ]
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(shares[b, h, u].double(), expected, rtol=1e-4, atol=1e-6)
        chosen, held = set(), 0.0
        for v in expected.argsort(descending=True).tolist():
            if held >= 0.5:
                break
            chosen.add(v)
            held += float(expected[v])
        assert set(kept[b, h, u].nonzero().flatten().tolist()) == chosen
    assert choosing.with_text(kept, layout)[..., -1].all()


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_the_products_of_tile_means_are_counted(kind):
    """What choosing costs: the means of all image tiles times each other, in every head."""
    tried = subject(kind)
    whole, chosen = flops("none", kind), flops("top_tiles(first=0, mass=1.0, least=1.0)", kind)
    grid = grid_of(tried.pipeline, tried.sampling)
    tiles = Tiles(grid, tile_for(grid, 3))
    parts = [p for p in sublayers(tried.pipeline.transformer) if p.spec.keys in ("own", "both")]
    config = tried.pipeline.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    added = len(parts) * whole.passes * tiles.count**2 * width
    assert chosen.attention_macs - whole.attention_macs == added
    assert chosen.linear_macs == whole.linear_macs


def recorded(text, kind):
    """Every attention under a stack: (sub-layer, step, pass) -> q, k, v and what was returned."""
    tried, calls = subject(kind), {}
    with Stack.parse(text).attached(tried.pipeline) as attached, pytest.MonkeyPatch.context() as m:
        build = Call.__init__

        def remember(call, owner, sublayer, q, k, v):
            build(call, owner, sublayer, q, k, v)
            attend = owner._attend

            def noted(given):
                owner._attend = attend
                out = attend(given)
                now = owner.at.now
                calls[sublayer.index, now.step, now.branch] = q, k, v, out.clone()
                return out

            owner._attend = noted

        m.setattr(Call, "__init__", remember)
        attached.start(3, 1)
        tried.generate(tried.sampling, [0])
    return calls


@pytest.mark.parametrize("kind", ["pixart", "flux", "wan"])
def test_lazy_queries_keep_their_last_output_and_active_ones_attend(kind):
    """With a budget of all tiles, every row is dense attention of now or its own of the step before;
    active are the tokens of the tiles that changed most, and the text."""
    calls = recorded("lazy_queries(lazy=0.5, mass=1.0, first=0)", kind)
    tried = subject(kind)
    grid = grid_of(tried.pipeline, tried.sampling)
    tiles = torch.from_numpy(Tiles(grid, tile_for(grid, 3)).of_tokens)
    image = len(tiles)
    assert {step for _, step, _ in calls} == {0, 1, 2}
    for (index, step, branch), (q, k, v, out) in calls.items():
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if step == 0:
            assert torch.equal(out, dense)
            continue
        text = q.shape[2] - image
        before_q, _, _, before = calls[index, step - 1, branch]
        renewed = torch.isclose(out, dense, rtol=1e-4, atol=1e-5).all(-1).all(1)  # [B,M]
        reused = (out == before).all(-1).all(1)
        assert (renewed | reused).all() and renewed[:, :text].all()
        assert ((renewed & ~reused).sum(1) <= text + math.ceil(image / 2)).all()
        if step == 1:
            for b in range(len(q)):
                moved = []
                for t in range(int(tiles.max()) + 1):
                    at = text + (tiles == t).nonzero().flatten()
                    now, then = (x[b, :, at].mean(1).flatten() for x in (q, before_q))
                    moved.append(float(torch.cosine_similarity(now, then, dim=0)))
                least_alike = int(np.argmin(moved))
                assert renewed[b, text:][tiles == least_alike].all()
                assert reused[b, text:][tiles == int(np.argmax(moved))].all()


def test_the_budget_is_that_of_the_flattest_head():
    """Of two heads one looks at one tile and one at all: both get what the second needs."""
    shares = torch.tensor([[[[0.97, 0.01, 0.01, 0.01]] * 4, [[0.25] * 4] * 4]])
    need = choosing.needed(shares, 0.7)
    assert need.tolist() == [[[1] * 4, [3] * 4]]
    budget = need.float().mean(-1).ceil().long().amax(1)[:, None, None]
    assert (choosing.largest(shares, budget).sum(-1) == 3).all()


def e4m3(number):
    """The nearest number of four bits of exponent and three of mantissa, halves to even."""
    if number == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(number))), -6)
    unit = 2.0 ** (exponent - 3)
    return round(number / unit) * unit


def test_rounding_by_tile_and_by_channel_is_that_of_loops():
    tiles = Tiles((2, 3, 5), (1, 2, 2))
    index = torch.from_numpy(tiles.of_tokens)
    x = random(2, 2, 30, 4, seed=4)
    by_tiles, by_channels = by_tile(x, index[None], tiles.count), by_channel(x)
    for b, h, n, c in itertools.product(range(2), range(2), range(30), range(4)):
        for out, largest in (
            (by_tiles, x[b, h, index == index[n]].abs().max()),
            (by_channels, x[b, h, :, c].abs().max()),
        ):
            scale = float(largest) / 448
            expected = e4m3(float(x[b, h, n, c]) / scale) * scale
            assert abs(float(out[b, h, n, c]) - expected) <= 1e-6 + float(largest) * 1e-6


def test_weights_are_rounded_by_a_fixed_scale_before_they_are_divided_by_their_sum():
    q, k, v = (random(1, 1, 12, 8, seed=i) for i in range(3))
    tiles = torch.arange(12) // 3
    mask = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    mask |= torch.eye(4, dtype=torch.bool)
    out = operator.block_attention(q, k, v, mask, tiles[None], tiles, rounded=True)
    for i in range(12):
        kept = [j for j in range(12) if mask[0, 0, tiles[i], tiles[j]]]
        scores = [float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(8) for j in kept]
        weights = [math.exp(s - max(scores)) for s in scores]
        rounded = torch.tensor([e4m3(448 * w) / 448 for w in weights])
        expected = rounded @ v[0, 0, kept] / sum(weights)
        torch.testing.assert_close(out[0, 0, i], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_rounding_are_straight_through():
    x = random(1, 1, 6, 4).requires_grad_()
    by_channel(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_fpsattention_is_coarse_and_sparse_then_fine_and_dense_then_in_between():
    of = FpsAttention(early=0.3, late=0.2)
    phases = [of.phase(step, 10) for step in range(10)]
    assert phases == [(2.0, 0.5)] * 3 + [(0.5, 2.0)] * 5 + [(1.0, 0.75)] * 2
    assert [FpsAttention().phase(0, n) for n in (1, 2, 3)] == [(0.5, 2.0)] * 3


def test_the_controls_of_fpsattention_change_flops_or_numbers_alone():
    whole = flops("none", "wan")
    assert flops("fpsattention(sparse=False)", "wan").flops == whole.flops
    sparse = flops("fpsattention(quantised=False, early=0.34, late=0.34)", "wan")
    both = flops("fpsattention(early=0.34, late=0.34)", "wan")
    assert sparse.flops == both.flops < whole.flops
    assert sparse.linear_macs == whole.linear_macs


def test_unusable_settings_are_one_sentence():
    for name in ("tile_window", "top_tiles", "lazy_queries", "fpsattention"):
        with pytest.raises(
            ValueError, match=rf"{name}: a tile of \(0, 2, 2\) tokens has none in it"
        ):
            Stack.parse(f"{name}(tile=(0, 2, 2))")
    with pytest.raises(ValueError, match="no kernel 'fast'"):
        Stack.parse("radial(kernel='fast')")
