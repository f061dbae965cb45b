"""The knee: the fewest steps that keep the quality, where the verdicts are known."""

import pytest
from report_runs import edit, write_run

from ditbench import reports
from ditbench.analysis.knee import Knee, knee
from ditbench.reports.sections.findings import findings

SCORE, DISTANCE = "align.shapes_v1", "fd.shapes_v1"


def world(verdicts, own=20, status="ok"):
    """Rows and records of `none` and of fewer steps with these verdicts on both primary metrics."""
    rows, records = [], {}
    for steps, words in {own: ("", ""), **verdicts}.items():
        quality = {
            name: {"verdict": word, "primary": True}
            for name, word in zip((SCORE, DISTANCE), words, strict=True)
        }
        key = str(steps)
        rows.append(
            {
                "key": key,
                "status": status,
                "baseline": steps == own,
                "label": "",
                "quality": quality,
            }
        )
        methods = [{"name": "fewer_steps", "family": "control", "knobs": {"steps": steps}}]
        records[key] = {"methods": methods if steps < own else [], "sampling": {"steps": steps}}
    return rows, records


E, W, OPEN = "equivalent", "worse", "inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (
            {10: (E, E), 8: (E, E), 5: (W, E)},
            Knee(steps=8, own=20, below=5, lost={SCORE: W}, worse=5, worse_by=(SCORE,)),
        ),
        ({10: (E, E), 5: ("better", E)}, Knee(steps=5, own=20, below=None, lost={})),
        # what lies below a loss says nothing of the knee
        (
            {10: (E, OPEN), 8: (E, E), 5: (E, E)},
            Knee(steps=20, own=20, below=10, lost={DISTANCE: OPEN}),
        ),
        (
            {10: (E, OPEN), 8: (OPEN, W), 5: (W, W)},
            Knee(steps=20, own=20, below=10, lost={DISTANCE: OPEN}, worse=8, worse_by=(DISTANCE,)),
        ),
        ({10: (E, E), 5: (E, "")}, Knee(steps=10, own=20, below=5, lost={DISTANCE: ""})),
        ({10: (E, E)}, None),
        ({10: ("", ""), 5: ("", "")}, None),
    ],
)
def test_the_knee_is_the_fewest_steps_above_which_nothing_is_lost(verdicts, expected):
    assert knee(*world(verdicts)) == expected


def test_what_did_not_run_or_is_no_model_of_fewer_steps_has_no_part():
    assert knee(*world({10: (E, E), 5: (E, E)}, status="failed")) is None
    rows, records = world({10: (E, E), 8: (E, E), 5: (W, W)})
    records["5"]["methods"].append({"name": "fora", "family": "cache", "knobs": {}})
    assert knee(rows, records).below is None


def test_a_report_says_where_it_is(tmp_path):
    stacks = [("none", "ok"), *((f"fewer_steps(steps={k})", "ok") for k in (5, 8, 10))]
    run = write_run(tmp_path / "run", stacks=stacks)

    def stepped(r):
        r["sampling"]["steps"] = int(r["methods"][0]["knobs"].get("steps", 20))

    edit(run, stepped)
    (section,) = reports.build([run]).sections
    (sentence,) = (text for text in findings(section, "dit-tiny") if text.startswith("knee: "))
    assert "no smaller number of steps that was run keeps the quality of none's 20" in sentence
    assert "with 10: alignment" in sentence
