"""Which methods go together: every pair on every model of a run is run, refused with a reason, or not
run; likewise triples of a student, a number format of linear layers and a third method. No torch.

What is legal follows from what methods declare, as in `plan`, and from what their `check` says of a
model at default knobs (`check_refusals.toml`, which `python -m ditbench.testing.refusals` makes);
what was run, and what a cell of its own was refused for, from the records.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from ditbench.analysis.controls import VERDICTS
from ditbench.analysis.rows import Record
from ditbench.method.registry import Method, find, names
from ditbench.method.stack import Stack
from ditbench.method.traits import FAMILY_NEEDS, lacking
from ditbench.models.family import families
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.models.table import models
from ditbench.records.record import SHOWN
from ditbench.records.text import one_line

State = Literal["run", "refused", "not run"]
CHECK_REFUSALS = Path(__file__).with_name("check_refusals.toml")
GPU_NEEDS = ("cuda", "sm>=")
"""How needs begin that no CPU meets."""
STUDENT, FORMAT = frozenset({"weights", "num-steps"}), frozenset({"linear-precision"})
"""Claims of the first and the second method of a triple."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A cell of the run that has the methods of a combination, whatever their knobs."""

    stack: str
    key: str
    verdict: str
    """Whether its methods stack; "" where the run has no such verdict."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Methods on one model: one alone, a pair or a triple."""

    methods: tuple[str, ...]
    """Of a pair in the order of the matrix."""
    state: State
    reason: str
    """Why it is refused, or what kept its cells from giving numbers; "" where there is no cell."""
    ran: tuple[Ran, ...] = ()
    """Its measured cells, those with default knobs first; empty unless its state is "run"."""


@dataclass(frozen=True, kw_only=True)
class PairMatrix:
    """All combinations of the methods there are on one model."""

    model: str
    methods: tuple[str, ...]
    """By family, and in it by name."""
    families: Mapping[str, str]
    """The family of each method."""
    alone: tuple[Combination, ...]
    """One for each method."""
    pairs: tuple[Combination, ...]
    """Each unordered pair once, in the order of the upper triangle by rows."""
    triples: tuple[Combination, ...]
    """A student, a number format of linear layers, a third method: those that are legal or were
    tried."""


def pair_matrices(
    records: Sequence[Record], stacking: Sequence[Mapping[str, Any]]
) -> list[PairMatrix]:
    """A matrix for each model of the records, in order of appearance. `stacking`: the rows of
    `ditbench.analysis.interaction.together`, which have the verdicts.

    Methods are those of the registry (plug-ins too, where they are loaded) and of the records. What
    would first have to be prepared is not refused.
    """
    verdicts = {
        (row["model"], row["stack"]): row["verdict"] if row["verdict"] in VERDICTS else ""
        for row in stacking
    }
    recorded = {m["name"]: str(m.get("family", "")) for r in records for m in _methods(r)}
    known, stacks = _defaults(), dict[tuple[str, ...], Stack]()
    by_family = recorded | {name: m.traits.family for name, m in known.items()}
    ordered = tuple(sorted(by_family, key=lambda name: (by_family[name], name)))
    matrices = []
    for model in dict.fromkeys(r["model"] for r in records):
        of_model = [r for r in records if r["model"] == model]
        judge = _Judge(model, of_model, verdicts, known, stacks)
        pairs = tuple(judge.combination(pair) for pair in combinations(ordered, 2))
        never = {frozenset(c.methods) for c in pairs if c.state == "refused"}
        triples = [
            judge.combination(t)
            for t in _triples(ordered, known)
            if judge.tried(t) or not any(frozenset(two) in never for two in combinations(t, 2))
        ]
        matrices.append(
            PairMatrix(
                model=model, methods=ordered, families=by_family,
                alone=tuple(judge.combination((name,)) for name in ordered),
                pairs=pairs,
                triples=tuple(t for t in triples if t.state != "refused" or judge.tried(t.methods)),
            )
        )  # fmt: skip
    return matrices


def _defaults() -> dict[str, Method]:
    """Every method there is, at default knobs, but for a plug-in's that cannot be made: its own cells
    say why, and nothing is known of its pairs."""
    made: dict[str, Method] = {}
    for name in names():
        with suppress(Exception):
            made[name] = find(name)()
    return made


def _triples(ordered: Sequence[str], known: Mapping[str, Method]) -> Iterator[tuple[str, ...]]:
    """Those of methods that are no controls, which are not for combining."""
    able = [name for name in ordered if name in known and known[name].traits.family != "control"]
    students = [name for name in able if known[name].traits.claims >= STUDENT]
    formats = [name for name in able if known[name].traits.claims >= FORMAT]
    for student, form in product(students, formats):
        for third in ordered:
            if third not in (student, form):
                yield (student, form, third)


@cache
def check_refusals() -> Mapping[str, Mapping[str, str]]:
    """Model -> method -> why its `check` refuses the model at default knobs."""
    table: dict[str, dict[str, str]] = tomllib.loads(CHECK_REFUSALS.read_text(encoding="utf-8"))
    return table


