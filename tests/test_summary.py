"""Rows for the report, from synthetic records whose true ratios and differences are known."""

import json

import numpy as np
import pytest

from ditbench.analysis.quality import MEANS
from ditbench.analysis.summary import DRIFT_BOUND, predict, shares, summarise
from ditbench.metrics.table import metrics
from ditbench.records.scores import Scores
from ditbench.statistics.estimates import delta
from ditbench.statistics.frechet import Reference, frechet, read_jackknifed
from ditbench.statistics.mmd import read_mmd_spread
from ditbench.statistics.moments import Moments
from ditbench.statistics.precision_recall import hits, read_recall

N = 40
OWN = [m.name for m in metrics().values() if not m.extractor]
AGAINST = [m.name for m in metrics().values() if m.against_none]
KEYS = {
    "key", "model", "family", "world", "stack", "status", "reason", "methods", "baseline",
    "baseline_key", "num_samples", "batch_size",
    "rounds", "seed", "device", "dtype", "weights", "sampling", "quality", "timing", "share",
    "second_judge", "speedup_call", "speedup_over_compile", "compile_s",
    "speedup_denoise", "speedup_interval", "speedup_flops", "speedup_predicted", "realised",
    "realised_call", "flops", "memory",
    "counters", "operations", "first_call_s", "load_s", "drift", "drift_bound", "suspect", "label", "warnings",
}  # fmt: skip


def timing(denoise_s, *, rounds=3, weather=(1.0, 1.0, 1.0)):
    """Per sample: 0.1 s of text, 0.1 s of decoding, and the loop; batch 0 in every round, two more
    in the first."""
    found = []
    for r in range(rounds):
        for b in range(3 if r == 0 else 1):
            stages = {"text_s": 0.1, "denoise_s": denoise_s, "decode_s": 0.1}
            entry = {name: 8 * s * weather[r] for name, s in stages.items()}
            found.append(
                {"round": r, "batch": b, "size": 8, "call_s": sum(entry.values()), **entry}
            )
    return found


def record(stack, *, model="m", status="ok", denoise_s=0.8, flops=100, requests="r", **told):
    measured = status in ("ok", "inert")
    return {
        "schema": 1, "key": f"{model}--{stack}", "model": model, "family": "pixart",
        "world": "scene", "stack": stack,
        "methods": [] if stack == "none" else [{"name": stack}], "status": status,
        "reason": "" if measured else "because",
        "run": {
            "num_samples": N, "batch_size": 8, "rounds": 3, "seed": 0, "device": "cpu",
            "dtype": "float32", "weights": "bundled",
            "requests_sha256": requests if measured else "",
        },
        "sampling": {"steps": 20} if measured else {}, "environment": {},
        "load_s": 0.5 if measured else None,
        "first_call_s": 9.0 if measured else None, "timing": timing(denoise_s) if measured else [],
        "memory": {"peak_bytes": 7} if measured else {},
        "flops": {"flops": flops} if measured else {},
        "counters": {"fora.reused": 3} if measured else {},
    } | told  # fmt: skip


def scores(seed, shift=0.0, baseline=False):
    r = np.random.default_rng(seed)
    shared = np.random.default_rng(99)
    features = shared.standard_normal((N, 6)) + shift + 0.1 * r.standard_normal((N, 6))
    colour = (shared.random(N) < 0.9 - shift).astype(float)
    shape = np.ones(N)
    arrays = {
        "feature.shapes_v1": features.astype(np.float32), "align.shapes_v1.colour": colour,
        "align.shapes_v1.shape": shape,
        "align.shapes_v1": (colour + shape) / 2, "group": np.arange(N),
    }  # fmt: skip
    reasons = dict.fromkeys(OWN, "not asked") | {
        name: ""
        for name in (
            *AGAINST,
            "align.shapes_v1",
            *(m.name for m in metrics().values() if m.features == "feature.shapes_v1"),
        )
    }
    if baseline:
        reasons |= dict.fromkeys(AGAINST, "this is the baseline itself")
    else:
        arrays |= {name: 0.8 + 0.01 * r.standard_normal(N) for name in AGAINST}
        arrays["mse.vs_none"] = np.append(0.0, 0.02 * r.random(N - 1))
    return Scores(samples_sha256="", arrays=arrays, reasons=reasons)


REFERENCE = Reference.through(np.random.default_rng(1).standard_normal((2000, 6)))


