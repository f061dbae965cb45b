"""The engine of many machines with Ray itself, where it is installed: nodes that this machine plays."""

from dataclasses import replace

import pytest

from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")

FLAGS = ["--models", "dit-tiny", "--steps", "4", "--num-samples", "192", "--batch-size", "8"]
FLAGS += ["--shard", "16", "--rounds", "1", "--threads", "1", "--methods", "fora"]


def test_a_node_that_is_killed_costs_what_it_was_at(tmp_path):
    from ditbench.testing import lost_node

    local, cluster = tmp_path / "local", tmp_path / "cluster"
    assert lost_node._begin(local, FLAGS).wait() == 0
    result = lost_node.lose_a_node(cluster, FLAGS)
    assert result["exit_code"] == 0 and result["killed_after"] >= 11
    events = result["events"]
    assert events["joined"] == 2 and events["left"] == 1 and events["finished"] == 22
    assert result["made_again"] == events["begun"] - 22 <= 1  # that node has one CPU
    alike = lost_node.compare(local, cluster)
    assert alike == {"files": 24, "differing": [], "statuses": {"ok": 2}}


def test_nodes_that_do_not_share_the_folder_return_what_they_made(tmp_path, monkeypatch):
    from ditbench.runner import remote
    from ditbench.runner.execute import execute
    from ditbench.runner.plan import plan
    from ditbench.runner.spec import Spec
    from ditbench.testing.lost_node import compare

    settings = {
        "models": ("dit-tiny",), "steps": "4", "num_samples": 24, "batch_size": 4, "shard": 8,
        "rounds": 2, "threads": 1,
    }  # fmt: skip
    here = remote.here

    def elsewhere(folder, session):
        return replace(here(folder, session), content="another machine's")

    monkeypatch.setattr(remote, "here", elsewhere)
    for name in ("local", "ray"):
        execute(plan(Spec(**settings, engine=name, out=str(tmp_path / name))), "command")
    assert compare(tmp_path / "local", tmp_path / "ray") == {
        "files": 3, "differing": [], "statuses": {"ok": 1},
    }  # fmt: skip
    log = RunFolder(tmp_path / "ray").ray_log.read_text()
    assert '"shared": false' in log and '"shared": true' not in log
    (record,) = read_run(tmp_path / "ray").records
    assert [(t["round"], t["batch"]) for t in record["timing"]] == [(0, 1), (1, 1)]
    assert "OMP_NUM_THREADS" in record["environment"]["variables"]  # the command's, not Ray's
