"""RAPID3: decisions for each sample and step, what they cost, and what they are rewarded for."""

import json
import math

import pytest
import torch
from torch.distributions import Beta, Categorical

from ditbench.acceleration.policies.acting import act_by_steps
from ditbench.acceleration.policies.deciding import ByHeads, ByRecord, ByRule, Choice, landing
from ditbench.acceleration.policies.grpo import loss_of, surrogate
from ditbench.acceleration.policies.heads import (
    channels_of,
    likeliest,
    make_heads,
    on_grid,
    read_heads,
    write_heads,
)
from ditbench.acceleration.policies.prepare_policy import (
    HEADS_FILE,
    OPTIONS,
    RULE_FILE,
    read_actions,
    rules_of,
    write_actions,
)
from ditbench.acceleration.policies.reward import advantages, compute_of, discounted, judged
from ditbench.acceleration.policies.train import most_frequent_actions
from ditbench.method.probe import Trainee
from ditbench.method.stack import Stack
from ditbench.shapes import scenes
from ditbench.shapes.judge import agreement, load_judge
from ditbench.testing import KINDS, check_method, tiny

TIMES = [1000.0, 800.0, 600.0, 400.0, 200.0, 0.0]


@pytest.mark.parametrize(
    "step, fraction, to",
    # t -> floor(t a); 500 is as near to 600 as to 400, and the earlier is taken
    [(0, 0.99, 1), (0, 0.6, 2), (0, 0.5, 2), (0, 0.41, 3), (0, 0.0, 5), (3, 0.9, 4), (4, 0.99, 5)],
)
def test_a_sample_lands_at_the_step_nearest_to_its_time(step, fraction, to):
    assert landing(TIMES, step, fraction) == to


class Told(Trainee):
    """Acts as a decider says."""

    def __init__(self, decider):
        self.decider, self.acts = decider, None

    def attach(self, pipeline, at):
        self.acts = act_by_steps(pipeline, at, self.decider)


def sampled(subject, decider, which=(0, 1)):
    trainee = Told(decider)
    with Stack((trainee,)).attached(subject.pipeline) as attached:
        attached.start(subject.sampling.steps, len(which))
        samples = subject.generate(subject.sampling, list(which))
        return samples, trainee.acts.history, attached


@pytest.mark.parametrize("kind", ["flux", "wan", "dit"])
def test_holding_the_output_is_one_long_step_of_a_first_order_sampler(kind):
    """Six steps of which every third is taken are two steps three times as long."""
    subject = tiny(kind, steps=6)
    scheduler = subject.pipeline.scheduler
    calls = []

    def step(model_output, timestep, sample, *args, **kwargs):
        out = forward(model_output, timestep, sample, *args, **kwargs)
        calls.append((model_output, sample, out[0]))
        return out

    forward = scheduler.step
    scheduler.step = step
    if kind == "wan":  # UniPC is of second order
        from diffusers import FlowMatchEulerDiscreteScheduler

        subject.pipeline.scheduler = euler = FlowMatchEulerDiscreteScheduler()
        forward, euler.step = euler.step, step
        scheduler = euler
    sampled(subject, ByRule(stride=3))
    assert torch.equal(calls[0][0], calls[2][0]) and not torch.equal(calls[2][0], calls[3][0])
    for first, last, begin, end in ((0, 2, 0, 3), (3, 5, 3, 6)):
        output, x = calls[first][0].double(), calls[first][1].double()
        if kind == "dit":
            alphas = scheduler.alphas_cumprod.double()
            times = [*scheduler.timesteps.tolist(), -1]
            a, b = (
                alphas[t] if t >= 0 else scheduler.final_alpha_cumprod
                for t in (times[begin], times[end])
            )
            output = output[:, : x.shape[1]]
            clean = (x - (1 - a).sqrt() * output) / a.sqrt()
            wanted = b.sqrt() * clean + (1 - b).sqrt() * output
        else:
            wanted = x + (scheduler.sigmas[end] - scheduler.sigmas[begin]) * output
        got = calls[last][2].double()
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5


