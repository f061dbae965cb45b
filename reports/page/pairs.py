"""The page of pairs: for each model a square of methods by methods, each field run, refused or not
run. A page of its own, beside the page of the run, and without a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from ditbench.analysis.pairs import Combination, PairMatrix
from ditbench.records.files import write_text
from ditbench.reports.figures.stacking_matrix import MARKS
from ditbench.reports.page.tables import list_of, row_anchor
from ditbench.reports.sections.format import DASH
from ditbench.reports.sections.section import Section, file_name
from ditbench.reports.tables.pairs import LEGAL, STATES, by_reason, counts, verdict

PAGE, INDEX = "pairs.html", "index.html"
UNJUDGED = "\u2022"
"""Sign of what was run without a verdict."""
CLASSES = {"run": "ran", "refused": "no", "not run": "open"}


def write_pairs_page(of: Sequence[tuple[Section, Sequence[PairMatrix]]], out: Path) -> Path:
    """Write `pairs.html` into `out`, with links to the rows of the page of the run where that is
    there; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    index = INDEX if (out / INDEX).is_file() else ""
    templates = files("ditbench.reports.page")
    several = len(of) > 1
    links, body = [], []
    for section, matrices in of:
        for matrix in matrices:
            anchor = file_name(f"{section.name}--{matrix.model}")
            title = f"{section.name}: {matrix.model}" if several else matrix.model
            links.append(f'<a href="#{anchor}">{escape(title)}</a>')
            body.append(_model(section, matrix, anchor, title, index))
    if index:
        links.insert(0, f'<a href="{index}">the run</a>')
    css = "".join(
        (templates / name).read_text(encoding="utf-8") for name in ("page.css", "pairs.css")
    )
    page = Template((templates / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Pairs of methods: {', '.join(section.name for section, _ in of)}"),
        css=css, script="", nav="\n".join(links), body="\n".join(body),
        conventions="\n".join(f"<li>{escape(sentence)}</li>" for sentence in _legend()),
    )  # fmt: skip
    path = out / PAGE
    write_text(path, page)
    return path


def _legend() -> list[str]:
    signs = ", ".join(f"{sign} {word}" for word, (sign, _) in MARKS.items())
    return [
        *(f"{state}: {words}." for state, words in STATES.items()),
        f"Signs of what was run: {signs}, {UNJUDGED} without a verdict. Grey: refused, its reason "
        "under the pointer and in the list below; empty: not run.",
        "On the diagonal a method alone. The square says everything twice, so that one row has all of "
        "a method.",
        LEGAL,
    ]


def _model(section: Section, matrix: PairMatrix, anchor: str, title: str, index: str) -> str:
    parts = [f'<section class="model" id="{anchor}"><h2>{escape(title)}</h2>']
    parts.append(
        f'<p class="quiet">{len(matrix.methods)} methods alone: {counts(matrix.alone)}; '
        f"{len(matrix.pairs)} pairs: {counts(matrix.pairs)}; {len(matrix.triples)} triples that are "
        f"legal or were run: {counts(matrix.triples)}.</p>"
    )
    parts.append(_square(section, matrix, index))
    parts.append(_run(section, [*matrix.pairs, *matrix.triples], index))
    for name, of in (("methods", matrix.alone), ("pairs", matrix.pairs)):
        reasons = [
            f"{reason} ({len(who)}): {', '.join(who)}" for reason, who in by_reason(of).items()
        ]
        if reasons:
            parts.append(f"<details><summary>Refused {name}</summary>{list_of(reasons)}</details>")
    parts.append(_open_triples(matrix))
    return "\n".join(filter(None, parts)) + "</section>"


def _square(section: Section, matrix: PairMatrix, index: str) -> str:
    at = {frozenset(c.methods): c for c in (*matrix.alone, *matrix.pairs)}
    heads, before = [], ""
    for name in matrix.methods:
        kind = ' class="first"' if matrix.families[name] != before else ""
        heads.append(f'<th scope="col"{kind}><span>{escape(name)}</span></th>')
        before = matrix.families[name]
    lines, before = [], ""
    for name in matrix.methods:
        family = matrix.families[name]
        kind = ' class="first"' if family != before else ""
        fields, column = [], ""
        for other in matrix.methods:
            starts = matrix.families[other] != column
            column = matrix.families[other]
            fields.append(
                _field(section, at[frozenset((name, other))], (name, other), starts, index)
            )
        head = f'<th scope="row" title="{escape(family)}">{escape(name)}</th>'
        lines.append(f"<tr{kind}>{head}{''.join(fields)}</tr>")
        before = family
    label = escape(f"{matrix.model}: pairs of methods")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="square">'
        f'<thead><tr><th scope="col"></th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _field(
    section: Section, c: Combination, names: tuple[str, str], starts: bool, index: str
) -> str:
    word = verdict(c)
    kinds = [CLASSES[c.state], *([word] if word else []), *(["first"] if starts else [])]
    kinds += ["self"] if names[0] == names[1] else []
    who = names[0] if names[0] == names[1] else "+".join(names)
    title = f"{who}: {': '.join(filter(None, (word or c.state, c.reason)))}"
    sign = MARKS[word][0] if word else UNJUDGED
    inner = _link(section, c, sign, index) if c.state == "run" else ""
    return f'<td class="{" ".join(kinds)}" title="{escape(title)}">{inner}</td>'


def _link(section: Section, c: Combination, words: str, index: str) -> str:
    """To the row of the first cell that has a verdict, else of the first."""
    ran = next((r for r in c.ran if r.verdict), c.ran[0])
    if not index:
        return escape(words)
    return f'<a href="{index}#{row_anchor(section.name, ran.key)}">{escape(words)}</a>'


def _run(section: Section, combinations: Sequence[Combination], index: str) -> str:
    """What was run, with all its cells, folded up."""
    lines = []
    for c in combinations:
        for i, ran in enumerate(c.ran):
            who = escape("+".join(c.methods)) if i == 0 else ""
            link = _link(
                section,
                Combination(methods=c.methods, state="run", reason="", ran=(ran,)),
                ran.stack,
                index,
            )
            lines.append(
                f'<tr><th scope="row">{who}</th><td>{link}</td><td>{escape(ran.verdict or DASH)}</td></tr>'
            )
    if not lines:
        return ""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("methods", "row", "verdict"))
    return (
        "<details open><summary>Pairs and triples that were run</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _open_triples(matrix: PairMatrix) -> str:
    """Triples that are legal and were not run, by the first two methods; folded up."""
    of: dict[tuple[str, ...], list[str]] = {}
    for c in matrix.triples:
        if c.state == "not run":
            of.setdefault(c.methods[:2], []).append(
                c.methods[2] + (f" ({c.reason})" if c.reason else "")
            )
    sentences = [f"{'+'.join(two)}+: {', '.join(rest)}" for two, rest in of.items()]
    return (
        f"<details><summary>Triples that are legal and were not run</summary>{list_of(sentences)}</details>"
        if sentences
        else ""
    )
