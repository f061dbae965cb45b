"""The card of what was trained: facts from the manifest, a picture where there is a log."""

import json

import numpy as np
import pytest
from report_runs import key_of, write_run

from ditbench import reports
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.method.artifact import BUNDLED, Artifact, trained_for
from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models.table import models, select
from ditbench.models.workload import with_workload
from ditbench.reports.figures.training_curve import copy_training, draw_training, write_card
from ditbench.reports.sections.section import read_sections

MANIFEST = {
    "method": "m", "model": "dit-tiny", "steps": 4, "below": "distill", "stack": "distill+m",
    "seconds": 12.5,
    "recipe": {"version": 3}, "notes": {"held_out": 0.25},
}  # fmt: skip


def test_a_card_says_what_it_is_for_and_what_it_cost_and_draws_the_log(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert draw_training(tmp_path) == []
    card = write_card(tmp_path).read_text()
    assert (
        "For 4 steps under `distill`." in card and "prepare 'distill+m' --models dit-tiny" in card
    )
    assert (
        "| seconds | 12.5 |" in card
        and "| held_out | 0.25 |" in card
        and "training.png" not in card
    )
    (tmp_path / "log.csv").write_text(
        "stage,iteration,loss,held_out\n1,0,0.5,0.4\n1,1,0.4,\n2,2,,0.3\n"
    )
    write_card(tmp_path)
    alone = (tmp_path / "training.png").stat().st_size
    vectors = (tmp_path / "training.svg").read_text()
    assert "<!-- iteration -->" in vectors and "<!-- loss, no unit (log scale) -->" in vectors
    Schedule(sublayers=("0.self", "0.mlp"), chosen=np.array([[4, 4], [0, 2]])).write(
        tmp_path / "schedule.json"
    )
    card = write_card(tmp_path).read_text()
    assert "training.png" in card and (tmp_path / "training.png").stat().st_size > alone
    assert "<!-- sub-layer, by kind and depth -->" in (tmp_path / "training.svg").read_text()
    assert (
        "<!-- share of tokens computed (dark: reused) -->"
        in (tmp_path / "training.svg").read_text()
    )
    (tmp_path / "forecast.safetensors").touch()  # what is skipped is forecast
    write_card(tmp_path)
    drawn = (tmp_path / "training.svg").read_text()
    assert "<!-- share of tokens computed (dark: forecast) -->" in drawn
    assert drawn.count("<!-- next stage -->") == 1  # in the legend, however many there are
    # a measured table has no curve
    (tmp_path / "log.csv").write_text("stage,iteration,loss,held_out\n")
    (tmp_path / "training.png").unlink()
    assert (
        "training.png" in write_card(tmp_path).read_text() and (tmp_path / "training.png").is_file()
    )


def test_the_legend_of_a_training_lies_on_no_point(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    lines = [f"{1 + (i > 20)},{i},{0.9 - 0.001 * i},{0.8}" for i in range(60)]
    (tmp_path / "log.csv").write_text("\n".join(["stage,iteration,loss,held_out", *lines]))
    figures = []

    def kept(figure, folder, stem):
        figures.append(figure)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditbench.reports.figures.training_curve.finish", kept)
        draw_training(tmp_path)
    (axis,) = figures[0].axes
    figures[0].canvas.draw()
    assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1 - 1
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["loss", "held out", "next stage"]


def test_a_policys_log_is_its_reward_and_its_compute_and_a_grids_is_one_over_the_other(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    rewards = "".join(f"{i},{1 + 0.01 * i},{10 - 0.1 * i}\n" for i in range(50))
    (tmp_path / "log.csv").write_text("iteration,reward,compute\n" + rewards)
    draw_training(tmp_path)
    curves = (tmp_path / "training.svg").read_text()
    assert all(
        f"<!-- {text} -->" in curves
        for text in ("iteration", "mean reward, no unit", "computed steps of a sample")
    )
    (tmp_path / "log.csv").write_text("iteration,stride,reward,compute\n0,1,1.2,20\n1,2,1.3,10\n")
    draw_training(tmp_path)
    points = (tmp_path / "training.svg").read_text()
    assert "<!-- iteration -->" not in points and "<!-- computed steps of a sample -->" in points


def test_everything_that_is_shipped_has_its_card():
    shipped = [p.parent for p in BUNDLED.glob("*/*/manifest.json")]
    assert len(shipped) >= 8
    for folder in shipped:
        assert (folder / "README.md").is_file(), folder
        assert (folder / "training.png").is_file() == (folder / "log.csv").is_file(), folder


@pytest.mark.parametrize("model", select("tiny"), ids=lambda model: model.name)
@pytest.mark.parametrize(
    "text",
    [
        "diffsparse", "distill", "distill+diffsparse", "distill+diffsparse(tuned='alone')", "int8+teacache(saved=0.43)",
        "int8+teacache(saved=0.43, tuned='alone')",
    ],
)  # fmt: skip
def test_the_stacks_that_users_type_first_have_what_they_need_in_the_repository(text, model):
    needs = needs_of(model, Stack.parse(text), "bundled")
    assert needs and all((BUNDLED / need.folder / "manifest.json").is_file() for need in needs)


def test_every_shipped_folder_is_named_after_what_is_needed_today():
    for path in BUNDLED.glob("*/*/manifest.json"):
        told = json.loads(path.read_text())
        words = [*told["flags"], "--steps", ""]  # the first counts
        steps = words[words.index("--steps") + 1]
        model = with_workload(models()[told["model"]], {"steps": steps})
        topmost = needs_of(model, Stack.parse(told["stack"]), "bundled")[-1]
        # a student below has a folder of its own
        assert topmost.key == path.parent.name, told["stack"]


def test_a_record_leads_to_the_very_files_its_cell_was_prepared_with_and_to_no_others():
    shipped = [p.parent for p in BUNDLED.glob("*/*/manifest.json")]
    for folder in shipped:
        (artifact,) = [Artifact(folder, json.loads((folder / "manifest.json").read_text()))]
        method = folder.parent.name
        assert trained_for({"artifacts": {method: artifact.cost()}})[method].folder == folder
        assert trained_for({"artifacts": {method: artifact.cost() | {"sha256": "other"}}}) == {}
    assert trained_for({}) == {}


def test_the_page_shows_what_its_rows_were_trained_with_once_and_nothing_of_other_weights(tmp_path):
    manifests = {p: json.loads(p.read_text()) for p in BUNDLED.glob("diffsparse/*/manifest.json")}
    (shipped,) = [
        p
        for p, m in manifests.items()
        if (m["model"], m["stack"], m["steps"]) == ("pixart-tiny", "diffsparse", 20)
    ]
    stacks = (("none", "ok"), ("diffsparse", "ok"), ("int8+diffsparse", "ok"), ("noop", "ok"))
    run = write_run(tmp_path / "run", models=("pixart-tiny",), stacks=stacks, n=9)
    assert copy_training(read_sections([run])[0], tmp_path / "plots") == {}
    for stack, _ in stacks[1:3]:
        path = run / "cells" / key_of("pixart-tiny", stack) / "record.json"
        record = json.loads(path.read_text())
        record["artifacts"] = {
            "diffsparse": Artifact(shipped.parent, json.loads(shipped.read_text())).cost()
        }
        path.write_text(json.dumps(record))
    report = reports.build([run])
    (copy,) = report.out.glob("plots/*-training.png")
    assert copy.name == f"pixart-tiny-diffsparse-{shipped.parent.name}-training.png"
    assert copy.read_bytes() == (shipped.parent / "training.png").read_bytes()
    assert report.page.read_text().count('<img class="small"') == 1