class Scripted:
    """Says what a table has for each sample and step."""

    heads = frozenset({"skip", "cache", "attention"})

    def __init__(self, table):
        self.table = table  # sample -> step -> (reuses, level, to)

    def _say(self, samples, step, field):
        return [self.table[i][step][field] for i in samples]

    def reuses(self, samples, step, times, change, kept):
        return self._say(samples, step, 0)

    def levels(self, samples, step, times, latents):
        return self._say(samples, step, 1)

    def lands(self, samples, step, times, output):
        return self._say(samples, step, 2)


TABLE = {
    0: {0: (False, 1, 2), 2: (True, 0, 3), 3: (False, 0, 4), 4: (True, 0, 5)},
    1: {0: (False, 0, 1), 1: (True, 0, 2), 2: (False, 3, 4), 4: (False, 2, 5)},
    2: {0: (False, 0, 3), 3: (False, 2, 5)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_that_decide_apart_are_as_each_alone(kind):
    """With sub-batches of other levels, reused and held outputs in one call."""
    subject = tiny(kind, steps=5)
    together, history, attached = sampled(subject, Scripted(TABLE), (0, 1, 2))
    calls = 2 if kind == "wan" else 1
    counters = {k.partition(".")[2]: n for k, n in attached.counters().items()}
    assert counters["samples_computed"] == 7 * calls
    assert counters["samples_reused"] == 3 * calls
    assert counters["samples_skipped"] == (15 - 10) * calls
    assert counters["samples_sparse"] == 4 * calls
    assert counters["sub_batches"] == (2 + 0 + 1 + 2 + 1) * calls
    assert counters["passes_reused"] == 1 * calls  # at step 1 one reuses and two hold
    for i in range(3):
        assert [(s, r, v, t) for s, (r, v, t) in TABLE[i].items()] == history[i]
        alone, _, _ = sampled(subject, Scripted({0: TABLE[i]}), (i,))
        gap = (together[i : i + 1].double() - alone.double()).norm() / alone.double().norm()
        assert float(gap) < 1e-4


def test_a_reused_output_is_the_input_and_what_was_added_last():
    subject = tiny("flux", steps=3)
    seen = []

    def forward(*args, **kwargs):
        out = run(*args, **kwargs)
        seen.append((kwargs["hidden_states"], out[0]))
        return out

    trainee = Told(Scripted({0: {0: (False, 0, 1), 1: (True, 0, 2), 2: (False, 0, 3)}}))
    with Stack((trainee,)).attached(subject.pipeline) as attached:
        transformer = subject.pipeline.transformer
        run = transformer.forward
        transformer.forward = forward
        try:
            attached.start(3, 1)
            subject.generate(subject.sampling, [0])
        finally:
            transformer.forward = run
    (x0, y0), (x1, y1), _ = seen
    assert torch.allclose(y1, x1 + (y0 - x0), atol=1e-6)


def test_k_counts_what_is_computed_and_the_reward_is_its_series():
    actions = ((0, False, 0, 1), (1, True, 0, 2), (2, False, 2, 5))
    assert compute_of(actions, [0.0, 0.1, 0.25]) == 1 + 0 + 0.75
    worth, decay, steps = 1.7, 0.9, 4
    series = sum(decay ** (steps - k) * worth for k in range(1, steps + 1)) / steps
    assert discounted(worth, steps, decay) == pytest.approx(series)
    assert discounted(worth, 3.5, 1.0) == worth
    assert discounted(worth, 5, 0.9) < discounted(worth, 4.5, 0.9) < worth


def test_advantages_are_within_groups_of_one_prompt():
    given = advantages(torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=torch.float64), 2)
    assert given.tolist() == [-1, 1, 0, 0]
    small = torch.tensor([0.0, 1.0, 1.0, 1.01], dtype=torch.float64)
    assert advantages(small, 2, scaled=False).tolist() == pytest.approx([-0.5, 0.5, -0.005, 0.005])
    assert advantages(small, 2).tolist() == pytest.approx([-1, 1, -1, 1])


def test_the_clipped_surrogate_stops_rewarding_what_moved_too_far():
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.5])
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    assert surrogate(ratio, advantage).tolist() == pytest.approx([0.5, 1.0, 1.2, -0.8, -1.5])


