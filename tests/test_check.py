"""The second judge: it scores only, nothing that trains can reach it, and reports say whether it
agrees with the first."""

from html import unescape

import numpy as np
import pytest
import torch
from report_runs import write_run
from test_house import graph, room_of

from ditbench import reports
from ditbench.analysis.judges import agreement, disagreement
from ditbench.records.scores import Scores, read_file, write_file
from ditbench.reports.sections.findings import findings, judges
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import agreement as shares_right
from ditbench.shapes.judge import load_judge
from ditbench.shapes.second_judge import load_check, weights_path
from ditbench.zoo.train_second_judge import disturbed

SCORING = {
    "ditbench.metrics.samples",
    "ditbench.metrics.shapes_reference",
    "ditbench.zoo.train_second_judge",
}
"""All that may import the second judge."""
ROOMS = ("acceleration", "method", "methods", "models", "profiling")
"""Rooms with all that trains, calibrates or matches."""


def test_only_scoring_imports_the_second_judge():
    importers = {
        name for name, targets in graph().items() if "ditbench.shapes.second_judge" in targets
    }
    assert importers == SCORING


def test_nothing_that_trains_calibrates_or_matches_reaches_the_second_judge():
    edges = graph()
    roots = {name for name in edges if room_of(name) in ROOMS}
    reached, waiting = set(), list(roots)
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += edges[name]
    assert "ditbench.shapes.judge" in reached  # the walk does find the first one
    assert not reached & (
        SCORING | {"ditbench.shapes.second_judge", "ditbench.metrics.second_judge"}
    )


def test_the_judges_have_no_kind_of_hidden_layer_in_common_but_convolutions_of_other_shapes():
    for world in ("scene", "video"):
        first, second = load_judge(world), load_check(world)
        kernels = [
            {tuple(p.shape) for p in judge.parameters() if p.dim() == 4}
            for judge in (first, second)
        ]
        assert kernels[0] and kernels[1] and not kernels[0] & kernels[1]
        norms = [
            {type(m) for m in judge.modules() if "Norm" in type(m).__name__}
            for judge in (first, second)
        ]
        assert norms[0] and norms[1] and not norms[0] & norms[1]
        assert weights_path(world).stat().st_size < 1_000_000


@pytest.mark.parametrize("world", shapes.WORLDS)
def test_the_second_judge_reads_every_attribute_of_held_out_renders(world):
    truth = shapes.draw(world, 512, split="test", seed=31)
    seen = load_check(world).read(shapes.render(truth, world, split="test", seed=31))
    there = truth.shape >= 0
    assert ((seen.shape >= 0) == there).double().mean() >= 0.98
    for name in ("shape", "colour", "size"):
        assert (getattr(seen, name) == getattr(truth, name))[there].double().mean() >= 0.98, name
    for name in ("background", "texture") + (("motion",) if world == "video" else ()):
        assert (getattr(seen, name) == getattr(truth, name)).double().mean() >= 0.98, name


def test_the_features_of_both_judges_are_not_each_others():
    """Held-out renders, a linear map fitted on half of them: one embedding does not hold the
    other."""
    scenes = shapes.draw("scene", 512, split="test", seed=33)
    pixels = shapes.render(scenes, "scene", split="test", seed=33)
    with torch.inference_mode():
        first, second = (
            j.features(pixels).double().numpy() for j in (load_judge("scene"), load_check("scene"))
        )
    a = np.c_[first, np.ones(512)]
    fit = np.linalg.lstsq(a[:256], second[:256], rcond=None)[0]
    left = ((second[256:] - a[256:] @ fit) ** 2).sum() / (
        (second[256:] - second[256:].mean(0)) ** 2
    ).sum()
    assert left > 0.05


@pytest.mark.parametrize("world", ["scene", "video"])
def test_disturbed_pictures_keep_size_and_range_and_what_they_show_follows_from_the_step(world):
    pixels = shapes.render(
        shapes.draw(world, 4, split="check", seed=0), world, split="check", seed=0
    )
    once, again, other = (disturbed(pixels, step) for step in (3, 3, 4))
    assert once.shape == pixels.shape and once.min() >= 0 and once.max() <= 1
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert (once - pixels).abs().mean() < 0.15


def scored(first, second):
    arrays = {
        "align.shapes_v1": np.asarray(first),
        "align.shapes_check_v1": np.asarray(second),
        "group": np.arange(len(first)),
    }
    return Scores(samples_sha256="", arrays=arrays, reasons={})


def test_the_disagreement_is_the_paired_difference_of_both_changes():
    rng = np.random.default_rng(0)
    base, mine = rng.random((2, 40)), rng.random((2, 40))
    told = disagreement(scored(*mine), scored(*base))
    each = (mine[1] - base[1]) - (mine[0] - base[0])
    assert (
        told.value == pytest.approx(each.mean(), abs=1e-6)
        and told.low <= each.mean() <= told.high
        and told.n == 40
    )
    assert disagreement(scored(*mine), None) is None
    unscored = Scores(samples_sha256="", arrays={"group": np.arange(40)}, reasons={})
    assert disagreement(scored(*mine), unscored) is disagreement(unscored, scored(*base)) is None


