"""The anatomy finds every sub-layer, and rerouting them changes nothing unless the route does."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ditbench.method import Attachment, Now
from ditbench.models.family import family_of
from ditbench.models.sublayers import put, sublayers, take
from ditbench.testing import KINDS, tiny

TOKENS = {"dit": 16, "pixart": 24, "flux": 24, "wan": 48, "sd3": 24}
TEXT = {"dit": 0, "pixart": 16, "flux": 16, "wan": 16, "sd3": 32}


@cache
def subject(kind):
    return tiny(kind, steps=2)


@cache
def transformer_call(kind):
    """The transformer of a tiny pipeline, and the arguments of its first call for a batch of
    two."""
    calls = []
    transformer = subject(kind).pipeline.transformer
    hook = transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    subject(kind).generate(subject(kind).sampling, [0, 1])
    hook.remove()
    return transformer, *calls[0]


@torch.no_grad()
def run(kind, route):
    """The transformer's output with every sub-layer going through `route(sublayer)`."""
    transformer, args, kwargs = transformer_call(kind)
    with ExitStack() as undo:
        at = Attachment(subject(kind).pipeline, Now(), undo)
        for sublayer in at.sublayers:
            at.reroute(sublayer, route(sublayer))
        return transformer(*args, **kwargs)[0]


def plain(kind):
    transformer, args, kwargs = transformer_call(kind)
    with torch.no_grad():
        return transformer(*args, **kwargs)[0]