@pytest.fixture(scope="module")
def rows():
    records = [
        record("none"),
        record("fora", denoise_s=0.4, flops=40),
        record("int8", status="refused"),
        record("lonely", model="other"),
    ]
    told = {
        "m--none": scores(0, baseline=True),
        "m--fora": scores(1, 0.3),
        "other--lonely": scores(2),
    }
    return {row["key"]: row for row in summarise(records, told, {"scene": REFERENCE})}


def test_every_row_has_every_key_and_is_plain_json(rows):
    assert len(rows) == 4
    for row in rows.values():
        assert set(row) == KEYS
        assert set(row["quality"]) == set(OWN)
        json.dumps(row, allow_nan=False)


def test_speedups_keep_their_scopes_apart(rows):
    fora = rows["m--fora"]
    assert fora["speedup_denoise"]["value"] == pytest.approx(0.8 / 0.4)
    assert fora["speedup_call"]["value"] == pytest.approx(1.0 / 0.6)
    assert fora["speedup_flops"] == 2.5
    assert fora["speedup_predicted"] == pytest.approx(1 / (0.2 + 0.8 / 2.5))
    assert fora["realised"]["value"] == pytest.approx(2.0 / 2.5)
    assert fora["realised_call"]["value"] == pytest.approx((1.0 / 0.6) * (0.2 + 0.8 / 2.5))
    assert fora["speedup_interval"] == "rounds" and fora["speedup_call"]["n"] == 3
    none = rows["m--none"]
    assert none["speedup_call"]["value"] == none["speedup_flops"] == none["speedup_predicted"] == 1
    assert none["realised"]["value"] == 1


def test_weather_is_taken_out_of_ratios_and_shown_as_drift():
    slow = (1.0, 1.3, 1.1)
    told = [
        record("none", timing=timing(0.8, weather=slow)),
        record("fora", timing=timing(0.4, weather=slow)),
    ]
    row = summarise(told, {}, {})[1]
    assert row["speedup_call"]["high"] - row["speedup_call"]["low"] < 1e-9
    assert (
        row["drift"] == pytest.approx(0.3) and row["suspect"] and row["drift_bound"] == DRIFT_BOUND
    )
    calm = summarise([record("none"), record("fora")], {}, {})[1]
    assert calm["drift"] == pytest.approx(0) and not calm["suspect"]


def test_one_round_has_no_drift_and_its_ratios_say_what_they_rest_on():
    told = [
        record("none", timing=timing(0.8, rounds=1)),
        record("fora", timing=timing(0.4, rounds=1)),
    ]
    row = summarise(told, {}, {})[1]
    assert row["drift"] is None and row["suspect"] is True
    assert (
        row["speedup_interval"] == ""
        and row["speedup_call"]["n"] == 1
        and row["speedup_call"]["low"] is None
    )


def test_times_are_seconds_per_sample_and_shares_add_up(rows):
    none = rows["m--none"]
    assert none["timing"]["denoise_s"]["value"] == pytest.approx(0.8)
    assert none["timing"]["call_s"]["n"] == 3
    fora = rows["m--fora"]
    # one speed-up everywhere
    for name, speedup in (
        ("call_s", "speedup_call"),
        ("denoise_s", "speedup_denoise"),
    ):
        assert none["timing"][name]["value"] / fora["timing"][name]["value"] == pytest.approx(
            fora[speedup]["value"]
        )
    assert none["share"] == pytest.approx({"text": 0.1, "denoise": 0.8, "decode": 0.1})
    assert shares([]) == {"text": None, "denoise": None, "decode": None}


def test_a_prediction_is_amdahls():
    assert predict(1.0, 4.0) == 4
    assert predict(0.5, 1e9) == pytest.approx(2)
    assert predict(0.5, 0.5) == pytest.approx(1 / 1.5)


def test_quality_deltas_are_paired_with_none(rows):
    align = rows["m--fora"]["quality"]["align.shapes_v1"]
    mine, theirs = scores(1, 0.3).arrays, scores(0).arrays
    by_hand = mine["align.shapes_v1"] - theirs["align.shapes_v1"]
    assert align["delta"]["value"] == pytest.approx(by_hand.mean())
    assert align["delta"]["low"] < by_hand.mean() < align["delta"]["high"] < 0.1
    assert align["mde"] == pytest.approx(2.8016 * align["delta"]["se"], rel=1e-4)
    assert set(align["parts"]) == {"colour", "shape"}
    assert align["parts"]["shape"]["value"]["low"] < 1 == align["parts"]["shape"]["value"]["value"]
    assert align["parts"]["colour"]["delta"]["value"] == pytest.approx(2 * by_hand.mean())
    assert align["interval"] == f"{MEANS} over 40 prompts"
    none = rows["m--none"]["quality"]["align.shapes_v1"]
    assert none["delta"] is None and none["delta_reason"] == "this is the baseline itself"
    assert none["value"]["low"] < none["value"]["value"] < none["value"]["high"]


