"""Rows for the report, from synthetic records whose true ratios and differences are known."""

import json

import numpy as np
import pytest

from ditbench.distances import Moments, Reference, frechet
from ditbench.metrics import metrics
from ditbench.metrics.stored import Scores
from ditbench.summary import DRIFT_BOUND, predict, shares, summarise

N = 40
OWN = [m.name for m in metrics().values() if not m.extractor]
AGAINST = [m.name for m in metrics().values() if m.against_none]
KEYS = {
    "key", "model", "family", "world", "stack", "status", "reason", "methods", "baseline", "baseline_key", "num_samples", "batch_size",
    "rounds", "seed", "device", "dtype", "weights", "sampling", "quality", "timing", "share", "speedup_call", "speedup_denoise",
    "speedup_interval", "speedup_flops", "speedup_predicted", "realised", "realised_call", "flops", "memory", "counters", "first_call_s",
    "load_s", "drift", "drift_bound", "suspect",
}  # fmt: skip


def timing(denoise_s, *, rounds=3, weather=(1.0, 1.0, 1.0)):
    """Per sample: 0.1 s of text, 0.1 s of decoding, and the loop; batch 0 in every round, two more in the first."""
    found = []
    for r in range(rounds):
        for b in range(3 if r == 0 else 1):
            stages = {"text_s": 0.1, "denoise_s": denoise_s, "decode_s": 0.1}
            entry = {name: 8 * s * weather[r] for name, s in stages.items()}
            found.append({"round": r, "batch": b, "size": 8, "call_s": sum(entry.values()), **entry})
    return found


def record(stack, *, model="m", status="ok", denoise_s=0.8, flops=100, requests="r", **told):
    measured = status in ("ok", "inert")
    return {
        "schema": 1, "key": f"{model}--{stack}", "model": model, "family": "pixart", "world": "scene", "stack": stack,
        "methods": [] if stack == "none" else [{"name": stack}], "status": status, "reason": "" if measured else "because",
        "run": {
            "num_samples": N, "batch_size": 8, "rounds": 3, "seed": 0, "device": "cpu", "dtype": "float32", "weights": "bundled",
            "requests_sha256": requests if measured else "",
        },
        "sampling": {"steps": 20} if measured else {}, "environment": {}, "load_s": 0.5 if measured else None,
        "first_call_s": 9.0 if measured else None, "timing": timing(denoise_s) if measured else [],
        "memory": {"peak_bytes": 7} if measured else {}, "flops": {"flops": flops} if measured else {},
        "counters": {"fora.reused": 3} if measured else {},
    } | told  # fmt: skip


def scores(seed, shift=0.0, baseline=False):
    r = np.random.default_rng(seed)
    shared = np.random.default_rng(99)
    features = shared.standard_normal((N, 6)) + shift + 0.1 * r.standard_normal((N, 6))
    colour = (shared.random(N) < 0.9 - shift).astype(float)
    shape = np.ones(N)
    arrays = {
        "feature.shapes_v1": features.astype(np.float32), "align.shapes_v1.colour": colour, "align.shapes_v1.shape": shape,
        "align.shapes_v1": (colour + shape) / 2, "group": np.arange(N),
    }  # fmt: skip
    reasons = dict.fromkeys(OWN, "")
    if baseline:
        reasons |= dict.fromkeys(AGAINST, "this is the baseline itself")
    else:
        arrays |= {name: 0.8 + 0.01 * r.standard_normal(N) for name in AGAINST}
    return Scores(samples_sha256="", arrays=arrays, reasons=reasons)


REFERENCE = Reference.of(Moments.of(np.random.default_rng(1).standard_normal((2000, 6))))


@pytest.fixture(scope="module")
def rows():
    records = [
        record("none"),
        record("fora", denoise_s=0.4, flops=40),
        record("int8", status="refused"),
        record("lonely", model="other"),
    ]
    told = {"m--none": scores(0, baseline=True), "m--fora": scores(1, 0.3), "other--lonely": scores(2)}
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
    told = [record("none", timing=timing(0.8, weather=slow)), record("fora", timing=timing(0.4, weather=slow))]
    row = summarise(told, {}, {})[1]
    assert row["speedup_call"]["high"] - row["speedup_call"]["low"] < 1e-9
    assert row["drift"] == pytest.approx(0.3) and row["suspect"] and row["drift_bound"] == DRIFT_BOUND
    calm = summarise([record("none"), record("fora")], {}, {})[1]
    assert calm["drift"] == pytest.approx(0) and not calm["suspect"]


def test_one_round_has_no_drift_and_its_ratios_say_what_they_rest_on():
    told = [record("none", timing=timing(0.8, rounds=1)), record("fora", timing=timing(0.4, rounds=1))]
    row = summarise(told, {}, {})[1]
    assert row["drift"] is None and row["suspect"] is False
    assert row["speedup_interval"] == "batches within rounds" and row["speedup_call"]["n"] == 3


def test_times_are_seconds_per_sample_and_shares_add_up(rows):
    none = rows["m--none"]
    assert none["timing"]["denoise_s"]["value"] == pytest.approx(0.8)
    assert none["timing"]["call_s"]["n"] == 5
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
    assert align["interval"] == "BCa bootstrap over 40 prompts"
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
    assert entry["delta"]["value"] == pytest.approx(frechet(mine, REFERENCE) - frechet(theirs, REFERENCE))
    assert entry["delta"]["low"] < entry["delta"]["value"] < entry["delta"]["high"]
    assert "n = 40" in entry["interval"] and entry["better"] == "lower"


def test_fidelity_has_a_value_and_no_delta(rows):
    entry = rows["m--fora"]["quality"]["psnr.vs_none"]
    assert entry["value"]["value"] == pytest.approx(0.8, abs=0.01) and entry["value"]["low"] < entry["value"]["high"]
    assert entry["delta"] is None and entry["delta_reason"] == "the value is already against none"
    assert rows["m--none"]["quality"]["psnr.vs_none"]["reason"] == "this is the baseline itself"


def test_a_refused_cell_keeps_its_reason_and_empty_columns(rows):
    row = rows["m--int8"]
    assert (row["status"], row["reason"]) == ("refused", "because")
    assert row["speedup_call"] is row["timing"]["call_s"] is row["speedup_flops"] is None
    assert all(e["value"] is None and e["reason"] == "the cell is refused" for e in row["quality"].values())


def test_without_a_baseline_nothing_is_compared(rows):
    row = rows["other--lonely"]
    assert row["baseline_key"] is row["speedup_call"] is row["drift"] is None
    assert row["quality"]["align.shapes_v1"]["value"]["value"] > 0
    assert row["quality"]["align.shapes_v1"]["delta_reason"] == "the baseline `none` has no scores in this run"


def test_cells_that_answered_other_requests_are_not_paired():
    told = {"m--none": scores(0, baseline=True), "m--fora": scores(1)}
    row = summarise([record("none"), record("fora", requests="others")], told, {"scene": REFERENCE})[1]
    assert row["baseline_key"] is None and row["quality"]["align.shapes_v1"]["delta"] is None


def test_missing_scores_and_references_are_said(rows):
    unscored = summarise([record("none")], {}, {})[0]["quality"]["align.shapes_v1"]
    assert unscored["value"] is None and unscored["reason"] == "not scored yet"
    entry = summarise([record("none")], {"m--none": scores(0, baseline=True)}, {})[0]["quality"]["fd.shapes_v1"]
    assert entry["value"] is None and entry["reason"] == "no reference for the world scene"
