"""What methods decide at every step is what their authors' code decides: `decisions.json`, made by
running that, says where it is from."""

import json
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from narrow import narrow
from safetensors.numpy import save_file

from ditbench.method.stack import Stack
from ditbench.methods.teacache import PUBLISHED
from ditbench.models.table import select
from ditbench.profiling import counting
from ditbench.profiling.conventions import counted
from ditbench.testing import tiny

DECISIONS = json.loads((Path(__file__).parent / "decisions.json").read_text())
TABLES, ROUTERS, TEACACHE = (DECISIONS[name] for name in ("tables", "routers", "teacache"))


def text_of(table):
    return f"{table['method']}({', '.join(f'{name}={value}' for name, value in table['knobs'].items())})"


def named(table):
    return f"{text_of(table)}-{table['family']}-{table['num_steps']}"


@contextmanager
def attached_to(tried, text):
    """The stack attached, and which steps called the first sub-layer of which block: [{steps}, ...]
    by block."""
    with Stack.parse(text).attached(tried.pipeline) as attached, ExitStack() as undo:
        at = next(iter(attached.attachments.values()))
        called = {s.block: set() for s in at.sublayers}
        for s in at.sublayers:
            note = lambda *_, block=s.block: called[block].add(attached.now.step)  # noqa: E731
            undo.callback(s.modules[0].register_forward_pre_hook(note).remove)
        yield attached, called


def seen(table):
    """(kinds of the steps by block, {kind: shares [T] of the first and the last block}) of one
    sample of an untrained pipeline."""
    steps = table["num_steps"]
    tried = tiny(table["family"], steps=steps)
    if "scheduler" in table:
        tried.pipeline.scheduler = getattr(diffusers, table["scheduler"])()
    with attached_to(tried, text_of(table)) as (attached, called):
        attached.start(steps, 1)
        tried.generate(tried.sampling, [0])
        told = attached.schedule()
    names = [name.split(".") for name in told["sublayers"]]
    keep = np.array(told["keep"])

    def kind(step, block):
        if step not in called[block]:
            return "S"
        return (
            "F"
            if all(keep[step, i] == 1 for i, (b, _) in enumerate(names) if int(b) == block)
            else "-"
        )

    kinds = {block: "".join(kind(step, block) for step in range(steps)) for block in called}
    shares = {
        what: [keep[:, i] for i, (_, k) in enumerate(names) if k == what]
        for what in {k for _, k in names}
    }
    return kinds, {what: {"first": rows[0], "last": rows[-1]} for what, rows in shares.items()}


@pytest.mark.parametrize("table", TABLES, ids=named)
def test_steps_and_tokens_are_those_of_the_authors_code(table):
    """The two blocks of these pipelines stand for the first and the last of the authors'; P and R
    tell apart what was reused, not when."""
    kinds, shares = seen(table)
    first = table["steps"].translate(str.maketrans("PR", "--"))
    rest = table.get("steps_of_other_blocks", table["steps"]).translate(str.maketrans("PR", "--"))
    assert kinds == {block: first if block == 0 else rest for block in kinds}
    for kind, ends in table.get("chosen", {}).items():
        for end, numbers in ends.items():
            for step, number in enumerate(numbers.split()):
                if number != ".":
                    assert shares[kind][end][step] * table["tokens"][kind] == pytest.approx(
                        int(number), abs=0.01
                    ), (
                        kind,
                        end,
                        step,
                    )
    if "R" in table["steps"]:
        reused = [step for step, letter in enumerate(table["steps"]) if letter == "R"]
        assert not any(ends[end][reused].any() for ends in shares.values() for end in ends)


