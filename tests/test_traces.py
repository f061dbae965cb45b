"""What a stack leaves behind is noticed by the runner: its record says so, and what runs after it
has a fresh process."""

import threading

import pytest
import torch
from command import command
from safetensors.numpy import load_file

from ditbench.analysis.summary import summarise
from ditbench.method.traces import Unchanged
from ditbench.records.record import read_run
from ditbench.reports.sections.rows import report_rows
from ditbench.testing.subjects import KINDS, tiny

LEAVING = '''
import torch

from ditbench.method import Stage, method

DECLARED = dict(family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})

def louder(module, inputs, output):
    louder = output[0] * 1.05
    return (louder, *output[1:]) if isinstance(output, tuple) else type(output)(louder)

@method("hooks", **DECLARED)
class Hooks:
    """Leaves a hook that scales the output."""
    def attach(self, pipeline, at):
        pipeline.transformer.register_forward_hook(louder)
        at.count("attached")

@method("refuses_late", **DECLARED)
class RefusesLate:
    """Is refused, and leaves a hook in looking at the pipeline."""
    def check(self, pipeline):
        pipeline.transformer.register_forward_hook(louder)
        return "never fits"
    def attach(self, pipeline, at):
        pass

@method("globals", **DECLARED)
class Globals:
    """Leaves settings of torch."""
    def attach(self, pipeline, at):
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(True, warn_only=True)
        at.count("attached")

@method("scales", **DECLARED)
class Scales:
    """Leaves a weight that was written to."""
    def attach(self, pipeline, at):
        next(pipeline.transformer.parameters()).mul_(1.5)
        at.count("attached")

@method("draws", **DECLARED)
class Draws:
    """Takes random numbers that nobody seeded, which is no trace."""
    def attach(self, pipeline, at):
        at.reroute(at.sublayers[0], lambda run, hidden: (at.count("runs"), run() + 0.1 * torch.rand(()))[1])
'''
QUICK = ["--models", "dit-tiny", "--num-samples", "4", "--batch-size", "2", "--rounds", "1",
         "--steps", "4"]  # fmt: skip