def test_frechet_has_an_interval_on_its_delta_only(rows):
    entry = rows["m--fora"]["quality"]["fd.shapes_v1"]
    mine, theirs = (scores(*a).arrays["feature.shapes_v1"] for a in ((1, 0.3), (0,)))
    assert entry["value"]["value"] == pytest.approx(frechet(mine, REFERENCE))
    assert entry["value"]["low"] is None
    assert 0 < entry["floor"] < entry["value"]["value"]
    assert rows["m--fora"]["quality"]["psnr.vs_none"]["floor"] is None
    unbiased = [read_jackknifed(x, REFERENCE).unbiased for x in (mine, theirs)]
    assert entry["delta"]["value"] == pytest.approx(unbiased[0] - unbiased[1])
    assert entry["level"] == pytest.approx(frechet(theirs, REFERENCE) + entry["delta"]["value"])
    assert entry["delta"]["low"] < entry["delta"]["value"] < entry["delta"]["high"]
    assert "n = 40" in entry["interval"] and entry["better"] == "lower"


def test_fidelity_has_a_value_and_no_delta(rows):
    entry = rows["m--fora"]["quality"]["psnr.vs_none"]
    assert (
        entry["value"]["value"] == pytest.approx(0.8, abs=0.01)
        and entry["value"]["low"] < entry["value"]["high"]
    )
    assert entry["delta"] is None and entry["delta_reason"] == "the value is already against none"
    assert rows["m--none"]["quality"]["psnr.vs_none"]["reason"] == "this is the baseline itself"


def test_pooled_psnr_and_the_number_of_identical_samples_stand_beside_the_mean(rows):
    entry, errors = rows["m--fora"]["quality"]["psnr.vs_none"], scores(1, 0.3).arrays["mse.vs_none"]
    pooled = entry["parts"]["pooled"]["value"]
    assert pooled["value"] == pytest.approx(-10 * np.log10(errors.mean()))
    assert pooled["low"] < pooled["value"] < pooled["high"] and pooled["n"] == N
    assert (
        entry["n_identical"] == 1
        and rows["m--fora"]["quality"]["ssim.vs_none"]["n_identical"] is None
    )


def test_psnr_and_ssim_that_cannot_both_be_true_are_a_warning_of_the_row(rows):
    assert rows["m--fora"]["warnings"] == []
    odd = scores(1)
    odd = Scores(samples_sha256="", arrays=dict(odd.arrays) | {"psnr.vs_none": np.full(N, 28.4), "ssim.vs_none": np.full(N, 0.6)},
                 reasons=odd.reasons)  # fmt: skip
    row = summarise(
        [record("none"), record("fora")], {"m--none": scores(0, baseline=True), "m--fora": odd}, {}
    )[1]
    assert len(row["warnings"]) == 1 and "28.4 dB beside SSIM 0.60" in row["warnings"][0]


def test_a_refused_cell_keeps_its_reason_and_empty_columns(rows):
    row = rows["m--int8"]
    assert (row["status"], row["reason"]) == ("refused", "because")
    assert row["speedup_call"] is row["timing"]["call_s"] is row["speedup_flops"] is None
    assert all(
        e["value"] is None and e["reason"] == "the cell is refused" for e in row["quality"].values()
    )


def test_without_a_baseline_nothing_is_compared(rows):
    row = rows["other--lonely"]
    assert row["baseline_key"] is row["speedup_call"] is row["drift"] is None
    assert row["quality"]["align.shapes_v1"]["value"]["value"] > 0
    assert (
        row["quality"]["align.shapes_v1"]["delta_reason"]
        == "the baseline `none` has no scores in this run"
    )


def test_cells_that_answered_other_requests_are_not_paired():
    told = {"m--none": scores(0, baseline=True), "m--fora": scores(1)}
    row = summarise(
        [record("none"), record("fora", requests="others")], told, {"scene": REFERENCE}
    )[1]
    assert row["baseline_key"] is None and row["quality"]["align.shapes_v1"]["delta"] is None


