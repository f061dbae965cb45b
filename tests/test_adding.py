"""`python -m ditbench.reports.publishing --add`: names of published runs, metrics from outside."""

import csv

import numpy as np
import pytest
from report_runs import write_run
from test_families import forget

from ditbench.method.plugins import load_plugin
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores, write_file
from ditbench.reports import build
from ditbench.reports.publishing.__main__ import main
from ditbench.reports.publishing.documents import PUBLISHED

METRIC = """
import sys

import numpy as np
from ditbench.metrics import Metric, register_metric
from ditbench.statistics.frechet import Reference


def refuse(cell, metric):
    return ""


fingerprint = extract = refuse


def reference(world):
    return Reference.through(np.random.default_rng(0).normal(size=(64, 2)))


register_metric(
    Metric(
        name="corner.mmd", family="corner", better="lower", unit="", doc="Of two pixels.",
        needs="", statistic="mmd_spread", features="feature.corner",
    ),
    sys.modules[__name__],
)
"""
"""A plug-in with a statistic of features of its own."""
N = 8


@pytest.fixture
def checkout(tmp_path):
    """A checkout without tables, and in it a run with features of a metric from outside."""
    (tmp_path / "README.md").write_text("No tables.\n")
    (tmp_path / "metric.py").write_text(METRIC)
    run = write_run(tmp_path / "run", n=N)
    drawn = np.random.default_rng(1)
    for key, scores in read_scores(run).items():
        found = {"feature.corner": drawn.normal(size=(N, 2))}
        write_file(RunFolder(run).scores(key), scores.having("corner.mmd", "", "1", found))
    yield tmp_path
    forget()


def values(folder):
    """The metric from outside by stack, as the table of quality has it."""
    build([folder], folder / "report")
    with (folder / "report/tables/quality.csv").open() as file:
        return {
            row["stack"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "corner.mmd" and row["value"]
        }


def test_features_of_an_unknown_metric_are_not_lost_in_silence(checkout, capsys):
    assert main([str(checkout), "--add", str(checkout / "run")]) == 2
    assert "has feature.corner, of which no metric here is made" in capsys.readouterr().err
    assert not (checkout / PUBLISHED).exists()


def test_a_plugin_brings_the_metric_whose_statistics_are_published(checkout, capsys):
    plugin = checkout / "metric.py"
    given = [str(checkout), "--add", str(checkout / "run"), "--plugin", str(plugin)]
    assert main(given) == 0, capsys.readouterr().err
    published = checkout / PUBLISHED / "run"
    scores = read_scores(published)["dit-tiny--none"]
    assert "feature.corner" not in scores.arrays and "corner.mmd@read" in scores.arrays
    load_plugin(plugin)
    whole, small = values(checkout / "run"), values(published)
    assert len(whole) > 2 and whole.keys() == small.keys()
    assert small == pytest.approx(whole)


@pytest.mark.parametrize("name", ["../run", "a b", ".hidden", "a/b"])
def test_the_name_of_a_published_run_is_one_word(checkout, capsys, name):
    assert main([str(checkout), "--add", str(checkout / "run"), "--as", name]) == 2
    assert "is no name for a published run" in capsys.readouterr().err
    assert not (checkout / "reports").exists()


def test_a_plugin_that_declares_nothing_is_an_error(checkout, capsys):
    (checkout / "nothing.py").write_text("")
    assert main([str(checkout), "--plugin", str(checkout / "nothing.py")]) == 2
    assert "nothing.py declares no method, family, model or metric" in capsys.readouterr().err