def test_verdicts_are_confirmed_shared_or_contradicted():
    def row(stack, verdict, first, second, p):
        entries = {
            "align.shapes_v1": {"verdict": verdict, "delta": {"value": first}},
            "align.shapes_check_v1": {"verdict": "", "delta": {"value": second}, "p": p},
        }
        return {"stack": stack, "quality": entries}

    told = agreement([
        row("a", "worse", -0.1, -0.2, 0.001), row("b", "worse", -0.1, -0.01, 0.6),
        row("c", "worse", -0.1, 0.2, 0.001),
        row("d", "better", 0.1, -0.01, 0.7), row("e", "inconclusive", -0.1, 0.2, 0.001),
        row("f", "equivalent", 0.0, 0.2, 0.01),
    ])  # fmt: skip
    assert (told.confirmed, told.same_sign) == ([("a", "align")], [("b", "align")])
    assert (told.contradicted, told.other_sign, told.num) == ([("c", "align")], [("d", "align")], 4)


@pytest.fixture
def run(tmp_path):
    """A run whose second judge sees twice the first one's change."""
    folder = write_run(
        tmp_path / "run", n=64, stacks=(("none", "ok"), ("fora(interval=3)", "ok"), ("int8", "ok"))
    )
    none = read_file(folder / "scores/dit-tiny--none.safetensors").arrays["align.shapes_v1"]
    for path in (folder / "scores").glob("*.safetensors"):
        scores = read_file(path)
        seen = 2 * scores.arrays["align.shapes_v1"] - none
        write_file(
            path, scores.having("align.shapes_check_v1", "", "", {"align.shapes_check_v1": seen})
        )
    return folder


def test_every_report_says_whether_the_second_judge_agrees_and_by_how_much(run, capsys):
    report = reports.build([run])
    (section,) = report.sections
    told = judges(section, "dit-tiny")
    for row in section.rows[1:]:
        first = row["quality"]["align.shapes_v1"]["delta"]["value"]
        assert told["alignment_minus_first"][row["stack"]]["value"] == pytest.approx(first)
    assert told["mean_prepared"] is None and told["mean_others"] < 0
    verdicts = {row["stack"]: row["quality"]["align.shapes_v1"]["verdict"] for row in section.rows}
    confirmed = {
        (stack, "align") for stack, verdict in verdicts.items() if verdict in ("better", "worse")
    }
    assert {tuple(pair) for pair in told["verdicts"]["confirmed"]} == confirmed and (
        "fora(interval=3)",
        "align",
    ) in confirmed
    (sentence,) = findings(section, "dit-tiny")
    assert sentence.startswith("second judge, through which nothing is trained: of ")
    assert f"confirms {len(confirmed)} (" in sentence and "contradicts 0" in sentence
    assert reports.report_json(report)["runs"][0]["models"][0]["judges"] == told
    reports.print_report(report)
    assert sentence in " ".join(capsys.readouterr().out.split())
    table = (run / "report/tables/quality.md").read_text()
    assert sentence in table and "alignment minus none, second judge minus first" in table
    assert sentence in unescape(report.page.read_text())


def test_a_run_the_second_judge_has_not_scored_says_nothing_of_it(tmp_path):
    report = reports.build(
        [write_run(tmp_path / "run", n=8, stacks=(("none", "ok"), ("int8", "ok")))]
    )
    assert judges(report.sections[0], "dit-tiny") is None and not findings(
        report.sections[0], "dit-tiny"
    )


def test_where_the_first_judge_tells_nothing_there_is_nothing_to_confirm(tmp_path):
    folder = write_run(tmp_path / "run", n=8, stacks=(("none", "ok"), ("int8", "ok")))
    none = read_file(folder / "scores/dit-tiny--none.safetensors").arrays
    for path in (folder / "scores").glob("*.safetensors"):
        scores = read_file(path).having(
            "align.shapes_v1", "", "", {"align.shapes_v1": none["align.shapes_v1"]}
        )
        scores = scores.having(
            "align.shapes_check_v1", "", "", {"align.shapes_check_v1": none["align.shapes_v1"]}
        )
        features = {"feature.shapes_v1": none["feature.shapes_v1"]}
        for metric in ("fd", "mmd", "precision", "recall"):
            scores = scores.having(f"{metric}.shapes_v1", "", "", features)
        write_file(path, scores)
    (sentence,) = findings(reports.build([folder]).sections[0], "dit-tiny")
    assert "there is no verdict better or worse that it could confirm; its change" in sentence
    assert "+0.000 on average for the others" in sentence


@pytest.mark.parametrize("resolution", [128, 256])
def test_both_judges_read_pictures_of_more_pixels_as_well(resolution):
    truth = shapes.draw("scene", 32, split="test", seed=35)
    pixels = shapes.render(truth, "scene", split="test", seed=35, resolution=resolution)
    assert pixels.shape == (32, 3, resolution, resolution)
    same = shapes.render(truth, "scene", split="test", seed=35)
    for judge in (load_judge("scene"), load_check("scene")):
        shares = shares_right(judge.read(pixels), truth, "scene")
        assert min(share.mean().item() for share in shares.values()) > 0.95
        nearest = torch.cdist(judge.features(pixels), judge.features(same)).argmin(1)
        assert torch.equal(nearest, torch.arange(32))  # the same scene, by its features too