def some_rows(hidden, share, seed=0):
    """Different rows for each sample, in no order: [B,K]."""
    g = torch.Generator().manual_seed(seed)
    count = max(1, int(share * hidden.shape[1]))
    return torch.stack(
        [torch.randperm(hidden.shape[1], generator=g)[:count] for _ in range(len(hidden))]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_running_every_sublayer_through_a_route_is_bit_identical(kind):
    tried, (pipeline, sampling) = subject(kind), (subject(kind).pipeline, subject(kind).sampling)
    before, calls = tried.generate(sampling, [0, 1]), []
    with ExitStack() as undo:
        at = Attachment(pipeline, Now(), undo)
        for sublayer in at.sublayers:
            at.reroute(sublayer, lambda run, hidden, i=sublayer.index: (calls.append(i), run())[1])
        routed = tried.generate(sampling, [0, 1])
    assert torch.equal(before, routed)
    passes = sampling.steps * (2 if kind == "wan" else 1)
    # each once a pass, in the order of the list
    assert calls == list(range(len(at.sublayers))) * passes
    assert torch.equal(before, tried.generate(sampling, [0, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_sublayer_matters_to_the_output(kind):
    before = plain(kind)

    def halve(out):
        return tuple(0.5 * o for o in out) if isinstance(out, tuple) else 0.5 * out

    for chosen in sublayers(transformer_call(kind)[0]):
        changed = run(
            kind,
            lambda s, chosen=chosen: (
                lambda run, _: halve(run()) if s.index == chosen.index else run()
            ),
        )
        assert not torch.equal(before, changed), chosen.name


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_in_any_order_give_the_dense_output(kind):
    def route(_sublayer):
        def shuffled(run, hidden):
            rows = some_rows(hidden, 1.0)
            out = run(rows)
            if isinstance(out, tuple):
                return put(torch.full_like(out[0], torch.nan), rows, out[0]), out[1]
            return put(torch.full_like(out, torch.nan), rows, out)

        return shuffled

    torch.testing.assert_close(run(kind, route), plain(kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_subset_of_rows_equals_those_rows_of_the_dense_output(kind, share):
    seen = []

    def route(sublayer):
        def compare(run, hidden):
            dense, rows = run(), some_rows(hidden, share, seed=sublayer.index)
            part = run(rows)
            if sublayer.kind == "joint":
                torch.testing.assert_close(part[1], dense[1], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(part[0], take(dense[0], rows), rtol=1e-4, atol=1e-5)
            else:
                torch.testing.assert_close(part, take(dense, rows), rtol=1e-4, atol=1e-5)
            seen.append(sublayer.index)
            return dense

        return compare

    assert torch.equal(run(kind, route), plain(kind))
    assert len(seen) == len(sublayers(transformer_call(kind)[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_what_a_flop_counter_counts(kind):
    def counted(call):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        ops = {
            op.__name__.split(".")[0]: flops
            for op, flops in counter.get_flop_counts()["Global"].items()
        }
        assert ops.keys() <= {"mm", "addmm", "bmm", "baddbmm"}, ops
        return ops.get("mm", 0) + ops.get("addmm", 0), ops.get("bmm", 0) + ops.get("baddbmm", 0)

    def route(sublayer):
        def compare(run, hidden):
            rows = some_rows(hidden, 0.4)
            for kept, call in ((None, run), (rows.shape[1], lambda: run(rows))):
                macs = sublayer.macs(TOKENS[kind], kept, TEXT[kind])
                flops = counted(call)
                if (kind, sublayer.kind) == ("sd3", "joint"):
                    # linear layers on slices of text and image run as batched products
                    assert sum(flops) == 2 * len(hidden) * macs.total
                    continue
                assert flops == (2 * len(hidden) * macs.linear, 2 * len(hidden) * macs.attention), (
                    sublayer.name,
                    kept,
                )
            return run()

        return compare

    run(kind, route)


def test_macs_of_nothing_are_nothing_and_of_too_much_an_error():
    first = sublayers(subject("pixart").pipeline.transformer)[0]
    assert first.macs(24, 0, 16).total == 0
    assert first.macs(24, None, 16) == first.macs(24, 24, 16)
    with pytest.raises(ValueError, match=r"0\.self has 24 rows, so 25 cannot be kept"):
        first.macs(24, 25, 16)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dit", ["0.self", "0.mlp", "1.self", "1.mlp"]),
        ("pixart", ["0.self", "0.cross", "0.mlp", "1.self", "1.cross", "1.mlp"]),
        ("wan", ["0.self", "0.cross", "0.mlp", "1.self", "1.cross", "1.mlp"]),
        (
            "flux",
            [
                "0.joint",
                "0.mlp",
                "0.context_mlp",
                "1.joint",
                "1.mlp",
                "1.context_mlp",
                "2.single",
                "3.single",
            ],
        ),
    ],
)
def test_sublayers_are_listed_in_the_order_they_run(kind, expected):
    found = sublayers(subject(kind).pipeline.transformer)
    assert [s.name for s in found] == expected
    assert [s.index for s in found] == list(range(len(expected)))
    assert family_of(subject(kind).pipeline.transformer).name == kind
    text = {s.kind: s.stream for s in found if s.stream != "image"}
    assert text == (
        {"joint": "both", "context_mlp": "text", "single": "both"} if kind == "flux" else {}
    )


def test_the_last_block_of_sd3_has_no_mlp_of_the_text_and_sd35_a_second_attention():
    names = [s.name for s in sublayers(subject("sd3").pipeline.transformer)]
    assert names == ["0.joint", "0.mlp", "0.context_mlp", "1.joint", "1.mlp"]
    double = SD3Transformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=8, caption_projection_dim=16,
        joint_attention_dim=16, pooled_projection_dim=16, sample_size=8, in_channels=4,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    parts = sublayers(double)
    assert [s.kind for s in parts[:4]] == ["joint", "self", "mlp", "context_mlp"]
    x, text, rows = torch.randn(2, 6, 16), torch.randn(2, 3, 16), torch.tensor([[4, 0], [1, 5]])
    with torch.no_grad():
        for part, context in ((parts[0], text), (parts[1], None), (parts[4], text)):
            attn = part.module
            dense = attn(hidden_states=x, encoder_hidden_states=context)
            some = part.run_rows(attn, attn.forward, rows, x, encoder_hidden_states=context)
            dense, some = (out if context is not None else (out, None) for out in (dense, some))
            torch.testing.assert_close(some[0], take(dense[0], rows), rtol=1e-4, atol=1e-5)
            if context is not None:
                torch.testing.assert_close(some[1], dense[1], rtol=1e-4, atol=1e-5)


def test_the_hidden_state_of_a_route_has_the_rows_of_its_stream():
    shapes = {}
    run(
        "flux",
        lambda s: lambda run, hidden: (shapes.update({s.kind: tuple(hidden.shape)}), run())[1],
    )
    assert shapes == {
        "joint": (2, 24, 128),
        "mlp": (2, 24, 128),
        "context_mlp": (2, 16, 128),
        "single": (2, 40, 128),
    }


def test_a_stranger_is_refused_by_name():
    with pytest.raises(
        ValueError, match="Linear has no anatomy; there is one for DiTTransformer2DModel, Flux"
    ):
        sublayers(torch.nn.Linear(1, 1))


def test_rows_of_masked_joint_attention_are_refused():
    transformer, args, kwargs = transformer_call("flux")
    kwargs = kwargs | {
        "joint_attention_kwargs": {"attention_mask": torch.ones(2, 1, 1, 40, dtype=torch.bool)}
    }
    with ExitStack() as undo, torch.no_grad():
        at = Attachment(subject("flux").pipeline, Now(), undo)
        at.reroute(at.sublayers[0], lambda run, hidden: run(some_rows(hidden, 0.5)))
        with pytest.raises(ValueError, match="cannot be computed; run all of them"):
            transformer(*args, **kwargs)


def among(hidden, seed=1):
    """All tokens in another order for each sample: the tokens, and their places."""
    order = some_rows(hidden, 1.0, seed)
    return take(hidden, order), order


def whole_and_other(kind, ask):
    """Outputs of every attention that takes a context: of all rows with its own tokens, and of
    `ask(run, hidden)`."""
    pairs = []

    def route(sublayer):
        def routed(run, hidden):
            out = run()
            if sublayer.takes_context:
                pairs.append((sublayer, out, ask(run, hidden)))
            return out

        return routed

    run(kind, route)
    kinds = {"flux": {"joint", "single"}, "sd3": {"joint"}}.get(kind, {"self"})
    assert {sublayer.kind for sublayer, _, _ in pairs} == kinds
    return pairs


def assert_alike(a, b):
    for x, y in zip(*((v if isinstance(v, tuple) else (v,)) for v in (a, b)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_of_the_same_tokens_in_another_order_change_nothing(kind):
    def ask(run, hidden):
        tokens, places = among(hidden)
        return run(context=tokens, places=places)

    for _, whole, other in whole_and_other(kind, ask):
        assert_alike(other, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_other_keys_go_together(kind):
    def ask(run, hidden):
        tokens, places = among(hidden)
        rows = some_rows(hidden, 0.4)
        return rows, run(rows, context=tokens, places=places)

    for _, whole, (rows, some) in whole_and_other(kind, ask):
        if isinstance(whole, tuple):
            assert_alike(some, (take(whole[0], rows), whole[1]))
        else:
            assert_alike(some, take(whole, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_without_some_of_the_keys_the_outputs_are_others_and_as_many(kind):
    def ask(run, hidden):
        count = hidden.shape[1]
        places = torch.arange(count - 3).expand(len(hidden), -1)
        return run(context=hidden[:, : count - 3], places=places)

    for _, whole, other in whole_and_other(kind, ask):
        first, second = (v[0] if isinstance(v, tuple) else v for v in (whole, other))
        assert first.shape == second.shape and not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_round_another_asks_it_for_rows(kind):
    """What the inner route computes for all rows, an outer one gets of some; halves of single blocks
    too."""
    transformer, args, kwargs = transformer_call(kind)
    checked = []
    with ExitStack() as undo, torch.no_grad():
        at = Attachment(subject(kind).pipeline, Now(), undo)

        def merged(sublayer):
            def route(run, hidden):
                pairs = hidden.unflatten(1, (-1, 2))
                places = torch.arange(0, hidden.shape[1], 2).expand(len(hidden), -1)
                if not sublayer.takes_context:
                    return run()
                return run(context=pairs.mean(2), places=places)

            return route

        def asks(sublayer):
            def route(run, hidden):
                whole, rows = run(), some_rows(hidden, 0.5)
                image, some = (v[0] if isinstance(v, tuple) else v for v in (whole, run(rows)))
                torch.testing.assert_close(some, take(image, rows), rtol=1e-4, atol=1e-5)
                if sublayer.kind == "single":
                    halves = run.project(run.attention(rows), rows)
                    torch.testing.assert_close(halves, some, rtol=1e-4, atol=1e-5)
                checked.append(sublayer.kind)
                return whole

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, merged(sublayer))
        inner = transformer(*args, **kwargs)[0]
        for sublayer in at.sublayers:
            at.reroute(sublayer, asks(sublayer))
        assert_alike(transformer(*args, **kwargs)[0], inner)
    assert len(checked) == len(at.sublayers)
    assert not torch.allclose(inner, plain(kind), rtol=1e-3)


def test_a_context_that_cannot_be_used_is_refused_in_a_sentence():
    def refused(kind, name, sentence, **asked):
        def route(sublayer):
            def routed(run, hidden):
                if sublayer.kind == name:
                    given = {"context": hidden[:, :4]} | asked
                    with pytest.raises(ValueError, match=sentence):
                        run(**given)
                return run()

            return routed

        run(kind, route)

    refused("pixart", "cross", "cross cannot attend to other tokens than its own")
    refused("dit", "mlp", "mlp cannot attend to other tokens than its own")
    refused("flux", "context_mlp", "cannot attend to other tokens")
    for kind, name in (("wan", "self"), ("flux", "joint"), ("flux", "single")):
        refused(kind, name, "goes by position: say with places")
    short = torch.zeros(2, 3, dtype=torch.int64)
    refused("dit", "self", r"places \[2, 3\] are not one for each token .* \[4, 4,", places=short)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_contexts_of_another_batch_and_empty_ones_are_refused(kind):
    asked = (
        (lambda h, at: {"context": h[:1], "places": at[:1]}, "a context for 1 of a batch of"),
        (lambda h, at: {"rows": at[:1]}, "rows for 1 of a batch of"),
        (lambda h, at: {"context": h[:, :0], "places": at[:, :0]}, "has nothing to attend to"),
    )

    def route(sublayer):
        def routed(run, hidden):
            at = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
            for given, said in asked if sublayer.takes_context else ():
                with pytest.raises(ValueError, match=said):
                    run(**given(hidden, at))
            return run()

        return routed

    assert torch.equal(run(kind, route), plain(kind))


def test_two_routes_that_choose_rows_or_a_context_of_one_sublayer_are_refused():
    transformer, args, kwargs = transformer_call("dit")
    for what, ask in (
        ("rows", lambda run, hidden: run(some_rows(hidden, 0.5))),
        ("a context", lambda run, hidden: run(context=hidden)),
    ):
        with ExitStack() as undo, torch.no_grad():
            at = Attachment(subject("dit").pipeline, Now(), undo)
            for _ in range(2):
                at.reroute(at.sublayers[0], ask)
            with pytest.raises(ValueError, match=f"two methods choose {what} of one sub-layer"):
                transformer(*args, **kwargs)


def test_take_and_put_are_loops_over_samples():
    x, rows = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 2]])
    expected = torch.stack([x[b][rows[b]] for b in range(2)])
    assert torch.equal(take(x, rows), expected)
    filled, before = put(x, rows, torch.zeros(2, 2, 3)), x.clone()
    assert torch.equal(x, before)
    for b in range(2):
        for n in range(5):
            assert torch.equal(filled[b, n], torch.zeros(3) if n in rows[b] else x[b, n])
