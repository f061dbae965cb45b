"""Replays: what an adaptive method computes is recorded, and its most frequent schedule is used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ditbench.acceleration.caching.prepare_steps import read_steps, write_steps
from ditbench.acceleration.caching.record_steps import most_frequent, record_steps
from ditbench.method import METHODS, Stage, method
from ditbench.method.prepare import Workroom
from ditbench.method.registry import find
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.testing import check_method, tiny

STEPS = 6


def room_of(kind):
    subject = tiny(kind, steps=STEPS)
    model = replace(models()[f"{kind}-tiny"], steps=STEPS)
    return subject, Workroom(
        pipe=subject.pipeline, model=model, below=Stack(), sampling=subject.sampling,
        tell=lambda row: None,
    )  # fmt: skip


def decides(chooses, name="decides_test", **parts):
    """A method that reuses the blocks' residual where `chooses(step, branch, generation)`, and
    counts as the others do."""
    METHODS.pop(name, None)
    generations = []

    def attach(self, pipeline, at):
        from ditbench.acceleration.caching.passes import reuse_residual

        at.on_start(lambda: generations.append(None))
        reuse_residual(
            at, lambda run, streams: chooses(at.now.step, at.now.branch, len(generations) - 1)
        )

    parts |= {"attach": attach, "__module__": __name__}
    return method(name, family="test", stage=Stage.SCHEDULE, claims={"block-schedule"})(
        type("Decides", (), parts)
    )


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_the_replay_of_a_fixed_schedule_is_that_method_bit_by_bit(kind, tmp_path):
    """Wan's guidance passes decide apart, and are replayed apart."""
    decides(lambda step, branch, _: step in ((1, 2, 4), (3,))[branch])
    subject, room = room_of(kind)
    (replay,) = Stack.parse("replay(of='decides_test', prompts=2)").methods
    notes = replay.prepare(tmp_path, room)
    passes = ["0-3-5", "0-1-2-4-5"][: 1 + (kind == "wan")]
    assert notes["steps"] == " ".join(passes) and notes["share"] == 1 and notes["distinct"] == 1
    samples = []
    for text in ("decides_test", str(Stack.of(replay))):
        with Stack.parse(text).attached(subject.pipeline, {"replay": tmp_path}) as attached:
            attached.start(STEPS, 1)
            samples.append(subject.generate(subject.sampling, [0]))
            counters = {k.partition(".")[2]: n for k, n in attached.counters().items()}
            reused = 3 + (kind == "wan")
            assert counters["passes_reused"] == reused
            assert counters["passes_computed"] == STEPS * len(passes) - reused
    assert torch.equal(*samples)
    METHODS.pop("decides_test")


def test_the_most_frequent_schedule_is_taken_and_its_share_noted():
    a, b, c = ((0, 2),), ((0, 1, 2),), ((0,),)
    modal, notes = most_frequent([b, a, a, c, a, b])
    assert modal == a
    assert notes == {
        "samples": 6, "share": 0.5, "distinct": 3, "share_of_three": 1.0,
        "mean_computed": round((3 * 2 + 2 * 3 + 1) / 6, 3), "computed": 2.0,
    }  # fmt: skip
    assert most_frequent([b, a])[0] == b


def test_every_prompt_decides_for_itself():
    decides(lambda step, _, generation: step == 1 + generation)
    _, room = room_of("flux")
    (of,) = Stack.parse("decides_test").methods
    assert record_steps(room, of, 3, None) == [
        ((0, 2, 3, 4, 5),), ((0, 1, 3, 4, 5),), ((0, 1, 2, 4, 5),)
    ]  # fmt: skip
    METHODS.pop("decides_test")


