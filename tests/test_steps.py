"""Steps asked for are not steps made: Heun's scheduler makes 2 N - 1 calls, and methods, tables,
counts and captions go by those."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from report_runs import key_of, write_run
from safetensors.numpy import load_file, save_file

from ditbench.acceleration.caching import learn_router as mixing
from ditbench.acceleration.caching.learn_schedule import prepare_schedule
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.distillation.students import Recipe, prepare_student
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.reports.sections.section import read_sections
from ditbench.runner.worker import _calls
from ditbench.testing import tiny

ASKED, MADE = 5, 9
HEUN = {
    "dit": HeunDiscreteScheduler,
    "pixart": HeunDiscreteScheduler,
    "wan": FlowMatchHeunDiscreteScheduler,
}
BY_STEP = [
    "fora",
    "taylorseer",
    "delta_dit",
    "hicache",
    "clusca",
    "freqca",
    "barycache",
    "toca",
    "duca",
    "diffsparse(allocator='uniform')",
    "l2c(threshold=1.0)",
]


def heun(kind):
    """An untrained pipeline of five steps, of which its scheduler makes nine."""
    tried = tiny(kind, steps=ASKED)
    tried.pipeline.scheduler = HEUN[kind]()
    return tried


@pytest.mark.parametrize("kind", HEUN)
@pytest.mark.parametrize("text", BY_STEP)
def test_methods_go_by_the_steps_the_scheduler_makes(text, kind):
    tried, seen = heun(kind), []
    with Stack.parse(text).attached(tried.pipeline) as attached:
        hook = tried.pipeline.transformer.register_forward_pre_hook(
            lambda *_: seen.append(attached.now.step)
        )
        attached.start(ASKED, 1)
        tried.generate(tried.sampling, [0])
        hook.remove()
        assert attached.now.num_steps == MADE and sorted(set(seen)) == list(range(MADE))
        if text not in ("delta_dit", "freqca", "barycache"):
            assert len(attached.schedule()["keep"]) == MADE
        first = attached.counters()
        tried.generate(tried.sampling, [0])  # a generation nobody announced is the same
        assert attached.counters() == {event: 2 * n for event, n in first.items()}


@pytest.mark.parametrize("kind", HEUN)
def test_teacache_skips_to_the_last_step_but_one(kind):
    tried, passes = heun(kind), 2 if kind == "wan" else 1
    with Stack.parse("teacache(threshold=1e9)").attached(tried.pipeline) as attached:
        attached.start(ASKED, 1)
        tried.generate(tried.sampling, [0])
        expected = {
            "teacache.passes_computed": 2 * passes,
            "teacache.passes_reused": (MADE - 2) * passes,
        }
        assert attached.counters() == expected


@pytest.mark.parametrize(
    ("scheduler", "asked", "made"), [(PNDMScheduler, 12, 13), (DPMSolverMultistepScheduler, 12, 12)]
)
def test_any_scheduler_is_asked_what_it_makes(scheduler, asked, made):
    tried = tiny("pixart", steps=asked)
    tried.pipeline.scheduler = (
        scheduler(skip_prk_steps=True) if scheduler is PNDMScheduler else scheduler()
    )
    with Stack.parse("fora").attached(tried.pipeline) as attached:
        attached.start(asked, 1)
        tried.generate(tried.sampling, [0])
        assert attached.now.num_steps == made == attached.now.step


def test_scores_of_another_length_are_refused_in_a_sentence_and_those_of_this_one_run(tmp_path):
    tried, path = heun("dit"), tmp_path / "router.safetensors"
    for rows in (ASKED, MADE):
        save_file({"scores": np.zeros((rows, 4), np.float32)}, path)
        with Stack.parse(f"l2c(router={str(path)!r})").attached(tried.pipeline) as attached:
            attached.start(ASKED, 1)
            if rows == MADE:
                tried.generate(tried.sampling, [0])
                assert attached.counters() == {"l2c.computed": 5 * 4, "l2c.reused": 4 * 4}
                continue
            with pytest.raises(
                ValueError,
                match=r"router\.safetensors is for 5 sampler steps, and the scheduler makes 9; python",
            ):
                tried.generate(tried.sampling, [0])


def test_a_schedule_of_another_length_is_refused_in_a_sentence_unless_it_shall_be_stretched(
    tmp_path,
):
    tried, path = heun("dit"), tmp_path / "schedule.json"
    Schedule(sublayers=("0.self", "0.mlp", "1.self", "1.mlp"), chosen=np.full((ASKED, 4), 2)).write(
        path
    )
    with Stack.parse(f"diffsparse(schedule={str(path)!r})").attached(tried.pipeline) as attached:
        attached.start(ASKED, 1)
        with pytest.raises(
            ValueError,
            match="the schedule is for 5 sampler steps, and the scheduler makes 9; python",
        ):
            tried.generate(tried.sampling, [0])
    with Stack.parse(f"diffsparse(schedule={str(path)!r}, tuned='alone')").attached(
        tried.pipeline
    ) as attached:
        attached.start(ASKED, 1)
        tried.generate(tried.sampling, [0])
        assert attached.schedule()["keep"] == [[1.0] * 4] + [[0.5] * 4] * (MADE - 1)


def test_ratios_of_another_length_are_refused_in_a_sentence(tmp_path):
    tried = heun("wan")
    (tmp_path / "ratios.json").write_text(json.dumps([1.0] * ASKED))
    with Stack.parse("magcache").attached(tried.pipeline, {"magcache": tmp_path}) as attached:
        attached.start(ASKED, 1)
        with pytest.raises(
            ValueError,
            match="the table of ratios is for 5 sampler steps, and the scheduler makes 9; python",
        ):
            tried.generate(tried.sampling, [0])


@pytest.fixture(scope="module")
def room():
    """Where a method is prepared for a trained model of three steps, of which its scheduler makes
    five."""
    model = replace(models()["dit-tiny"], steps=3)
    pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    pipe.scheduler = HeunDiscreteScheduler()
    return Workroom(
        pipe=pipe, model=model, below=Stack(), sampling=sampling_of(model), tell=lambda row: None
    )


def test_what_is_prepared_has_a_row_for_every_step_made_and_runs(room, tmp_path, monkeypatch):
    monkeypatch.setattr(mixing, "ITERATIONS", 2)
    monkeypatch.setattr(mixing, "BATCH", 2)
    assert room.calls == 5
    mixing.prepare_scores(tmp_path, room, price=1.0)
    assert len(load_file(tmp_path / "scores.safetensors")["scores"]) == 5
    prepare_schedule(
        "learned",
        tmp_path,
        room,
        keep=0.5,
        selector="change",
        by_macs=True,
        batch=2,
        stage1=1,
        stage2=1,
    )
    assert Schedule.read(tmp_path / "schedule.json").steps == 5
    for text in ("l2c(threshold=0.95)", "diffsparse(keep=0.5, selector='change')"):
        stack = Stack.parse(text)
        with (
            stack.attached(room.pipe, {stack.methods[0].name: tmp_path}) as attached,
            torch.no_grad(),
        ):
            attached.start(3, 1)
            room.pipe(**room.draw(0, 1), output_type="np")
            assert len(attached.schedule()["keep"]) == 5


def test_a_student_of_a_sampler_that_makes_other_steps_is_refused_before_anything_is_recorded(
    room, tmp_path
):
    with pytest.raises(ValueError, match="HeunDiscreteScheduler makes 5 of 3"):
        prepare_student(tmp_path, room, Recipe(steps=2))


def test_records_and_captions_say_how_many_steps_were_made(room, tmp_path):
    sampling = sampling_of(room.model)
    room.pipe.scheduler.set_timesteps(sampling.steps)
    assert _calls(room.pipe, sampling) == {"calls": 5} and not _calls(
        room.pipe, replace(sampling, steps=5)
    )
    run = write_run(tmp_path / "run")
    path = run / "cells" / key_of("dit-tiny", "none") / "record.json"
    told = json.loads(path.read_text())
    for calls in (None, 39):
        if calls:
            path.write_text(json.dumps(told | {"sampling": told["sampling"] | {"calls": calls}}))
        (section,) = read_sections([run])
        assert ("50 steps, 39 sampler calls" in section.caption("dit-tiny")) is bool(calls)