LEFT = {
    "hooks": "transformer._forward_hooks",
    "refuses_late": "transformer._forward_hooks",
    "globals": "torch.get_num_threads",
    "scales": "transformer.pos_embed.proj.weight",
}
STACKS = ",".join([*LEFT, "draws", "fora", "fewer_steps(steps=2)"])


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "leaving.py"
    path.write_text(LEAVING)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, plugin):
    """The same stacks in processes of their own and in shared ones, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for process in ("cell", "round"):
        done = command(
            "run", *QUICK, "--plugin", plugin, "--methods", STACKS, "--process", process,
            "--out", folder / process,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    return {process: read_run(folder / process) for process in ("cell", "round")}


def samples(run):
    return {
        path.parent.name: load_file(path)["samples"].tobytes()
        for path in run.folder.glob("cells/*/samples.safetensors")
    }


def test_the_record_of_the_stack_that_left_it_says_what(runs):
    for run in runs.values():
        of = {record["stack"]: record for record in run.records}
        for stack, name in LEFT.items():
            assert name in of[stack]["left_behind"], of[stack]
        clean = [stack for stack, record in of.items() if "left_behind" not in record]
        assert sorted(clean) == ["draws", "fewer_steps(steps=2)", "fora", "none"]
        assert of["refuses_late"]["status"] == "refused"
        assert {of[s]["status"] for s in of if s != "refuses_late"} == {"ok"}


def test_what_runs_after_it_has_a_fresh_process(runs):
    """Samples, threads and settings of every cell are those it has in a process of its own."""
    own, shared = samples(runs["cell"]), samples(runs["round"])
    assert len(own) == 7 and own == shared
    for stack in ("none", "fora", "draws"):
        one, two = (
            next(r for r in run.records if r["stack"] == stack)["environment"]["threads"]
            for run in runs.values()
        )
        assert one == two


def test_a_row_says_that_its_stack_left_something(runs):
    run = runs["round"]
    records = {record["key"]: record for record in run.records}
    notes = {
        row["stack"]: " ".join(row["notes"])
        for row in report_rows(summarise(run.records, {}), records, "run")
    }
    for stack, name in LEFT.items():
        part = f"left a changed {records_of(run, stack)['left_behind'][0]}"
        assert part in notes[stack] and "fresh process" in notes[stack], name
    assert "left a changed" not in notes["fora"]


def records_of(run, stack):
    return next(record for record in run.records if record["stack"] == stack)


def first_linear(pipeline):
    modules = pipeline.transformer.named_modules()
    return next((name, m) for name, m in modules if isinstance(m, torch.nn.Linear))


def patched_class(pipeline):
    cls = type(pipeline.transformer)
    before = cls.forward
    cls.forward = lambda *args, **kwargs: before(*args, **kwargs)
    return lambda: setattr(cls, "forward", before)


def patched_function(pipeline):
    import torch.nn.functional as F

    before = F.linear
    F.linear = lambda *args: before(*args)
    return lambda: setattr(F, "linear", before)


def lingering_thread(pipeline):
    end = threading.Event()
    threading.Thread(target=end.wait).start()
    return end.set


def setting(get, put, value):
    def change(pipeline):
        before = get()
        put(value)
        return lambda: put(before)

    return change


def of_module(change):
    def changed(pipeline):
        return change(first_linear(pipeline)[1])

    return changed


def of_data(linear):
    linear.weight.data.mul_(2.0)


def swapped(pipeline):
    path, linear = first_linear(pipeline)
    parent, _, name = path.rpartition(".")
    other = torch.nn.Linear(linear.in_features, linear.out_features)
    other.load_state_dict(linear.state_dict())
    setattr(pipeline.transformer.get_submodule(parent), name, other)


LEAVINGS = {
    "weight written to": (of_module(lambda m: m.weight.add_(1e-3)), "weight"),
    "one value written to": (of_module(lambda m: m.weight[-1, -1].add_(1.0)), "weight"),
    "values changed behind torch's back": (of_module(of_data), "weight"),
    "other data": (of_module(lambda m: setattr(m.weight, "data", m.weight + 1)), "weight"),
    "another parameter": (
        of_module(lambda m: setattr(m, "weight", torch.nn.Parameter(m.weight.clone()))),
        "weight",
    ),
    "buffer": (of_module(lambda m: m.register_buffer("more", torch.ones(2))), "more"),
    "a hook": (
        of_module(lambda m: m.register_forward_pre_hook(lambda *_: None) and None),
        "_forward_pre_hooks",
    ),
    "a module in the place of one": (swapped, "transformer."),
    "training mode": (lambda p: p.transformer.train(not p.transformer.training) and None, "training"),
    "a function on an object": (
        lambda p: setattr(p.scheduler, "step", p.scheduler.step), "scheduler.step",
    ),
    "a part": (lambda p: setattr(p, "scheduler", type(p.scheduler)()), "scheduler"),
    "a class": (patched_class, "forward"),
    "a function of torch": (patched_function, "torch.nn.functional.linear"),
    "a thread": (lingering_thread, "threads"),
    "threads": (setting(torch.get_num_threads, torch.set_num_threads, 3), "torch.get_num_threads"),
    "dtype": (
        setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        "torch.get_default_dtype",
    ),
    "TF32": (
        setting(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
        ),
        "torch.get_float32_matmul_precision",
    ),
    "deterministic": (
        setting(
            torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
        ),
        "torch.are_deterministic_algorithms_enabled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVINGS)
def test_every_kind_of_change_is_seen(name):
    change, part = LEAVINGS[name]
    pipeline = tiny("dit").pipeline
    with torch.inference_mode():
        unchanged = Unchanged(pipeline)
        assert unchanged.left() == []
        back = change(pipeline)
        try:
            left = unchanged.left()
        finally:
            if callable(back):
                back()
    assert any(part in found for found in left), left


def test_a_thread_that_ends_is_nothing_left_behind():
    """Libraries that load weights in threads do not wait for them to end."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    with torch.inference_mode():
        unchanged = Unchanged(tiny("dit").pipeline)
        end.set()
        thread.join()
        assert unchanged.left() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_call_and_weights_put_back_are_no_change(kind):
    subject = tiny(kind)
    weight = next(subject.pipeline.transformer.parameters())
    with torch.inference_mode():
        unchanged = Unchanged(subject.pipeline)
        subject.generate(subject.sampling, [0])
        before = weight.clone()
        weight.zero_()
        weight.copy_(before)  # written to twice, and what it was
        subject.generate(subject.sampling, [0])
        assert unchanged.left() == []


def test_weights_that_nothing_wrote_to_are_not_added_up_again(monkeypatch):
    from ditbench.method import traces

    unchanged, added_up = Unchanged(tiny("flux").pipeline), []
    total = traces._total
    monkeypatch.setattr(traces, "_total", lambda tensor: added_up.append(tensor) or total(tensor))
    unchanged.left()
    assert not added_up
    weight = next(unchanged.pipeline.transformer.parameters())
    with torch.inference_mode():
        weight.add_(1)
        unchanged.left()
    assert [tensor is weight for tensor in added_up] == [True]