@pytest.mark.parametrize("table", [t for t in TABLES if "forecast" in t], ids=named)
def test_taylorseer_extrapolates_to_what_the_authors_code_does(table):
    """One MLP gives 1 / (1 + step); what the block gets of it is looked at."""
    steps, given = table["num_steps"], []
    tried = tiny(table["family"], steps=steps)
    mlp = next(
        m
        for name, m in tried.pipeline.transformer.named_modules()
        if name.endswith((".ff", ".ffn"))
    )
    now = {}

    def feature(hidden, *_args, **_kwargs):
        return torch.full_like(hidden, 1 / (1 + now["now"].step))

    mlp.forward = feature
    with attached_to(tried, text_of(table)) as (attached, _):
        now["now"] = attached.now
        hook = mlp.register_forward_hook(
            lambda _module, _inputs, out: given.append(
                (attached.now.step, attached.now.branch, out.mean().item())
            )
        )
        attached.start(steps, 1)
        tried.generate(tried.sampling, [0])
        hook.remove()
    for branch in {branch for _, branch, _ in given}:
        values = [value for _, b, value in given if b == branch]
        forecast = [
            value for value, letter in zip(values, table["steps"], strict=True) if letter == "R"
        ]
        assert forecast == pytest.approx(
            [float(x) for x in table["forecast"].split()], rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize(
    "row", TEACACHE["rows"], ids=lambda row: f"{row['family']}-{row['threshold']}"
)
def test_teacache_skips_where_the_authors_polynomial_of_the_signal_says_so(row):
    signal, polynomial = TEACACHE["signal"], tuple(TEACACHE["polynomials"][row["family"]])
    tried = tiny(row["family"], steps=len(signal))
    transformer, now = tried.pipeline.transformer, {}
    watched = (
        transformer.transformer_blocks[0].norm1
        if row["family"] == "flux"
        else transformer.condition_embedder.time_embedder
    )
    forward = watched.forward

    def scripted(*args, **kwargs):
        out = forward(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        first = torch.full_like(first, signal[now["now"].step])
        return (first, *out[1:]) if isinstance(out, tuple) else first

    watched.forward = scripted
    with attached_to(tried, f"teacache(threshold={row['threshold']}, polynomial={polynomial})") as (
        attached,
        called,
    ):
        now["now"] = attached.now
        attached.start(len(signal), 1)
        tried.generate(tried.sampling, [0])
    last = called[max(called)]
    assert "".join("F" if step in last else "S" for step in range(len(signal))) == row["steps"]


def test_teacaches_polynomials_are_the_published_ones():
    told = {name: tuple(terms) for name, terms in TEACACHE["polynomials"].items()}
    assert {
        ("flux", 3072): told["flux"],
        ("wan", 1536): told["wan"],
        ("wan", 5120): told["wan 14B"],
    } == PUBLISHED


@pytest.mark.parametrize(("router", "published"), [*zip(ROUTERS, (4.36, 1.78), strict=True)])
def test_learning_to_cache_costs_what_the_published_routers_leave(router, published):
    """TMACs of linear layers, one pass, of DiT-XL/2 at 256 with the routers of arXiv:2406.01733 for
    50 and 20 DDIM steps."""
    row = counting.count_model(select("dit-xl-2-256")[0], steps=router["num_steps"])
    # attention, MLP
    reused = [
        "".join(line[i::2] for line in router["computed"].values()).count("0") for i in (0, 1)
    ]
    left = counted(row, "linear-macs-one-pass") - 256 * 1152**2 * (4 * reused[0] + 8 * reused[1])
    assert left / 1e12 == pytest.approx(published, rel=5e-3)


def test_count_takes_a_router(tmp_path):
    (model, changes), path = narrow("dit-xl-2-256"), tmp_path / "router.safetensors"
    layers = 2 * changes["transformer.num_layers"]
    scores = np.ones((model.steps, layers), np.float32)
    scores[1, 1:] = (
        # of three steps, counted down, the last may reuse; and the second does not, whatever its
        # scores
        0.05
    )
    scores[2, 1:] = 0.05
    save_file({"scores": scores}, path)
    rows = [
        counting.count_model(model, stack=Stack.parse(text), changes=changes)
        for text in (
            "l2c",
            f"l2c(router={str(path)!r})",
            f"l2c(router={str(path)!r}, threshold=0.01)",
        )
    ]
    assert (
        rows[0]["flops"] is None and "has to be prepared" in rows[0]["note"] and not rows[1]["note"]
    )
    assert rows[1]["work"]["keep"] == [[1.0] * layers] * 2 + [[1.0] + [0.0] * (layers - 1)]
    assert rows[1]["flops"] < rows[2]["flops"] and rows[1]["macs_attention"] * 3 * layers == rows[
        2
    ]["macs_attention"] * (2 * layers + 2)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            {"scores": np.zeros((3, 5), np.float32)},
            r"has scores \[3, 5\], and the model has 4 sub-layers",
        ),
        ({"other": np.zeros((3, 4), np.float32)}, r"holds no scores of l2c \(KeyError\)"),
        (None, r"holds no scores of l2c \(FileNotFoundError\)"),
    ],
)
def test_a_router_that_does_not_fit_is_refused_in_a_sentence(tensors, told, tmp_path):
    path = tmp_path / "router.safetensors"
    if tensors:
        save_file(tensors, path)
    assert re.search(
        told, Stack.parse(f"l2c(router={str(path)!r})").refusal(tiny("dit", steps=3).pipeline)
    )
