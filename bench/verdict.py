"""From a paired difference to a word: better, worse, equivalent or inconclusive. No torch.

G independent units (prompts, or blocks of them) are behind an estimate; every test is two-sided unless it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ditbench.statistics import LEVEL, Estimate

ALPHA = 1 - LEVEL
WORDS = ("better", "worse", "equivalent", "inconclusive")
RULE = (
    f"verdict: equivalent, where the difference to none lies within the margin stated before the run (two one-sided tests, {ALPHA:.0%}); "
    f"else better or worse, where it differs from nothing (two-sided, {ALPHA:.0%}); else inconclusive. For alignment and Fréchet distance, "
    "the primary metrics, the p-values of both tests are adjusted by Holm across the stacks of the model and both metrics; the other "
    "metrics' are not. detectable: the difference that 80 % of such runs would find."
)


def difference_p(delta: Estimate) -> float | None:
    """p-value of "no difference": Student's t over the units; None without a standard error.

    Where all units differ by the same (no spread to go by) it is the sign test's, 2^(1 - G), and 1 where none differ.
    """
    if delta.se is None:
        return None
    if delta.se == 0:
        return 1.0 if delta.value == 0 else float(2.0 ** (1 - delta.n))
    return float(2 * special.stdtr(delta.n - 1, -abs(delta.value) / delta.se))


def equivalence_p(delta: Estimate, margin: float) -> float | None:
    """p-value of "the difference is no smaller than the margin": the larger of two one-sided t tests (Schuirmann 1987).

    Where the units show no spread, the interval says how far a value unseen in G units can move the mean (see `statistics.mean`), and
    the p-value is the level at which that reach comes to the margin. None without a standard error.
    """
    if delta.se is None or delta.low is None or delta.high is None:
        return None
    room = margin - abs(delta.value)
    if delta.se > 0:
        return float(special.stdtr(delta.n - 1, -room / delta.se))
    width = max(delta.high - delta.value, delta.value - delta.low) / (1 - ALPHA ** (1 / delta.n))
    if room < 0:
        return 1.0
    return float((1 - min(room / width, 1)) ** delta.n) if width > 0 else 0.0


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """p-value of "right equally often" for paired binary scores [n] (McNemar 1947): the exact binomial on the discordant pairs.

    ValueError when the scores are not paired, or not all 0 or 1.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or not is_binary(x) or not is_binary(y):
        raise ValueError("McNemar's test is about pairs of scores that are 0 or 1")
    gained, lost = int(np.sum(x > y)), int(np.sum(x < y))
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def is_binary(values: ArrayLike) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(np.asarray(values), (0, 1)).all())


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those at most alpha errs anywhere in a share alpha of families (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, np.float64)[order] * (len(p) - np.arange(len(p)))
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(x) for x in found]


def decide(value: float, better: str, p: float | None, p_equivalent: float | None) -> str:
    """The verdict on a difference `value` of a metric whose `better` is "higher" or "lower", by `RULE`; "" without p-values, or where
    neither is better."""
    if p is None or better not in ("higher", "lower"):
        return ""
    if p_equivalent is not None and p_equivalent <= ALPHA:
        return "equivalent"
    if p > ALPHA:
        return "inconclusive"
    return "better" if (value > 0) == (better == "higher") else "worse"


def judge(rows: Sequence[Mapping[str, Any]]) -> None:
    """Give the entries of `quality` in the rows of one run their verdicts, in place: the one step that looks at all stacks together.

    Uses each entry's delta, p and p_equivalent, and of primary metrics adjusts them (see `ditbench.summary`). An inert row has
    nothing to be judged; a labelled one, such as a noise floor, claims nothing, and so costs the others nothing.
    """
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and row["status"] == "ok"]
        entries = [
            (e, e["primary"] and not row["label"])
            for row in mine
            for e in row["quality"].values()
            if e["delta"] is not None
        ]
        for given in ("p", "p_equivalent"):
            family = [e for e, adjusted in entries if adjusted and e[given] is not None]
            for entry, p in zip(family, holm([e[given] for e in family]), strict=True):
                entry[f"{given}_holm"] = p
        for e, adjusted in entries:
            which = ("p_holm", "p_equivalent_holm") if adjusted else ("p", "p_equivalent")
            e["verdict"] = decide(e["delta"]["value"], e["better"], *(e[p] for p in which))