def test_an_update_makes_what_was_rewarded_likelier():
    heads = make_heads({"skip": 0, "cache": 2}, 3)
    seen, time = torch.randn(2, 3, 1, 4, 4), torch.tensor([0.9, 0.9])
    skip, cache = (heads[name].policy(seen, time) for name in ("skip", "cache"))
    drawn = [
        Choice("skip", [0, 1], seen, time, torch.tensor([0.5, 0.95]), skip.log_prob(torch.tensor([0.5, 0.95])).detach()),
        Choice("cache", [0, 1], seen, time, torch.tensor([1, 0]), cache.log_prob(torch.tensor([1, 0])).detach()),
    ]  # fmt: skip
    optimiser = torch.optim.Adam(heads.parameters(), 3e-3)
    before = float(skip.mean[0]), float(cache.probs[0, 1])
    for _ in range(5):
        optimiser.zero_grad()
        loss_of(heads, drawn, torch.tensor([1.0, -1.0])).backward()
        optimiser.step()
    skip, cache = (heads[name].policy(seen, time) for name in ("skip", "cache"))
    assert float(skip.mean[0]) < before[0] and float(cache.probs[0, 1]) > before[1]


def test_a_head_begins_where_it_is_said_to_and_its_weights_are_read_back(tmp_path):
    heads = make_heads(OPTIONS, 4)
    seen, time = torch.randn(5, 4, 2, 3, 3), torch.rand(5)
    skip, attention = (heads[name].policy(seen, time) for name in ("skip", "attention"))
    assert isinstance(skip, Beta) and isinstance(attention, Categorical)
    assert torch.allclose(likeliest(skip), torch.full((5,), 0.9), atol=0.03)
    assert likeliest(attention).tolist() == [0] * 5
    write_heads(heads, tmp_path / "h.safetensors")
    again = read_heads(tmp_path / "h.safetensors", OPTIONS, 4)
    assert torch.equal(again["cache"](seen, time), heads["cache"](seen, time))
    for options, channels in ((OPTIONS, 5), ({"cache": 2}, 4)):
        with pytest.raises(ValueError, match=r"h\.safetensors holds no heads"):
            read_heads(tmp_path / "h.safetensors", options, channels)


def test_latents_of_all_families_come_on_a_grid():
    tokens = torch.arange(24.0).reshape(1, 6, 4)
    assert on_grid(tokens, (1, 2, 3)).shape == (1, 4, 1, 2, 3)
    assert on_grid(tokens, (1, 2, 3))[0, :, 0, 1, 0].tolist() == tokens[0, 3].tolist()
    assert on_grid(torch.zeros(2, 4, 8, 8), (1, 4, 4)).shape == (2, 4, 1, 8, 8)
    assert on_grid(torch.zeros(2, 4, 3, 8, 8), (3, 4, 4)).shape == (2, 4, 3, 8, 8)


@pytest.mark.parametrize("world", ["class", "scene", "video"])
def test_the_quality_is_high_for_what_was_asked_and_low_for_something_else(world):
    judge, num = load_judge(world), 48
    drawn = scenes.draw(world, num, split="test", seed=3)
    pixels = scenes.render(drawn, world, split="test", seed=3)
    truths = list(drawn.truths())
    quality = judged(judge, pixels, truths, world)
    other = judged(judge, pixels, truths[1:] + truths[:1], world)
    assert quality.shape == (num,) and bool(((quality >= 0) & (quality <= 1)).all())
    hard = torch.stack([*agreement(judge.read(pixels), drawn, world).values()]).mean(0)
    assert float(quality.mean()) == pytest.approx(float(hard.mean()), abs=0.05)
    assert float(quality.mean()) > 0.9 > 0.7 > float(other.mean())


