"""Whether a run's order of methods is the printed one, where both are known; and the printed tables."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from report_runs import edit, lines_of, write_run
from scipy import stats

from ditbench import ROOT, reports
from ditbench.analysis import printed_cells
from ditbench.analysis.printed_order import COUNTERPART, FIDELITY, printed_order
from ditbench.analysis.printed_tables import PrintedRow, baselines, printed_tables
from ditbench.analysis.readings import draw_again, reading_of
from ditbench.extractors.references import ReferenceSets
from ditbench.method.registry import names
from ditbench.metrics.set_statistics import sets_of
from ditbench.models.family import families
from ditbench.records.record import read_run
from ditbench.records.scores import Scores, read_scores
from ditbench.statistics import ranks
from ditbench.statistics.ranks import bootstrap, pairs_of, permutation_p, tau_b

N = 64
SCORE, DISTANCE = "align.shapes_v1", "perceptual.shapes_v1"
TABLE = replace(
    printed_tables()[0], id="made up", family="dit", steps=50, like="score", metric="ImageReward",
    better="higher", compute="FLOPs", baseline=1.0,
)  # fmt: skip


def all_pairs(reference, measure=0):
    signs = np.sign(np.subtract.outer(reference, reference))
    return pairs_of(
        [(i, j, measure, signs[i, j]) for i, j in itertools.combinations(range(len(reference)), 2)]
    )


@pytest.mark.parametrize("seed", range(8))
def test_over_all_pairs_tau_is_the_usual_tau_b_ties_too(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, (2, 7)).astype(float)
    pairs = all_pairs(x)
    assert tau_b(pairs.order, pairs.order_by(y[:, None])) == pytest.approx(
        stats.kendalltau(x, y).statistic
    )


def test_the_permutation_test_is_exact_and_agrees_with_scipys():
    x, y = np.arange(6.0), np.array([1.0, 0, 2, 4, 3, 5])
    exact = stats.kendalltau(x, y, method="exact").pvalue
    assert permutation_p(all_pairs(x), y[:, None]) == pytest.approx(exact)
    # four methods in one order: two of 24 ways are as far from chance
    assert permutation_p(all_pairs(x[:4]), x[:4, None]) == pytest.approx(2 / 24)


def test_where_ways_are_too_many_they_are_drawn(monkeypatch):
    x, y = np.arange(7.0), np.array([1.0, 0, 2, 4, 3, 6, 5])
    exact = permutation_p(all_pairs(x), y[:, None])
    monkeypatch.setattr(ranks, "EXACT", 100)
    assert permutation_p(all_pairs(x), y[:, None]) == pytest.approx(exact, abs=0.01)


def test_values_are_exchanged_within_what_pairs_join_and_by_units():
    # two tables of two methods: four ways, of which this and its mirror are as extreme
    apart = pairs_of([(0, 1, 0, 1), (2, 3, 0, 1)])
    values = np.array([[2.0], [1], [2], [1]])
    assert permutation_p(apart, values) == pytest.approx(2 / 4)
    # items 0 and 1 are one method at two settings: three units, six ways
    pairs = pairs_of([(0, 2, 0, 1), (1, 2, 0, 1), (0, 3, 0, 1), (1, 3, 0, 1), (2, 3, 0, 1)])
    values = np.array([[4.0], [3.5], [2], [1]])
    assert permutation_p(pairs, values, [0, 0, 1, 2]) == pytest.approx(2 / 6)
    assert permutation_p(pairs, values) < 2 / 6


def test_nothing_but_ties_has_no_tau():
    pairs = all_pairs(np.zeros(4))
    assert np.isnan(tau_b(pairs.order, pairs.order_by(np.arange(4.0)[:, None])))
    assert permutation_p(pairs, np.arange(4.0)[:, None]) is None


def test_a_bootstrap_draws_methods_again_and_samples():
    x = np.arange(6.0)
    pairs = all_pairs(x)
    drawn = np.repeat(np.array([1.0, 0, 2, 4, 3, 5])[None, :, None], 3000, axis=0)
    taus = bootstrap(pairs, drawn, [0] * 6)
    low, high = np.nanpercentile(taus, (2.5, 97.5))
    # n (n - 1) / 2 pairs of six methods, two of them swapped: 11 / 15 as observed
    assert low < 11 / 15 < high <= 1 and np.nanmean(taus) == pytest.approx(11 / 15, abs=0.05)
    alone = bootstrap(pairs, np.repeat(x[None, :, None], 200, axis=0), [0] * 6)
    assert np.nanmin(alone) == np.nanmax(alone) == 1
    # of two groups each keeps as many as it has
    two = pairs_of([(0, 1, 0, 1), (2, 3, 0, -1)])
    taus = bootstrap(two, np.repeat(x[None, :4, None], 400, axis=0), [0, 0, 1, 1])
    assert set(np.unique(taus[~np.isnan(taus)])) <= {-1.0, 0.0, 1.0} and np.isnan(taus).any()


def test_a_mean_drawn_again_has_the_spread_of_its_standard_error():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.2, 400)
    group = np.repeat(np.arange(200), 2)
    scores = Scores(samples_sha256="", arrays={SCORE: values, "group": group})
    reading = reading_of(SCORE, {}, scores, sets_of(None, None))
    assert reading.value == pytest.approx(values.mean()) and len(reading.parts) == 200
    again = draw_again({0: reading}, seed=1, draws=4000)[0]
    pairs_mean = values.reshape(200, 2).mean(axis=1)
    assert again.std() == pytest.approx(pairs_mean.std() / np.sqrt(200), rel=0.05)
    broken = Scores(samples_sha256="", arrays={SCORE: values * np.nan, "group": group})
    assert reading_of(SCORE, {}, broken, sets_of(None, None)) is None


METHODS = ("fora", "toca", "duca", "taylorseer", "teacache")


def cell(name, speedup, model="dit-tiny", **knobs):
    methods = [] if name == "none" else [{"name": name, "knobs": knobs, "family": "cache"}]
    stack = name + (f"({', '.join(f'{k}={v!r}' for k, v in knobs.items())})" if knobs else "")
    return {
        "key": f"{model}--{stack}", "model": model, "family": "dit", "stack": stack, "status": "ok",
        "methods": methods, "flops": {"flops": 1000 / speedup}, "run": {},
        "sampling": {"steps": 20, "guidance": 3.0, "height": 64, "width": 64, "frames": 1, "text_tokens": 0},
    }  # fmt: skip


def scored(score, distance, seed):
    noise = np.random.default_rng(seed).normal(0, 0.02, (2, N))
    arrays = {SCORE: score + noise[0], DISTANCE: distance + noise[1], "group": np.arange(N)}
    return Scores(samples_sha256="", arrays=arrays)


def run(quality, speedups=None):
    """Records and scores of methods with these mean scores, the perceptual distance in the opposite
    order."""
    records, scores = [cell("none", 1)], {"dit-tiny--none": scored(0.95, 0.0, 0)}
    for i, (name, value) in enumerate(quality.items()):
        records.append(cell(name, (speedups or {}).get(name, 2.0)))
        scores[records[-1]["key"]] = scored(value, value, i + 1)
    return records, scores


@pytest.fixture
def printed(monkeypatch):
    def to(values, speedups=None, **changes):
        rows = tuple(
            PrintedRow(
                printed=f"{name} as printed", method=name, value=value,
                speedup=(speedups or {}).get(name, 2.0),
            )
            for name, value in values.items()
        )  # fmt: skip
        monkeypatch.setattr(
            printed_cells, "printed_tables", lambda: (replace(TABLE, rows=rows, **changes),)
        )

    return to


def test_the_same_order_is_a_tau_of_one_and_the_opposite_of_minus_one(printed):
    order = dict(zip(METHODS, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    printed(order)
    found = printed_order(*run(order))
    (table,) = found.tables
    ours = table.agreement[COUNTERPART]
    assert (ours.tau, ours.methods, ours.pairs, ours.agree, ours.disagree) == (1, 5, 10, 10, 0)
    assert ours.p == pytest.approx(2 / 120) and ours.settled == (10, 0)
    assert table.metrics == {COUNTERPART: SCORE, FIDELITY: DISTANCE}
    # the distance grows with the score here, and lower is better
    assert table.agreement[FIDELITY].tau == -1
    assert found.overall == found.families["dit"] == table.agreement
    assert [e.row.method for e in table.entries] == list(METHODS)
    printed(order, better="lower")
    (table,) = printed_order(*run(order)).tables
    assert table.agreement[COUNTERPART].tau == -1
    assert all(not pair.agrees(COUNTERPART) and pair.settled(COUNTERPART) for pair in table.pairs)


def test_one_swapped_neighbour_costs_what_kendall_says_and_a_tie_is_no_pair_of_either(printed):
    printed(dict(zip(METHODS, (0.9, 0.8, 0.7, 0.6, 0.6), strict=True)))
    quality = dict(zip(METHODS, (0.8, 0.9, 0.7, 0.6, 0.5), strict=True))
    (table,) = printed_order(*run(quality)).tables
    ours = table.agreement[COUNTERPART]
    expected = stats.kendalltau((0.9, 0.8, 0.7, 0.6, 0.6), list(quality.values())).statistic
    assert ours.tau == pytest.approx(expected)
    assert (ours.pairs, ours.agree, ours.disagree) == (10, 8, 1)
    assert ours.low < expected <= ours.high
    (tie,) = (pair for pair in table.pairs if not pair.gap)
    assert tie.agrees(COUNTERPART) is None
    (swapped,) = (pair for pair in table.pairs if pair.agrees(COUNTERPART) is False)
    assert {swapped.first.row.method, swapped.second.row.method} == {"fora", "toca"}


def test_noise_of_the_samples_widens_the_interval_and_leaves_pairs_unsettled(printed):
    order = dict(zip(METHODS, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    printed(order)
    close = {name: 0.7 + 1e-5 * value for name, value in order.items()}
    (table,) = printed_order(*run(close)).tables
    ours = table.agreement[COUNTERPART]
    assert sum(ours.settled) < 5 and ours.high - ours.low > 0.8


def test_only_methods_at_alike_compute_are_compared(printed):
    order = dict(zip(METHODS, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))

    def compared():
        found = printed_order(*run(order, ours))
        pairs = found.tables[0].pairs if found else ()
        return {frozenset((p.first.row.method, p.second.row.method)) for p in pairs}

    everything = {frozenset(two) for two in itertools.combinations(METHODS, 2)}
    ours = {}
    printed(order, {"fora": 2.45})
    assert compared() == everything
    printed(order, {"fora": 2.55})  # printed by more than a quarter apart
    assert compared() == {two for two in everything if "fora" not in two}
    printed(order)
    ours = {"fora": 2.55}  # here
    assert compared() == {two for two in everything if "fora" not in two}
    printed(order, dict.fromkeys(METHODS, 3.1))
    ours = {}
    assert compared() == set()  # our cells are too far from what is printed
    printed(order, dict.fromkeys(METHODS, 2.9))
    assert compared() == everything


def test_of_several_cells_of_a_method_the_nearest_in_compute_stands_for_a_row(printed):
    order = dict(zip(METHODS[:3], (0.9, 0.8, 0.7), strict=True))
    printed(order)
    records, scores = run(order)
    for name, speedup, knobs in (
        ("fora", 2.2, {"interval": 4}),  # farther
        ("diffsparse", 2.0, {"allocator": "uniform"}),  # a variant
        ("diffsparse", 2.0, {"training": 1}),  # a further training
    ):
        records.append(cell(name, speedup, **knobs))
        scores[records[-1]["key"]] = scored(0.1, 0.1, 9)
    printed(order | {"diffsparse": 0.95})
    (table,) = printed_order(records, scores).tables
    assert [e.stack for e in table.entries] == ["fora", "toca", "duca"]
    assert table.agreement[COUNTERPART].tau == 1
    assert table.agreement[COUNTERPART].low is None  # three methods: no interval


def test_one_method_or_none_is_no_order(printed):
    records, scores = run({"fora": 0.9, "toca": 0.8})
    printed({"fora": 0.9})
    assert printed_order(records, scores) is None
    printed({"int8": 0.9, "toca": 0.8})
    assert printed_order(records, scores) is None
    printed({"fora": 0.9, "toca": 0.8}, family="wan")
    assert printed_order(records, scores) is None
    printed({"fora": 0.9, "toca": 0.8})
    assert printed_order(records[1:], scores) is None  # without its baseline
    assert printed_order(records, {}) is None
    two = printed_order(records, scores).overall[COUNTERPART]
    assert (two.tau, two.p, two.pairs, two.agree) == (None, None, 1, 1)


def test_a_cell_without_the_metric_is_in_no_pair(printed):
    order = dict(zip(METHODS[:4], (0.9, 0.8, 0.7, 0.6), strict=True))
    printed(order)
    records, scores = run(order)
    left = {k: v for k, v in scores["dit-tiny--fora"].arrays.items() if k != SCORE}
    scores["dit-tiny--fora"] = Scores(samples_sha256="", arrays=left)
    (table,) = printed_order(records, scores).tables
    assert "fora" not in {e.row.method for e in table.entries} and len(table.pairs) == 3


def test_the_printed_tables_say_where_every_figure_is_from():
    tables = printed_tables()
    assert len({t.id for t in tables}) == len(tables) >= 15
    for table in tables:
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", table.source), table.id
        assert table.place and table.read in ("source", "note") and table.model
        assert table.family in families() and table.better in ("higher", "lower")
        assert table.compute in ("FLOPs", "time")
        assert len({row.method for row in table.rows}) > 1, table.id
        for row in table.rows:
            assert row.method in names(), row
            assert 1 < row.speedup < 10 and np.isfinite(row.value), row
    assert {t.family for t in tables} == {"dit", "pixart", "flux", "wan"}


def test_the_same_model_is_printed_differently_by_different_papers():
    table = next(t for t in printed_tables() if t.id == "HyCa, FLUX.1-dev")
    values = baselines(table)
    assert len(values) == 3 and max(values.values()) - min(values.values()) == pytest.approx(0.0514)
    assert not baselines(replace(table, baseline=None)) and not baselines(
        replace(table, steps=None)
    )


def test_a_report_has_tables_a_figure_and_a_fold_for_it(tmp_path):
    stacks = [(name, "ok") for name in ("none", "fora", "taylorseer", "teacache", "noop")]
    run = write_run(tmp_path / "run", models=("dit-tiny", "flux-tiny"), stacks=stacks, n=40)

    def as_wanted(r):
        r["flops"]["flops"] = 1e9 if r["stack"] == "none" else 0.36e9
        for m in r["methods"]:
            m["knobs"] = {}

    edit(run, as_wanted)
    report = reports.build([run])
    tables = report.out / "tables"
    lines = lines_of(tables / "printed_pairs.csv")
    assert {line["table"] for line in lines} >= {"TaylorSeer, DiT-XL/2", "HyCa, FLUX.1-dev"}
    for line in lines:
        assert line["source"].startswith("arXiv:") and line["tokens"] == "4"
        assert float(line["printed_gap"]) >= 0
        assert bool(line["may_be"]) == (line["counterpart_agrees"] == "False")
    of_tables = lines_of(tables / "printed.csv")
    assert [line["family"] for line in of_tables][-3:] == ["dit", "flux", "all"]
    assert sum(int(line["counterpart_pairs"]) for line in of_tables[:-3]) == len(lines)
    assert int(of_tables[-1]["counterpart_pairs"]) == len(lines)
    assert "tau" in (tables / "printed.md").read_text()
    for model in ("dit-tiny", "flux-tiny"):
        with Image.open(report.out / "plots" / f"{model}-printed-order.png") as drawn:
            assert drawn.width > 1000
    page = report.page.read_text()
    assert "Beside the printed tables" in page and "printed_pairs.csv" in page


def test_a_run_that_matches_no_table_has_none_of_it(tmp_path):
    report = reports.build([write_run(tmp_path / "run")])
    assert not [path for path in report.files if "printed" in path.name]
    assert not any(section.printed for section in report.sections)
    assert "printed tables" not in report.page.read_text()


@pytest.fixture(scope="module")
def published():
    made = {}
    for name in ("2026-11-27-matched", "2026-11-26-cpu-matched", "2026-11-26-cpu"):
        folder = ROOT / "reports" / "published" / name
        run = read_run(folder)
        scores = read_scores(folder, run.records)
        made[name] = printed_order(run.records, scores, sets_of_run=ReferenceSets(folder))
    return made


def test_the_documents_state_what_the_published_runs_give(published):
    matched, *others = (of.overall for of in published.values())
    first, fidelity = matched[COUNTERPART], matched[FIDELITY]
    words = " ".join((ROOT / "README.md").read_text().split())
    assert f"of {first.pairs} pairs of methods in authors' tables, {first.agree} are" in words
    assert f"by perceptual distance {fidelity.agree} (" in words
    words = " ".join((ROOT / "reports" / "published" / "README.md").read_text().split())
    for of in (of for overall in (matched, *others) for of in overall.values()):
        said = f"{of.tau:.2f} [{of.low:.2f}, {of.high:.2f}]"
        assert said in words and f"{of.agree} of {of.pairs}" in words, said
        assert f"p = {of.p:.2f}" in words
