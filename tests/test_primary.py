"""Which metrics a model is judged by: on a full-size model ImageReward or a CLIP score."""

import numpy as np
import pytest
from report_runs import edit, lines_of, write_run

from ditbench import reports
from ditbench.analysis.primary import primary_metrics, primary_of
from ditbench.metrics.table import metrics
from ditbench.records.scores import Scores, write_file
from ditbench.reports.answers.recommend import Limits, recommend
from ditbench.reports.sections.frontier import frontier
from ditbench.reports.sections.section import read_sections

CLIP, REWARD, FID = "clip100.openai_vit_l14", "imagereward.v1_0", "fid.tf2015.legacy_tf"
N = 64
LOSSES = {
    "none": 0.0, "fewer_steps(steps=25)": 0.9, "fora(interval=3)": 0.3, "int8": 0.0,
    "int8+fora(interval=3)": 0.3,
}  # fmt: skip


def scores(*names):
    return Scores(samples_sha256="", arrays=dict.fromkeys(names, np.zeros(2)))


def test_the_first_in_the_table_that_was_scored_is_primary_of_its_kind():
    usual = ("align.shapes_v1", "fd.shapes_v1")
    assert primary_metrics().names == primary_metrics([scores("psnr.vs_none")]).names == usual
    assert primary_metrics([scores(CLIP)]).names == (CLIP, "fd.shapes_v1")
    features = metrics()[FID].features
    assert primary_metrics([scores(CLIP), scores(REWARD, features)]).names == (REWARD, FID)


def test_every_primary_score_says_what_difference_counts():
    for metric in metrics().values():
        assert (metric.least > 0) == (metric.primary and not metric.statistic)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A run of a full-size model whose only scores are CLIP scores."""
    run = write_run(
        tmp_path_factory.mktemp("full") / "run", models=("pixart-tiny",), n=N,
        stacks=[(stack, "ok") for stack in LOSSES],
    )  # fmt: skip
    edit(run, lambda record: record.update(model="pixart-alpha", world=""))
    edit(run, lambda record: record["flops"].update(flops=1e9), stack="fewer_steps(steps=25)")
    each = np.random.default_rng(0).standard_normal(N)
    for i, (path, stack) in enumerate(
        (run / "scores" / f"{key}.safetensors", stack) for key, stack in keys_of(run).items()
    ):
        noise = 0.1 * np.random.default_rng(i + 1).standard_normal(N)
        values = 31 + each + noise - LOSSES[stack]
        arrays = {CLIP: values, "group": np.arange(N)}
        write_file(path, Scores(samples_sha256="", arrays=arrays, reasons={CLIP: ""}))
    return run


def keys_of(run):
    (section,) = read_sections([run])
    return {key: record["stack"] for key, record in section.records.items()}


def test_a_full_size_model_has_verdicts_and_a_frontier_by_its_clip_score(full_size):
    (section,) = read_sections([full_size])
    rows = {row["stack"]: row for row in section.rows}
    assert primary_of(section.rows).score.name == CLIP
    entries = {stack: row["quality"][CLIP] for stack, row in rows.items()}
    assert all(entry["primary"] and entry["frontier"] is not None for entry in entries.values())
    assert entries["fora(interval=3)"]["verdict"] == "worse" and entries["int8"]["p_holm"] > 0.05
    assert rows["int8"] in frontier(section.rows, CLIP)
    assert not any(row["quality"]["align.shapes_v1"]["primary"] for row in section.rows)


def test_recommend_keeps_to_a_limit_on_the_clip_score_and_states_it(full_size):
    (section,) = read_sections([full_size])
    rows, (sentence,) = recommend(section, Limits(min_alignment=-0.1))
    qualified = [row["stack"] for row in rows if row["qualifies"] == "yes"]
    assert qualified == ["int8"] and "use int8: " in sentence and "CLIP score " in sentence
    assert all("CLIP score minus none" in row for row in rows)
    why = next(row["reason"] for row in rows if row["stack"] == "fora(interval=3)")
    assert why.startswith(f"change of {CLIP} -0.3") and why.endswith("it may be below -0.10")


def test_a_combination_on_a_full_size_model_is_judged_by_the_clip_score(full_size):
    (section,) = read_sections([full_size])
    (row,) = [row for row in section.stacking if row["stack"] == "int8+fora(interval=3)"]
    assert (row["metric"], row["verdict"], row["reason"]) == (CLIP, "stacks", "")
    assert "frechet" not in row
    assert abs(row["alignment"].value) < 0.1 and row["over_flops_control"].value > 0.5


def test_tables_figures_and_terminal_of_a_full_size_model_name_its_score(full_size, capsys):
    report = reports.build([full_size])
    reports.print_report(report)
    assert "CLIP score" in capsys.readouterr().out
    tables = full_size / "report/tables"
    assert "| CLIP score interaction |" in (tables / "stacking.md").read_text()
    assert lines_of(tables / "stacking.csv")[0]["metric"] == CLIP
    page = report.page.read_text()
    assert f'<th scope="col">{CLIP}<br>higher is better</th>' in page
    drawn = {path.name for path in report.files}
    assert "pixart-alpha-quality-against-time.svg" in drawn
    assert (
        f"CLIP score ({CLIP})"
        in (full_size / "report/plots/pixart-alpha-quality-against-time.svg").read_text()
    )