def test_a_method_that_patches_the_transformer_is_recorded_too():
    """`tests/example_step_reuse.py` counts what it reuses alone."""
    from test_stack import TESTS

    from ditbench.method.plugins import load_plugin

    load_plugin(TESTS / "example_step_reuse.py")
    _, room = room_of("dit")
    (of,) = Stack.parse("step_reuse(every=3)").methods
    assert record_steps(room, of, 1, None) == [((0, 3),)]


def test_what_has_to_be_prepared_is_prepared_first(tmp_path, monkeypatch):
    from ditbench.acceleration.caching import calibrate_magcache
    from ditbench.method import dial

    monkeypatch.setattr(calibrate_magcache, "BATCH", 1)
    monkeypatch.setattr(dial, "TURNS", 2)
    _, room = room_of("flux")
    (replay,) = Stack.parse("replay(of='teacache(saved=0.4)', prompts=1)").methods
    assert replay.recipe()["recipe"] == {"version": 2, "saved": 0.4, "polynomial": []}
    notes = replay.prepare(tmp_path, room)
    assert [path.name for path in tmp_path.iterdir()] == ["steps.json"]
    assert read_steps(tmp_path)[1] == STEPS and notes["computed"] < STEPS


def test_a_method_is_prepared_by_its_own_training(tmp_path, monkeypatch):
    """And recorded on the requests of the replay's."""
    trainings = []

    def prepare(self, folder, room):
        trainings.append(room.training)
        (folder / "ratios.json").write_text(json.dumps([1.0] * STEPS))
        return {}

    monkeypatch.setattr(find("magcache"), "prepare", prepare)
    _, room = room_of("flux")
    keys = set()
    for inner, own in ((0, 0), (2, 0), (2, 1)):
        of = f"magcache(threshold=9.0,retain=0.2,training={inner})"
        (replay,) = Stack.parse(f'replay(of="{of}", prompts=1, training={own})').methods
        replay.prepare(tmp_path, replace(room, training=own))
        keys.add(json.dumps(replay.recipe()))
    assert trainings == [0, 2, 2]
    assert len(keys) == 2 and "training" not in json.loads(min(keys, key=len))


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("fora+int8", "of is one method, not 'fora+int8'"),
        ("none", "of is one method, not 'none'"),
        ("int8", "int8 does not decide what is computed"),
        ("replay", "replay does not decide what is computed"),
        ("teacache(threshold=-1)", "threshold must be at least 0"),
        ("teacash", "no method 'teacash'; did you mean teacache"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence(of, sentence):
    with pytest.raises(ValueError, match="in the stack") as error:
        Stack.parse(f"replay(of={of!r})")
    assert sentence in str(error.value)


def test_a_method_that_reuses_no_whole_pass_is_refused(tmp_path):
    _, room = room_of("dit")
    (replay,) = Stack.parse("replay(of='fora', prompts=1)").methods
    with pytest.raises(ValueError, match="fora computed every step of 1 prompts"):
        replay.prepare(tmp_path, room)


def test_every_spelling_of_the_method_is_one_and_says_what_stands_between():
    (one,) = Stack.parse("replay(of='teacache( threshold = 0.3 , saved=0.0)')").methods
    (two,) = Stack.parse("replay(of='teacache(threshold=0.3)')").methods
    assert one == two and Stack.parse(str(Stack.of(one))).methods == (one,)
    assert one._between == "reuse"
    decides(lambda *_: False, between="taylor")
    (named,) = Stack.parse("replay(of='decides_test')").methods
    assert named._between == "taylor"
    (other,) = Stack.parse("replay(of='decides_test', between='reuse')").methods
    assert other._between == "reuse"
    METHODS.pop("decides_test")


def test_a_replay_keeps_the_contract(tmp_path):
    write_steps(tmp_path, [(0, 2), (0, 1, 3)], 4)
    for kind in ("wan", "pixart"):
        checks = check_method("replay(prompts=3)", tiny(kind, steps=4), {"replay": tmp_path})
        assert not [f"{c.name}: {c.note}" for c in checks if not c.passed] and len(checks) == 13
