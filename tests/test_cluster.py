"""The engine of many machines: the samples of one machine, what becomes of nodes that are lost or
unlike the others, and what runs beside what. Threads stand for nodes; with Ray itself in the slow
suite."""

import json
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from fake_cluster import FakeCluster, node

from ditbench.records.record import read_record, read_run
from ditbench.records.run_folder import RunFolder
from ditbench.runner import members, remote
from ditbench.runner.execute import execute
from ditbench.runner.plan import plan
from ditbench.runner.ray_engine import RayEngine
from ditbench.runner.resume import with_threads
from ditbench.runner.spec import Spec, from_table

SETTINGS = {
    "models": ("dit-tiny",), "methods": ("fora",), "steps": "4", "num_samples": 24, "batch_size": 4,
    "shard": 8, "rounds": 2, "threads": 1,
}  # fmt: skip


def cells_of(out, **settings):
    return plan(Spec(**SETTINGS | {"out": str(out)} | settings))


def files_of(out):
    """The samples files of a run, by path."""
    return {path.relative_to(out): path.read_bytes() for path in RunFolder(out).all_shards()}


def log_of(out):
    lines = RunFolder(out).ray_log.read_text().splitlines()
    return [json.loads(line) for line in lines]


def on(cluster, out, **settings):
    said = []
    cells = cells_of(out, **settings)
    execute(cells, "command", lambda step: said.append(step.finished), engine=RayEngine(cluster))
    assert cluster.closed
    return [text for text in said if text]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The run by processes of one machine."""
    out = tmp_path_factory.mktemp("local") / "run"
    execute(cells_of(out), "command")
    assert {r["status"] for r in read_run(out).records} == {"ok"} and len(files_of(out)) == 6
    return out


def without(out, target, *, shards=(), rounds=False):
    """A copy of a run without its records, some shards, and perhaps its second rounds."""
    import shutil

    shutil.copytree(out, target)
    folder = RunFolder(target)
    for record in read_run(out).records:
        key = record["key"]
        folder.record(key).unlink()
        for number in shards:
            folder.shard_document(key, number).unlink()
            folder.shard(key, number).unlink()
        if rounds:
            folder.round(key, 1).unlink()
    return target


def test_samples_are_those_of_one_machine_and_a_round_has_its_node_alone(here, tmp_path):
    out, cluster = tmp_path / "run", FakeCluster(node("a", cpus=2.0), node("b", cpus=2.0))
    on(cluster, out)
    assert files_of(out) == files_of(here)
    for record in read_run(out).records:
        assert record["status"] == "ok"
        assert [(t["round"], t["batch"]) for t in record["timing"]] == [(0, 1), (1, 1)]
    measured = {place for name, place, *_ in cluster.submitted if name == "measure"}
    assert len(measured) == 1  # a model's rounds are on one node
    beside = [names for of_node in cluster.most.values() for names in of_node]
    assert all(names == ["measure"] for names in beside if "measure" in names)
    took = {(name, cpus, gpus) for name, _, cpus, gpus, _ in cluster.submitted}
    assert took == {("probe", 0.0, 0.0), ("measure", 2.0, 0.0), ("make_shard", 1.0, 0.0)}
    assert all(memory >= 1e9 for name, *_, memory in cluster.submitted if name == "make_shard")
    events = [line["event"] for line in log_of(out)]
    assert events.count("begun") == events.count("finished") == 4 and "lost" not in events
    assert not list(out.glob(".nodes-*")) and not list(out.rglob("*.partial"))


def test_the_same_command_again_begins_nothing(here):
    before = files_of(here)
    cluster = FakeCluster()  # it is not even connected to
    execute(cells_of(here), "command", engine=RayEngine(cluster))
    assert not cluster.submitted and not cluster.closed and files_of(here) == before


def test_a_lost_node_costs_what_it_was_at_and_no_more(here, tmp_path):
    out = without(here, tmp_path / "run", shards=(1, 2))
    cluster = FakeCluster(
        node("a"), node("b"),
        when=lambda name, _, number: "node" if (name, number) == ("make_shard", 1) else None,
    )  # fmt: skip
    said = on(cluster, out)
    assert files_of(out) == files_of(here)
    events = [line["event"] for line in log_of(out)]
    assert events.count("finished") == 4 and events.count("begun") == 4 + events.count("lost")
    assert events.count("lost") in (1, 2) and events.count("left") == 1
    assert any("is lost: its node died" in text for text in said)


def test_results_come_over_the_cluster_where_nodes_do_not_share_the_folder(
    here, tmp_path, monkeypatch
):
    out = without(here, tmp_path / "run", shards=(1, 2), rounds=True)
    monkeypatch.setattr(remote.Place, "shared", False)
    returned = []
    deliver = remote.deliver
    monkeypatch.setattr(
        remote, "deliver", lambda files, folder: (returned.append(files), deliver(files, folder))
    )
    on(FakeCluster(node("a"), node("b")), out)
    assert files_of(out) == files_of(here)
    names = sorted(name.rpartition("/")[2] for files in returned for name in files)
    assert names == sorted(
        2 * ["00001.tar", "00001.json", "00002.tar", "00002.json", "round-1.json"]
    )
    assert all(next(reversed(files)).endswith(".json") for files in returned)  # documents last


def test_a_round_whose_node_is_lost_is_timed_on_another_beside_the_baseline(here, tmp_path):
    out = without(here, tmp_path / "run", rounds=True)
    cluster = FakeCluster(
        node("a"), node("b"),
        when=lambda name, _, number: "node" if (name, number) == ("measure", 1) else None,
    )  # fmt: skip
    on(cluster, out)
    records = {r["stack"]: r for r in read_run(out).records}
    of_round = {
        stack: {t["session"] for t in record["timing"] if t["round"] == 1}
        for stack, record in records.items()
    }
    assert of_round["none"] & of_round["fora"], "no command has timed both"
    first, lost, *rest = [place for name, place, *_ in cluster.submitted if name == "measure"]
    assert first == lost and set(rest) == {"a", "b"} - {lost}


@pytest.mark.parametrize(("what", "most"), [("process", 2), ("node", 3)])
def test_a_shard_that_ends_its_process_or_node_too_often_has_failed(here, tmp_path, what, most):
    out = without(here, tmp_path / "run", shards=(1,))
    nodes = [node(name) for name in "abcdefg"]
    on(FakeCluster(*nodes, when=lambda name, *_: what if name == "make_shard" else None), out)
    for record in read_run(out).records:
        assert record["status"] == "failed"
        assert record["reason"] == f"shard 1: its {what} died, {most} times"


def test_a_shard_that_kills_its_process_fails_with_the_signal(here, tmp_path):
    out = without(here, tmp_path / "run", shards=(1,))
    killed = "its process was killed by SIGKILL (out of memory, most often)"
    ended = remote.Outcome(ended=killed, seconds=1.0)
    on(FakeCluster(node("a"), when=lambda name, *_: ended if name == "make_shard" else None), out)
    assert {r["reason"] for r in read_run(out).records} == {f"shard 1: {killed}, 2 times"}


def test_a_shard_that_takes_too_long_has_failed_at_once(here, tmp_path):
    out = without(here, tmp_path / "run", shards=(1,))
    late = remote.Outcome(ended="its process was killed", late=True, seconds=9.0)
    on(
        FakeCluster(node("a"), when=lambda name, *_: late if name == "make_shard" else None),
        out, time_limit=8,
    )  # fmt: skip
    reasons = {r["reason"] for r in read_run(out).records}
    assert reasons == {"shard 1: it took longer than its time limit of 8 s (--time-limit)"}


def test_a_round_that_ends_its_process_twice_has_failed(tmp_path):
    out = tmp_path / "run"
    cluster = FakeCluster(node("a"), when=lambda name, *_: "process" if name == "measure" else None)
    on(cluster, out, methods=())
    (record,) = read_run(out).records
    assert (record["status"], record["reason"]) == ("failed", "its process died, 2 times")
    assert not [name for name, *_ in cluster.submitted if name == "make_shard"]


def test_a_command_that_is_late_begins_one_thing_and_the_next_goes_on(here, tmp_path, monkeypatch):
    out = without(here, tmp_path / "run", shards=(1, 2))
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("ditbench.runner.execute.time.monotonic", lambda: float(next(clock)))
    on(FakeCluster(node("a")), out, stop_after=1)
    assert len(files_of(out)) == 3
    on(FakeCluster(node("a")), out)
    assert files_of(out) == files_of(here)


def test_an_interrupted_command_ends_its_tasks_and_leaves_the_cluster(here, tmp_path, monkeypatch):
    out = without(here, tmp_path / "run", shards=(1, 2))
    cluster = FakeCluster(node("a"))

    def interrupted(tasks, seconds):
        if any(name == "make_shard" for name, *_ in cluster.submitted):
            raise KeyboardInterrupt
        return FakeCluster.wait(cluster, tasks, seconds)

    monkeypatch.setattr(cluster, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on(cluster, out)
    assert cluster.closed and not list(out.glob(".nodes-*")) and not RunFolder(out).lock.exists()


ENVIRONMENT = {
    "device": "cpu", "processor": "A", "cores": 4,
    "packages": {name: "1.0" for name in members.MATTERING},
}  # fmt: skip


def probe(**environment):
    return remote.Probe(environment=ENVIRONMENT | environment, sources="s", shared=True)


def test_nodes_that_would_make_other_samples_are_refused_by_name():
    packages = ENVIRONMENT["packages"]
    driver = probe()
    assert not members.unlike(driver, probe(processor="B", cores=64))
    assert not members.unlike(driver, probe(packages=packages | {"torch": "1.0+cu130"}))
    other = probe(packages=packages | {"torch": "1.1", "diffusers": None})
    assert members.unlike(driver, other) == "it has torch 1.1, not 1.0, diffusers None, not 1.0"
    assert members.unlike(driver, replace(driver, sources="t")) == (
        "its ditbench has other sources"
    )
    missing = "this machine has no GPU that torch can use, and the device is cuda"
    assert members.unlike(driver, replace(driver, device_missing=missing)) == missing


def test_the_kind_of_a_node_is_what_decides_the_last_bit():
    gpu = ENVIRONMENT | {"device": "H", "packages": {"torch": "1.0+cu130"}}
    assert members.kind_of(ENVIRONMENT) == ("A", "1.0")
    assert members.kind_of(gpu) == ("H", "1.0+cu130")
    kinds = [("B", "1"), ("A", "1"), ("B", "1"), ("A", "1"), ("A", "2")]
    assert members.most_common(kinds) == ("A", "1")
    assert members.most_common(kinds[2:3] * 3 + kinds) == ("B", "1")


def test_nodes_of_the_kind_of_earlier_rounds_are_used_and_others_named(here, tmp_path):
    out = without(here, tmp_path / "run", shards=(1,))
    first = json.loads(RunFolder(here).round(cells_of(here)[0].key, 0).read_text())
    mine = remote.Probe(
        environment=first["environment"], sources=remote.sources_sha256(), shared=False
    )
    odd = replace(mine, environment=first["environment"] | {"processor": "Other"})
    answers = {"a": odd, "b": odd, "c": mine}
    cluster = FakeCluster(
        *map(node, "abc"), when=lambda name, place, _: answers[place] if name == "probe" else None
    )
    said = on(cluster, out)
    assert {place for name, place, *_ in cluster.submitted if name == "make_shard"} == {"c"}
    refused = [text for text in said if "is not used: it is a Other with torch" in text]
    assert sorted(text.split()[1] for text in refused) == ["a", "b"]
    assert files_of(out) == files_of(here)


def test_a_shard_made_where_there_are_more_cores_is_noted(here, tmp_path):
    out = without(here, tmp_path / "run")
    key = cells_of(out)[0].key
    path = RunFolder(out).shard_document(key, 1)
    document = json.loads(path.read_text())
    document["environment"]["cores"] += 60
    path.write_text(json.dumps(document))
    RunFolder(out).round(key, 1).unlink()
    on(FakeCluster(node("a")), out)
    notes = read_record(RunFolder(out).record(key))["notes"]
    assert notes["shards"] == "made in environments that differ in cores"


@pytest.mark.parametrize(
    ("nodes", "why"),
    [((), ""), ((node("head", cpus=0.0),), ""), ((node("a", cpus=1.0),), "fewer than --threads")],
)
def test_a_cluster_without_a_node_that_can_be_used_is_one_sentence(tmp_path, nodes, why):
    said = []
    with pytest.raises(OSError, match="has no node that can be used; the same command goes on"):
        execute(
            cells_of(tmp_path / "run", threads=2), "command",
            lambda step: said.append(step.finished), engine=RayEngine(FakeCluster(*nodes)),
        )  # fmt: skip
    assert why in " ".join(said)


def test_memory_of_shards_is_what_was_measured_or_estimated_and_large_ones_run_alone():
    pool = object.__new__(members.Members)
    small, large = node("a", cpus=4.0, memory=4e9), node("b", cpus=4.0, memory=16e9)
    pool.usable, pool.reserved = {"a": small, "b": large}, set()
    pool.free = {n.id: {"cpus": n.cpus, "gpus": n.gpus, "memory": n.memory} for n in (small, large)}
    need = {"cpus": 1.0, "gpus": 0.0, "memory": 6e9}
    placed = []
    while found := pool.room(need):
        pool.take(need, found)
        placed.append(found.id)
    assert sorted(placed) == ["a", "b", "b"]  # all of the memory of `a`, twice six of `b`
    pool.take(need, large, sign=-1)
    assert pool.room(need) == large and pool.busy(small)


def test_sources_are_those_that_make_samples_and_not_where_they_lie():
    assert remote.sources_sha256() == remote.sources_sha256()
    assert len(remote.sources_sha256()) == 64


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine": "slurm"}, "engine: 'slurm' is none of local, ray"),
        ({"address": "head:6379"}, "address: it is that of a Ray cluster, for --engine ray"),
        ({"engine": "ray", "address": "ray://head:10001"}, "the command has to run on a node"),
        ({"engine": "ray", "workers": 2}, "engine: Ray places the work by itself"),
        ({"engine": "ray", "devices": ["cuda:0"]}, "engine: Ray places the work by itself"),
        ({"engine": "ray", "device": "cuda:1"}, "engine: Ray places the work by itself"),
    ],
)
def test_settings_that_ray_decides_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_table(settings, Spec())


def test_the_engine_changes_neither_key_nor_folder_and_fixes_the_threads(here):
    plain, ray = Spec(models=("dit-tiny",)), Spec(models=("dit-tiny",), engine="ray")
    assert plan(plain)[0].key == plan(ray)[0].key and plain.folder == ray.folder
    assert with_threads(ray).threads == 1 and with_threads(ray).folder == ray.folder
    assert with_threads(Spec(engine="ray", out=str(here))).threads == 1


def test_a_folder_begun_with_all_cores_of_its_machine_is_not_continued_by_many(here, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    spec = json.loads((here / "spec.json").read_text())
    spec["settings"]["threads"] = 0
    (out / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="as many threads as its machine has cores"):
        with_threads(Spec(engine="ray", out=str(out)))


def test_without_ray_there_is_one_sentence_with_the_command(monkeypatch, capsys):
    from ditbench.cli.commands import main
    from ditbench.runner import engines

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert main(["--engine", "ray", "--models", "dit-tiny"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "--engine: Ray is not installed here: pip install -c constraints.txt" in complaint


def test_a_driver_without_a_gpu_plans_for_nodes_with_one():
    from ditbench.runner.engines import devices_elsewhere

    cells = plan(Spec(models=("dit-tiny",), device="cuda", engine="ray"))
    if not cells[0].refusal:
        pytest.skip("this machine has a GPU")
    assert not devices_elsewhere(cells)[0].refusal
    local = plan(Spec(models=("dit-tiny",), device="cuda"))
    assert devices_elsewhere(local)[0].refusal


def test_a_node_writes_to_the_folder_it_shares_and_returns_what_it_does_not(here, tmp_path):
    target = RunFolder(tmp_path / "shared")
    target.path.mkdir()
    place = remote.here(target, "1")
    assert place.shared and not replace(place, content="other").shared
    made = RunFolder(tmp_path / "scratch")
    document = made.round("k", 0)
    document.parent.mkdir(parents=True)
    variables = {"variables": {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "1"}}
    document.write_text(json.dumps({"status": "ok", "environment": variables}))
    files = remote._delivered(replace(place, content="other"), made, [document])
    (content,) = files.values()
    assert json.loads(content)["environment"]["variables"] == {"OMP_NUM_THREADS": "1"}
    assert remote._delivered(place, made, [document]) == {}
    assert target.round("k", 0).read_bytes() == content


def raising(error, task):
    raise error


def test_a_task_that_is_lost_says_whether_by_its_node():
    """By the errors of Ray, where it is installed."""
    exceptions = pytest.importorskip("ray.exceptions")

    from ditbench.runner.cluster import Cluster, Lost

    cluster = object.__new__(Cluster)
    for error, by_node in (
        (exceptions.NodeDiedError("gone\nmore"), True),
        (exceptions.ObjectLostError("00" * 28, "", ""), True),
        (exceptions.WorkerCrashedError(), False),
        (exceptions.OutOfMemoryError("used up"), False),
        (exceptions.RaySystemError(ImportError("No module named 'ditbench'")), False),
    ):
        cluster._ray = SimpleNamespace(exceptions=exceptions, get=partial(raising, error))
        with pytest.raises(Lost) as loss:
            cluster.result(None)
        assert loss.value.node == by_node and "\n" not in str(loss.value)


def test_the_signal_that_stops_a_command_inside_of_ray_is_not_forgotten():
    """Out of a function of Ray comes a KeyboardInterrupt, whatever the handler raised."""
    from ditbench.cli.ending import Stopped, stopped_by_signals
    from ditbench.runner.cluster import Cluster

    def waiting(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise KeyboardInterrupt from None

    cluster = object.__new__(Cluster)
    cluster._ray, cluster._stopped = SimpleNamespace(wait=waiting, shutdown=lambda: None), None
    with stopped_by_signals():
        mine = signal.getsignal(signal.SIGTERM)
        cluster._handlers = {signal.SIGTERM: mine}
        cluster._set_handlers({signal.SIGTERM: cluster._remembering(mine)})
        with pytest.raises(Stopped) as stopped:
            cluster.wait(["task"], 1.0)
        assert stopped.value.number == signal.SIGTERM
        cluster.close()
        assert signal.getsignal(signal.SIGTERM) is mine
