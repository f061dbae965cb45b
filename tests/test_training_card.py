"""The card of what was trained: facts from the manifest, a picture where there is a log."""

import json

import numpy as np
import pytest

from ditbench.artifact import BUNDLED, needs_of
from ditbench.models import select
from ditbench.reports.training import draw_training, write_card
from ditbench.schedule import Schedule
from ditbench.stack import Stack

MANIFEST = {
    "method": "m", "model": "dit-tiny", "steps": 4, "below": "distill", "stack": "distill+m", "seconds": 12.5,
    "recipe": {"version": 3}, "notes": {"held_out": 0.25},
}  # fmt: skip


def test_a_card_says_what_it_is_for_and_what_it_cost_and_draws_the_log(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert draw_training(tmp_path) is None
    card = write_card(tmp_path).read_text()
    assert "For 4 steps under `distill`." in card and "prepare 'distill+m' --models dit-tiny" in card
    assert "| seconds | 12.5 |" in card and "| held_out | 0.25 |" in card and "training.png" not in card
    (tmp_path / "log.csv").write_text("stage,iteration,loss,held_out\n1,0,0.5,0.4\n1,1,0.4,\n2,2,,0.3\n")
    write_card(tmp_path)
    alone = (tmp_path / "training.png").stat().st_size
    Schedule(sublayers=("0.self", "0.mlp"), chosen=np.array([[4, 4], [0, 2]])).write(tmp_path / "schedule.json")
    card = write_card(tmp_path).read_text()
    assert "training.png" in card and (tmp_path / "training.png").stat().st_size > alone
    (tmp_path / "log.csv").write_text("stage,iteration,loss,held_out\n")  # a measured table has no curve
    (tmp_path / "training.png").unlink()
    assert "training.png" in write_card(tmp_path).read_text() and (tmp_path / "training.png").is_file()


def test_everything_that_is_shipped_has_its_card():
    shipped = [p.parent for p in BUNDLED.glob("*/*/manifest.json")]
    assert len(shipped) >= 8
    for folder in shipped:
        assert (folder / "README.md").is_file(), folder
        assert (folder / "training.png").is_file() == (folder / "log.csv").is_file(), folder


@pytest.mark.parametrize("model", select("tiny"), ids=lambda model: model.name)
@pytest.mark.parametrize("text", ["diffsparse", "distill", "distill+diffsparse", "distill+diffsparse(tuned='alone')"])
def test_the_stacks_that_users_type_first_have_what_they_need_in_the_repository(text, model):
    needs = needs_of(model, Stack.parse(text), "bundled")
    assert needs and all((BUNDLED / need.folder / "manifest.json").is_file() for need in needs)
