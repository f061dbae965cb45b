"""Several trainings of one recipe: their spread, intervals that hold it, and what reports say of
one training alone."""

import json
from html import unescape

import numpy as np
import pytest
from report_runs import edit, write_run

from ditbench import reports
from ditbench.analysis.trainings import over_trainings, recipes, without_training
from ditbench.reports.sections.findings import findings, trainings
from ditbench.statistics.estimates import Estimate

pytestmark = pytest.mark.usefixtures("undrawn")


def estimate(value, se, n=256):
    return Estimate(value=value, low=None, high=None, n=n, se=se)


def test_the_interval_over_trainings_by_hand():
    spread = over_trainings([estimate(v, 0.02) for v in (0.10, 0.16, 0.13)])
    assert (
        spread.sd == pytest.approx(0.03)
        and spread.recipe.value == pytest.approx(0.13)
        and spread.recipe.n == 3
    )
    # Student's quantiles at 2 and 255 degrees of freedom
    between, within = (
        4.302653 * 0.03 / 3**0.5,
        1.969311 * 0.02,
    )
    reach = np.hypot(between, within)
    assert (spread.recipe.low, spread.recipe.high) == (
        pytest.approx(0.13 - reach),
        pytest.approx(0.13 + reach),
    )


def test_one_training_or_one_without_an_error_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="one training says nothing"):
        over_trainings([estimate(0.1, 0.02)])
    with pytest.raises(ValueError, match="without a standard error"):
        over_trainings([estimate(0.1, 0.02), estimate(0.1, None)])


@pytest.mark.parametrize("trained", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("num", [2, 3, 5])
def test_the_interval_covers_the_recipe_where_that_of_one_training_does_not(num, trained):
    """Errors over requests of 1, half of them shared by all trainings; standard deviation between
    trainings as given."""
    rng, hits, alone, runs = np.random.default_rng(0), 0, 0, 2000
    for _ in range(runs):
        values = rng.normal() * 0.5**0.5 + rng.normal(size=num) * (0.5 + trained**2) ** 0.5
        told = over_trainings(
            [estimate(v, (rng.chisquare(255) / 255) ** 0.5) for v in values]
        ).recipe
        hits += told.low <= 0 <= told.high
        alone += abs(values[0]) <= 1.97
    assert hits / runs >= 0.94  # 95 % less two binomial standard errors
    assert trained < 3 or alone / runs < 0.6


@pytest.mark.parametrize(
    ("stack", "plain"),
    [
        ("diffsparse(training=1)", "diffsparse"),
        ("diffsparse(keep=0.57, training=12)", "diffsparse(keep=0.57)"),
        ("distill(steps=2, training=3)+diffsparse(training=3)", "distill(steps=2)+diffsparse"),
        ("diffsparse(training=1, tuned='alone')", "diffsparse(tuned='alone')"),
        ("fora(interval=3)", "fora(interval=3)"),
    ],
)
def test_a_recipe_is_a_stack_without_its_trainings(stack, plain):
    assert without_training(stack) == plain


def test_only_rows_of_one_training_throughout_belong_to_a_recipe():
    stacks = [
        "distill+diffsparse",
        "distill(training=2)+diffsparse(training=2)",
        "distill+diffsparse(training=1)",
        "fora",
    ]
    rows = [{"key": stack, "stack": stack} for stack in stacks]
    (recipe,) = recipes(rows, {stack: ["distill", "diffsparse"] for stack in stacks[:3]})
    assert recipe.stack == "distill+diffsparse" and sorted(recipe.rows) == [0, 2]


STACKS = (("none", "ok"), ("fora(interval=3)", "ok"), ("distill", "ok"), ("diffsparse", "ok"),
          ("diffsparse(training=1)", "ok"), ("diffsparse(training=2)", "ok"))  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", n=32, stacks=STACKS)
    cost = {
        "key": "k",
        "iterations": 1,
        "samples": None,
        "recipe": {},
        "below": "none",
        "seconds": 1.0,
        "notes": {},
    }

    def prepared(record):
        name = record["stack"].partition("(")[0]
        record["artifacts"] = {name: cost} if name in ("distill", "diffsparse") else {}

    edit(folder, prepared)
    return folder


def test_reports_give_the_spread_between_trainings_and_name_what_was_trained_once(run, capsys):
    report = reports.build([run])
    (section,) = report.sections
    spread, alone = findings(section, "dit-tiny")
    assert (
        spread.startswith("diffsparse over 3 trainings (0, 1, 2)")
        and "standard deviation between trainings" in spread
    )
    assert alone.startswith("one training: distill;")
    rows = [row for row in section.rows if row["stack"].startswith("diffsparse")]
    values = [row["quality"]["align.shapes_v1"]["delta"]["value"] for row in rows]
    told = {t["stack"]: t for t in trainings(section, "dit-tiny")}["diffsparse"]["metrics"][
        "align.shapes_v1"
    ]
    assert told["recipe"]["value"] == pytest.approx(np.mean(values)) and told[
        "sd"
    ] == pytest.approx(np.std(values, ddof=1))
    each = [row["quality"]["align.shapes_v1"]["delta"] for row in rows]
    assert told["recipe"]["high"] - told["recipe"]["low"] > max(e["high"] - e["low"] for e in each)
    assert (
        json.loads(json.dumps(reports.report_json(report)))["runs"][0]["models"][0]["trainings"][1][
            "stack"
        ]
        == "diffsparse"
    )
    reports.print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    for sentence in (spread, alone):
        assert sentence in shown
        assert sentence in (run / "report/tables/quality.md").read_text()
        assert sentence in unescape(report.page.read_text())


def test_interactions_over_trainings_hold_the_spread_of_stacks_and_parts(tmp_path):
    several = [f"diffsparse{knob}" for knob in ("", "(training=1)", "(training=2)")]
    stacks = [
        ("none", "ok"),
        ("int8", "ok"),
        *((s, "ok") for s in several),
        *((f"int8+{s}", "ok") for s in several),
    ]
    folder = write_run(tmp_path / "run", n=32, stacks=stacks)
    cost = {
        "key": "k",
        "iterations": 1,
        "samples": None,
        "recipe": {},
        "below": "none",
        "seconds": 1.0,
        "notes": {},
    }
    edit(
        folder,
        lambda record: record.update(
            artifacts={"diffsparse": cost} if "diffsparse" in record["stack"] else {}
        ),
    )
    (section,) = reports.build([folder]).sections
    assert len(section.stacking) == 3
    told = {t["stack"]: t["metrics"] for t in trainings(section, "dit-tiny")}
    spread = told["int8+diffsparse"]["alignment interaction"]
    values = [row["alignment"].value for row in section.stacking]
    assert spread["recipe"]["value"] == pytest.approx(np.mean(values)) and spread[
        "sd"
    ] == pytest.approx(np.std(values, ddof=1))
    assert "alignment interaction" not in told["diffsparse"]
    assert "one training" not in (folder / "report/tables/stacking.md").read_text()