def test_most_frequent_actions_and_the_file_they_are_kept_in(tmp_path):
    a, b = ((0, False, 0, 2), (2, True, 0, 4)), ((0, False, 1, 4),)
    modal, notes = most_frequent_actions([b, a, a])
    assert modal == a and notes == {"share": round(2 / 3, 4), "distinct": 2}
    write_actions(tmp_path, modal, 4)
    assert read_actions(tmp_path) == (a, 4)
    (tmp_path / "actions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"actions\.json holds no actions"):
        read_actions(tmp_path)


def test_a_record_of_another_number_of_steps_is_refused():
    subject = tiny("dit", steps=4)
    record = ByRecord(((0, False, 0, 2), (2, False, 0, 3)), frozenset({"skip"}), 3)
    with pytest.raises(ValueError, match="the record is for 3 sampler steps, and the scheduler"):
        sampled(subject, record)


def test_the_grid_is_of_what_the_heads_decide():
    assert len(rules_of(["skip", "cache", "attention"])) == 5 * 4 * 4
    assert {rule.heads for rule in rules_of(["cache"])} == {frozenset(), frozenset({"cache"})}


def test_drawing_is_noted_with_the_chances_it_had_and_is_repeatable():
    subject = tiny("flux", steps=4)
    heads = make_heads(OPTIONS, channels_of(subject.pipeline.transformer))
    runs = []
    for _ in range(2):
        decider = ByHeads(heads, torch.Generator().manual_seed(3))
        samples, history, _ = sampled(subject, decider)
        runs.append((samples, history))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    asked = {name: sum(len(c.samples) for c in decider.drawn if c.head == name) for name in OPTIONS}
    steps = [action for actions in history.values() for action in actions]
    assert asked["skip"] == len(steps)
    assert asked["cache"] == sum(action[0] > 0 for action in steps)
    assert asked["attention"] == sum(not action[1] for action in steps)
    for choice in decider.drawn:
        chance = heads[choice.head].policy(choice.seen, choice.time).log_prob(choice.action)
        assert torch.allclose(chance, choice.chance, atol=1e-5)


@pytest.fixture
def prepared(tmp_path):
    """Untrained heads, a record and a rule, for the narrow pipeline of a family at four steps."""

    def make(subject):
        heads = make_heads(OPTIONS, channels_of(subject.pipeline.transformer))
        with torch.no_grad():
            heads["skip"].out.bias.copy_(torch.tensor([1.0, 1.0]))  # a about a half
            heads["cache"].out.bias.copy_(torch.tensor([0.0, 0.1]))
            heads["attention"].out.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
        write_heads(heads, tmp_path / HEADS_FILE)
        write_actions(tmp_path, ((0, False, 1, 2), (2, False, 0, 3), (3, True, 0, 4)), 4)
        (tmp_path / RULE_FILE).write_text(json.dumps({"stride": 2, "threshold": 0.0, "level": 1}))
        return {"rapid3": tmp_path}

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["rapid3", "rapid3(decide='replay')", "int8+rapid3(decide='grid')"]
)
def test_what_was_prepared_keeps_the_contract(kind, text, prepared):
    subject = tiny(kind, steps=4)
    checks = check_method(text, subject, prepared(subject))
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed] and len(checks) == 13


def test_a_replay_records_the_steps_it_computes(tmp_path):
    """`replay` fills the others in by its own rule; decide='replay' repeats the actions."""
    from test_replay import room_of

    _, room = room_of("flux")
    (replay,) = Stack.parse("replay(of='rapid3(decide=\"fixed\",stride=2)',prompts=1)").methods
    notes = replay.prepare(tmp_path, room)
    assert (notes["steps"], notes["share"]) == ("0-2-4", 1)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ("heads='jump'", "heads are of skip, cache, attention with"),
        ("heads='skip+skip'", "heads are of skip, cache, attention with"),
        ("stride=2", "with decide='policy' stride has no meaning"),
        ("decide='fixed',omega=2.0", "with decide='fixed' omega has no meaning"),
        ("decay=1.5", "decay must be above 0 and at most 1"),
    ],
)
def test_knobs_that_contradict_each_other_are_one_sentence(knobs, message):
    with pytest.raises(ValueError, match=message) as error:
        Stack.parse(f"rapid3({knobs})")
    assert "\n" not in str(error.value)


def test_every_spelling_of_the_heads_is_one_recipe():
    (one,), (other,) = (
        Stack.parse(f"rapid3(heads='{heads}')").methods for heads in ("cache+skip", "skip+cache")
    )
    assert one == other and one.recipe() == other.recipe()
    replay = Stack.parse("rapid3(heads='skip+cache',decide='replay')").methods[0]
    assert replay.recipe() == one.recipe()
    assert not math.isclose(one.recipe()["decay"], 1.0)