def _methods(record: Record) -> Sequence[Mapping[str, Any]]:
    methods: Sequence[Mapping[str, Any]] = record["methods"] if record["stack"] != "none" else ()
    return methods


class _Judge:
    """What is known of combinations on one model."""

    def __init__(
        self, model: str, records: Sequence[Record], verdicts: Mapping[tuple[str, str], str],
        known: Mapping[str, Method], stacks: dict[tuple[str, ...], Stack],
    ) -> None:  # fmt: skip
        """`stacks`: those of the methods that were met, for all models."""
        self.stacks = stacks
        self.model, self.verdicts, self.known = model, verdicts, known
        family = records[0]["family"]
        # of a plug-in's family that is not installed here nothing is known
        self.family = family if family in families() else ""
        self.row = models().get(model)
        baseline = next((r for r in records if not _methods(r)), records[0])
        self.on_cpu = baseline["run"].get("device", "cpu") == "cpu"
        self.offload = str(baseline["run"].get("offload", "none"))
        self.sampling = self._sampling(baseline)
        self.cells: dict[frozenset[str], list[Record]] = {}
        for r in records:
            self.cells.setdefault(frozenset(m["name"] for m in _methods(r)), []).append(r)

    def _sampling(self, baseline: Record) -> Sampling | None:
        """The sampling of the run's baseline, of the model's table where that has none; None where
        another sampler may make another number of steps."""
        recorded = baseline.get("sampling") or {}
        if recorded.get("scheduler") or "calls" in recorded:
            return None
        shape = [f.name for f in fields(Sampling)]
        if all(name in recorded for name in shape):
            return Sampling(**{name: recorded[name] for name in shape})
        return sampling_of(self.row) if self.row else None

    def tried(self, methods: Sequence[str]) -> bool:
        return frozenset(methods) in self.cells

    def combination(self, methods: tuple[str, ...]) -> Combination:
        cells = self.cells.get(frozenset(methods), [])
        cells = sorted(cells, key=lambda r: "(" in r["stack"])
        if measured := [r for r in cells if r["status"] == SHOWN]:
            ran = tuple(
                Ran(
                    stack=r["stack"], key=r["key"],
                    verdict=self.verdicts.get((self.model, r["stack"]), ""),
                )
                for r in measured
            )  # fmt: skip
            return Combination(methods=methods, state="run", reason="", ran=ran)
        if cells and cells[0]["status"] == "refused" and "(" not in cells[0]["stack"]:
            return Combination(methods=methods, state="refused", reason=cells[0]["reason"])
        try:
            reason = self.refusal(methods)
        except Exception as error:  # of a plug-in's own code: its fields say so, and no other's
            reason = one_line(f"{type(error).__name__}: {error}")
        if reason:
            return Combination(methods=methods, state="refused", reason=reason)
        outcomes = "; ".join(f"{r['stack']} {r['status']}: {r['reason']}" for r in cells)
        return Combination(methods=methods, state="not run", reason=outcomes)

    def refusal(self, methods: Sequence[str]) -> str:
        """Why the methods at default knobs cannot be used together, in the order in which `plan`, and
        then the loaded model, would say it; "" where nothing is known against it."""
        key = tuple(methods)
        if key not in self.stacks:
            self.stacks[key] = Stack.of(*(self.known[name] for name in key if name in self.known))
        stack = self.stacks[key]
        if problems := stack.problems(self.family):
            return "; ".join(problems)
        for m in stack.methods:
            for need in sorted(n for n in m.traits.needs if n.startswith(FAMILY_NEEDS)):
                if self.family and (lack := lacking(need, self.family, "cpu")):
                    return f"{m.name}: {lack}"
        if reason := self._unfit(stack) or stack.kept_away(self.offload):
            return reason
        for m in stack.methods:
            for need in sorted(n for n in m.traits.needs if n.startswith(GPU_NEEDS)):
                if self.on_cpu and (lack := lacking(need, self.family, "cpu")):
                    return f"{m.name}: {lack}"
        checked = check_refusals().get(self.model, {})
        for m in stack.methods:
            if m.name in checked:
                return f"{m.name}: {checked[m.name]}"
            if reason := self._refused_alone(m.name):
                return reason
        return ""

    def _unfit(self, stack: Stack) -> str:
        if self.sampling is None:
            return ""
        try:
            sampling = stack.adapt(self.sampling)
        except ValueError as error:
            return str(error)
        reasons = ((m.name, m.unfit(sampling)) for m in stack.methods)
        return next((f"{name}: {reason}" for name, reason in reasons if reason), "")

    def _refused_alone(self, name: str) -> str:
        cells = self.cells.get(frozenset({name}), [])
        default = (r for r in cells if "(" not in r["stack"] and r["status"] == "refused")
        return next((str(r["reason"]) for r in default), "")