def test_missing_scores_and_references_are_said(rows):
    unscored = summarise([record("none")], {}, {})[0]["quality"]["align.shapes_v1"]
    assert unscored["value"] is None and unscored["reason"] == "not scored yet"
    entry = summarise([record("none")], {"m--none": scores(0, baseline=True)}, {})[0]["quality"][
        "fd.shapes_v1"
    ]
    assert entry["value"] is None and entry["reason"] == "no reference for the world scene"


# ----------------------------------------------------------------------------------------------
# verdicts


def judged(margins, *, n=N, **cells):
    """Quality by stack and metric of a run whose cells' scores are `scores(*arguments)`."""
    told = {"m--none": scores(0, baseline=True)} | {
        f"m--{name}": scores(*given) for name, given in cells.items()
    }
    rows = summarise([record("none"), *map(record, cells)], told, {"scene": REFERENCE}, margins)
    return {row["stack"]: row["quality"] for row in rows}


def test_every_statistic_of_the_set_has_a_value_and_a_paired_delta():
    found = judged({}, fora=(1, 0.3))["fora"]
    mine, theirs = (scores(*a).arrays["feature.shapes_v1"] for a in ((1, 0.3), (0,)))
    for name, read in (("mmd.shapes_v1", read_mmd_spread), ("recall.shapes_v1", read_recall)):
        values = [read(x, REFERENCE).value for x in (mine, theirs)]
        assert found[name]["value"]["value"] == pytest.approx(values[0])
        assert found[name]["delta"]["value"] == pytest.approx(values[0] - values[1])
        assert (
            found[name]["delta"]["se"] > 0
            and found[name]["mde"] > 0
            and found[name]["floor"] is None
        )
    assert found["recall.shapes_v1"]["interval"] == "halves of 40 prompts, at n = 40"
    hit = [hits(x, REFERENCE) for x in (mine, theirs)]
    assert found["precision.shapes_v1"]["delta"] == delta(*hit, bounds=(0, 1)).as_dict()
    fd = found["fd.shapes_v1"]
    assert fd["se_jackknife"] == pytest.approx(fd["delta"]["se"], rel=0.3)


def test_a_reference_of_moments_alone_leaves_the_kernel_distance_out_and_says_why():
    told = {"m--none": scores(0, baseline=True)}
    held = Reference.of(Moments.of(REFERENCE.features))
    quality = summarise([record("none")], told, {"scene": held})[0]["quality"]
    assert quality["fd.shapes_v1"]["value"]["value"] > 0
    assert "only the moments of this reference were kept" in quality["mmd.shapes_v1"]["reason"]


def test_a_verdict_needs_a_stated_margin_to_say_equivalent():
    wide, none = judged({"fd.shapes_v1": 50.0}, fora=(1, 0.0)), judged({}, fora=(1, 0.0))
    assert wide["fora"]["fd.shapes_v1"]["verdict"] == "equivalent"
    assert wide["fora"]["fd.shapes_v1"]["margin"] == 50
    assert none["fora"]["fd.shapes_v1"]["verdict"] == "inconclusive"
    assert none["fora"]["fd.shapes_v1"]["p_equivalent"] is None
    assert wide["none"]["fd.shapes_v1"]["verdict"] == wide["fora"]["psnr.vs_none"]["verdict"] == ""


def test_what_is_worse_is_called_worse_by_the_metric_s_own_direction():
    found = judged({"fd.shapes_v1": 0.01, "align.shapes_v1": 0.001}, fora=(1, 0.6))["fora"]
    assert found["align.shapes_v1"]["delta"]["value"] < 0 < found["fd.shapes_v1"]["delta"]["value"]
    assert found["align.shapes_v1"]["verdict"] == found["fd.shapes_v1"]["verdict"] == "worse"


def test_primary_metrics_pay_for_every_stack_tried_and_the_others_do_not():
    few, many = judged({}, a=(1, 0.1)), judged({}, a=(1, 0.1), b=(2, 0.0), c=(3, 0.0), d=(4, 0.0))
    for name in ("align.shapes_v1", "fd.shapes_v1"):
        assert few["a"][name]["p"] == many["a"][name]["p"]
        assert few["a"][name]["p_holm"] <= many["a"][name]["p_holm"]
    family = sorted(
        q[name]["p"]
        for s, q in many.items()
        for name in ("align.shapes_v1", "fd.shapes_v1")
        if s != "none"
    )
    smallest = min(
        q[name]["p_holm"]
        for s, q in many.items()
        for name in ("align.shapes_v1", "fd.shapes_v1")
        if s != "none"
    )
    assert smallest == pytest.approx(min(1, 8 * family[0]))
    assert (
        many["a"]["recall.shapes_v1"]["p_holm"] is None
        and many["a"]["recall.shapes_v1"]["p"] is not None
    )


