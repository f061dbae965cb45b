"""Training of policies: what is made of rollouts, and that compute falls where it alone counts."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from test_replay import room_of

from ditbench.acceleration.policies import HEADS, RATIO, RATIOS, train
from ditbench.acceleration.policies.acting import act_by_steps, act_by_tokens
from ditbench.acceleration.policies.deciding import ByRatio, ByRule
from ditbench.acceleration.policies.discriminator import Discriminator
from ditbench.acceleration.policies.prepare_policy import (
    options_of,
    prepare_grid,
    prepare_policy,
    read_actions,
    rules_of,
    saved_by_level,
)
from ditbench.acceleration.policies.train import (
    Recipe,
    Rollouts,
    Studio,
    held_out,
    score_steps,
    score_tokens,
)
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.shapes import scenes
from ditbench.shapes.judge import load_judge
from ditbench.testing import check_method

SHORT = Recipe(
    options=options_of(HEADS), iterations=2, prompts=1, group=2, held_out=2, epochs=1
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "reward"), [("flux", "both"), ("dit", "quality"), ("wan", "discriminator")]
)
def test_prepare_writes_heads_a_record_and_a_log_and_the_method_runs_by_them(
    kind, reward, tmp_path, monkeypatch
):
    subject, room = room_of(kind)
    heard = []
    room = replace(room, tell=heard.append)
    recipe = replace(SHORT, reward=reward)
    stack = f"rapid3(reward='{reward}')"
    method = Stack.parse(stack).methods[0]
    monkeypatch.setattr(type(method), "_trained", lambda self: recipe)
    notes = method.prepare(tmp_path, room)
    assert notes["rollouts"] == 4 and 0 < notes["held_out_compute"] <= 6
    assert 0 <= notes["held_out_quality"] <= 1 and len(notes["saved_by_attention"].split()) == 3
    assert [row["done"] for row in heard] == [1, 2] and {"reward", "compute"} <= heard[0].keys()
    log = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["iteration"] for row in log] == ["0", "1"]
    assert ("discriminator_loss" in log[0]) == (reward != "quality")
    actions, steps = read_actions(tmp_path)
    assert steps == 6 and actions[0][:2] == (0, False) and actions[-1][3] == 6
    for text in (stack, f"rapid3(reward='{reward}',decide='replay')"):
        checks = {c.name: c for c in check_method(text, subject, {"rapid3": tmp_path})}
        left_idle = {"it engages"}  # two iterations may leave nothing to skip
        assert {name for name, c in checks.items() if not c.passed} <= left_idle


def test_where_only_compute_counts_it_falls(monkeypatch):
    """Every sample is worth 1, so that the reward is the discount alone."""
    _, room = room_of("flux")
    monkeypatch.setattr(
        train, "judged", lambda judge, pixels, truths, world: torch.ones(len(pixels)).double()
    )
    recipe = replace(
        SHORT, options=options_of(["skip", "cache"]), reward="quality", decay=0.7, iterations=25,
        group=8, epochs=3, rate=1e-2,
    )  # fmt: skip
    studio = Studio(room, act_by_steps, recipe, [0.0])
    _, log = train.train(studio, score_steps)
    first, last = (sum(row["compute"] for row in rows) / len(rows) for rows in (log[:5], log[-5:]))
    assert last < 0.6 * first


def test_a_training_is_the_same_again_and_another_is_not():
    _, room = room_of("flux")
    logs = []
    for training in (0, 0, 1):
        studio = Studio(replace(room, training=training), act_by_steps, SHORT, [0.0] * 4)
        logs.append(train.train(studio, score_steps)[1])
    assert logs[0] == logs[1] != logs[2]


def test_the_grid_spends_as_many_rollouts_and_takes_the_best(tmp_path):
    _, room = room_of("flux")
    recipe = replace(SHORT, iterations=10, prompts=2, group=2)
    notes = prepare_grid(tmp_path, room, recipe, ["skip"], [0.0])
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == 5 and notes["rollouts"] == 40 == recipe.rollouts
    best = max(rows, key=lambda row: float(row["reward"]))
    rule = json.loads((tmp_path / "rule.json").read_text())
    assert rule == {"stride": int(best["stride"]), "threshold": 0.0, "level": 0}
    assert ByRule(**rule) in rules_of(["skip"])


def test_what_masks_save_is_measured_by_the_flops_that_run():
    _, room = room_of("flux")
    saved = saved_by_level(room)
    assert saved[0] == 0 and saved[1] <= saved[2] <= saved[3] < 1


def test_the_discriminator_learns_to_tell_samples_apart():
    told = Discriminator(load_judge("scene"), 0)
    drawn = scenes.draw("scene", 64, split="test", seed=1)
    real = scenes.render(drawn, "scene", split="test", seed=1)
    blurred = torch.nn.functional.avg_pool2d(real, 9, 1, 4)
    seen, false = told.features(real), told.features(blurred)
    told.remember(seen[:32], "real")
    told.remember(false[:16], "first")
    told.remember(false[16:32], "rollout")
    losses = [told.update() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    # on samples it was not taught
    gap = told.realness(seen[32:]).mean() - told.realness(false[32:]).mean()
    assert float(gap) > 0.5


def test_reward_of_one_part_is_that_part():
    _, room = room_of("flux")
    quality, realness = torch.tensor([0.2, 0.6]), torch.tensor([1.0, 0.5])
    worth = {
        reward: Studio(
            room, act_by_steps, replace(SHORT, reward=reward, omega=2.0), [0.0]
        ).worth(quality, realness).tolist()
        for reward in ("both", "quality", "discriminator")
    }  # fmt: skip
    assert worth["both"] == pytest.approx([2.2, 1.6])
    assert worth["quality"] == pytest.approx([0.2, 0.6])
    assert worth["discriminator"] == pytest.approx([2.0, 1.0])


def test_zipr1_pays_for_tokens_only_where_a_rollout_of_the_prompt_is_right():
    _, room = room_of("flux")
    recipe = Recipe(options={RATIO: len(RATIOS)}, reward="quality", price=0.5)
    studio = Studio(room, act_by_tokens("norm"), recipe, [1 - ratio for ratio in RATIOS])
    drawn = scenes.draw("scene", 2, split="test", seed=4)
    right = scenes.render(drawn, "scene", split="test", seed=4)
    pixels = torch.stack([right[0], 0 * right[0], 0 * right[1], 0 * right[1]])
    truths = list(drawn.truths())
    requests = [
        replace(request, truth=truths[i])
        for i, request in enumerate(studio.requests(2, 1))
        for _ in range(2)
    ]
    whole = tuple((t, False, 0, t + 1) for t in range(6))
    half = tuple((t, False, 2 if t else 0, t + 1) for t in range(6))  # 7/12 of the tokens
    rewards, means = score_tokens(studio, requests, Rollouts(pixels, [half, half, half, whole]))
    left_out = 0.5 * 5 * 0.5 / 6
    assert rewards.tolist() == pytest.approx([1 + left_out, left_out, 0, 0])
    assert means["quality"] == 0.25 and means["compute"] == pytest.approx((3 * 3.5 + 6) / 4)


def test_zipr1_is_prepared_and_runs_by_its_head(tmp_path):
    subject, room = room_of("pixart")
    recipe = replace(SHORT, options={RATIO: len(RATIOS)}, reward="quality")
    saved = [1 - ratio for ratio in RATIOS]
    notes = prepare_policy(tmp_path, room, recipe, act_by_tokens("norm"), score_tokens, saved)
    assert notes["held_out_compute"] <= 6
    checks = {
        c.name: c
        for c in check_method(
            "zipr1(selector='norm',decide='replay')", subject, {"zipr1": tmp_path}
        )
    }
    assert {name for name, c in checks.items() if not c.passed} <= {"it engages"}


def test_a_fixed_share_is_what_the_studio_counts():
    _, room = room_of("pixart")
    recipe = replace(SHORT, options={RATIO: len(RATIOS)}, reward="quality")
    studio = Studio(room, act_by_tokens("norm"), recipe, [1 - ratio for ratio in RATIOS])
    means, actions = held_out(studio, ByRatio(level=3), score_tokens)
    assert means["held_out_compute"] == 1 + 5 * 0.25
    assert [action[2] for action in actions[0]] == [0, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("name", ["rapid3", "zipr1"])
def test_a_model_without_a_judge_cannot_be_trained_for(name):
    method = Stack.parse(name).methods[0]
    for model in models().values():
        reason = method.unpreparable_for(model)
        assert (reason is None) == bool(model.world)
        assert reason is None or f"there is none for {model.name}" in reason