def test_binary_scores_have_wilson_s_interval_and_a_difference_whose_p_and_interval_agree():
    """McNemar's p of .092 stood beside an interval that excluded zero."""
    right = {
        "m--none": np.repeat([1.0, 0.0], [30, 10]),
        "m--fora": np.repeat([1.0, 0.0, 1.0, 0.0], [22, 8, 1, 9]),
    }
    told = {
        key: Scores(samples_sha256="", arrays={"align.shapes_v1": x, "group": np.arange(N)}, reasons={"align.shapes_v1": ""})
        for key, x in right.items()
    }  # fmt: skip
    entry = summarise([record("none"), record("fora")], told, {"scene": REFERENCE})[1]["quality"][
        "align.shapes_v1"
    ]
    assert (entry["p"] < 0.05) == (entry["delta"]["high"] < 0)
    assert entry["value"]["low"] == pytest.approx(0.4220, abs=1e-3) and entry["value"][
        "high"
    ] == pytest.approx(0.7149, abs=1e-3)
    assert entry["interval"].endswith("; of the value Wilson's")


def test_a_frechet_distance_of_no_more_samples_than_features_has_a_value_and_no_difference_and_says_why():
    few = {
        key: Scores(
            samples_sha256="", arrays={k: v[:d] for k, v in s.arrays.items()}, reasons=s.reasons
        )
        for d in [scores(0).arrays["feature.shapes_v1"].shape[1]]
        for key, s in (("m--none", scores(0, baseline=True)), ("m--fora", scores(1, 0.3)))
    }
    entry = summarise([record("none"), record("fora")], few, {"scene": REFERENCE})[1]["quality"][
        "fd.shapes_v1"
    ]
    assert (
        entry["value"]["value"] > 0
        and entry["delta"] is None
        and entry["verdict"] == ""
        and entry["p"] is None
    )
    assert "times as many samples as their" in entry["delta_reason"]


def test_a_stack_that_is_right_everywhere_is_set_against_a_baseline_that_is_right_in_part():
    parts = {"m--none": np.repeat([1.0, 6 / 7], [30, 10]), "m--fora": np.ones(N)}
    told = {
        key: Scores(samples_sha256="", arrays={"align.shapes_v1": x, "group": np.arange(N)}, reasons={"align.shapes_v1": ""})
        for key, x in parts.items()
    }  # fmt: skip
    entry = summarise([record("none"), record("fora")], told, {"scene": REFERENCE})[1]["quality"][
        "align.shapes_v1"
    ]
    assert entry["delta"]["value"] == pytest.approx(10 / 7 / N) and entry["delta"]["low"] > 0
    assert 0 < entry["p"] < 0.05


def test_an_inert_cell_is_not_judged():
    told = {"m--none": scores(0, baseline=True), "m--noop": scores(0)}
    rows = summarise(
        [record("none"), record("noop", status="inert")],
        told,
        {"scene": REFERENCE},
        {"fd.shapes_v1": 1.0},
    )
    assert rows[1]["quality"]["fd.shapes_v1"]["verdict"] == ""


def test_a_noise_floor_claims_nothing_and_costs_the_methods_nothing():
    told = {"m--none": scores(0, baseline=True), "m--fora": scores(1, 0.1), "m--rerun": scores(2)}
    labelled = record("rerun", methods=[{"name": "rerun", "label": "noise floor"}])
    both = summarise([record("none"), record("fora"), labelled], told, {"scene": REFERENCE})
    alone = summarise([record("none"), record("fora")], told, {"scene": REFERENCE})
    assert both[1]["quality"] == alone[1]["quality"] and both[2]["label"] == "noise floor"
    floor = both[2]["quality"]["fd.shapes_v1"]
    assert floor["p_holm"] is None and floor["p"] is not None and floor["verdict"] == "inconclusive"


def test_pairs_that_never_differ_have_no_detectable_difference():
    told = {"m--none": scores(0, baseline=True), "m--same": scores(0)}
    entry = summarise([record("none"), record("same")], told, {"scene": REFERENCE})[1]["quality"][
        "fd.shapes_v1"
    ]
    assert entry["delta"]["value"] == 0 and entry["mde"] is None
