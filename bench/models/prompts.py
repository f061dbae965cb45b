"""Prompt files: found by path or by name, read entry by entry. No torch.

Sets that do not come with ditbench are entries of `datasets/manifest.toml` with their licence and
where they are published; put their files into the folder that `DITBENCH_DATASETS` names. Nothing is
downloaded.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ditbench import IN_CHECKOUT, PACKAGE, ROOT
from ditbench.records.files import file_sha256
from ditbench.suggest import suggest

FOLDER = "DITBENCH_DATASETS"
"""Environment variable: the folder with files of prompt and reference sets."""
TRAINING = "training_captions.txt"
"""The captions that methods are prepared with for full-size text models."""
COLUMNS = ("prompt", "prompts", "caption", "text", "prompt_en")
"""Names a table or document may give its prompts, in any case."""


def datasets() -> Path:
    """The folder of the data that comes with ditbench."""
    return (ROOT if IN_CHECKOUT else PACKAGE) / "datasets"


def manifest() -> dict[str, dict[str, str]]:
    """Every data file and set by name."""
    sets: dict[str, dict[str, str]] = tomllib.loads(
        (datasets() / "manifest.toml").read_text(encoding="utf-8")
    )
    return sets


def prompt_sets() -> dict[str, dict[str, str]]:
    """The entries of the manifest that are prompts."""
    return {name: facts for name, facts in manifest().items() if facts.get("kind") == "prompts"}


def find_prompts(source: str = "") -> Path:
    """The file of a set by name, or of a path; "": the prompts that come along.

    ValueError in one sentence: no such file or set, a set whose file is not there, or a file with
    another sha256 than the pinned one.
    """
    if not source:
        return datasets() / "prompts.txt"
    if Path(source).is_file():
        return Path(source)
    sets = prompt_sets()
    if source not in sets:
        raise ValueError(
            f"prompts: there is no file {source!r}, nor a set of that name; {suggest(source, sets)}"
        )
    facts = sets[source]
    places = [Path(os.environ[FOLDER]) / facts["file"]] if os.environ.get(FOLDER) else []
    places.append(datasets() / facts["file"])  # of a set that comes along
    if facts.get("hub"):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(facts["hub"], facts["file"], repo_type="dataset")
        places += [Path(cached)] if isinstance(cached, str) else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"prompts: {source} lacks {facts['file']} (sha256 {facts['sha256'] or 'not known'}, "
            f"licence {facts['licence']}); "
            f"published at {facts['source']}; put it into the folder that {FOLDER} names"
        )
    got = file_sha256(path)
    if facts["sha256"] and got != facts["sha256"]:
        raise ValueError(
            f"prompts: {path} is not the file of {source}: its sha256 is {got}, expected "
            f"{facts['sha256']}"
        )
    return path


def find_training_prompts(source: str = "") -> Path:
    """The file that full-size text models are asked for while a method is prepared: of a path or of
    a set by name; "": the captions that come along for it, on which nothing is evaluated.

    ValueError as `find_prompts`.
    """
    return find_prompts(source) if source else datasets() / TRAINING


def check_apart(source: str) -> None:
    """ValueError where training prompts hold some of the bundled prompts, which are for
    evaluation; spelling, case and punctuation aside."""
    evaluated = {normalised(prompt) for prompt in load_prompts()}
    shared = [p for p in load_prompts(source) if normalised(p) in evaluated]
    if shared:
        raise ValueError(
            f"prompts: {source} has {len(shared)} of the bundled prompts, which are for "
            f"evaluation ({shared[0][:60]!r}); leave them out"
        )


def normalised(prompt: str) -> str:
    """A prompt's words in lower case, one space apart."""
    return " ".join(re.findall(r"\w+", prompt.lower()))


def load_prompts(source: str = "") -> list[str]:
    """`find_prompts` and `read_prompts`; ValueError too when a set of the manifest has not as many
    entries as it should."""
    path = find_prompts(source)
    prompts = read_prompts(path)
    expected = 0 if Path(source).is_file() else int(prompt_sets().get(source, {}).get("entries", 0))
    if expected and len(prompts) != expected:
        raise ValueError(
            f"prompts: {path} holds {len(prompts)} entries, and {source} has {expected}"
        )
    return prompts


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file in its order, every entry one, equal or not. ValueError when it holds
    none, or an empty one, and when it is not what its ending, in any case, says: nothing is
    guessed.

    .txt: a prompt a line. .csv, with quotes as RFC 4180 has them, and .tsv: the first column of a
    name in COLUMNS; a .tsv may have quotes as .csv does, or as part of the text, where only one of
    the two fits (PartiPrompts has them in the text). .json: a list, or a mapping, of texts or of
    entries with such a key (VBench, MJHQ-30K), or a list under such a key, or COCO's `annotations`;
    .jsonl: such an entry a line.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"prompts: {path} ends in none of {', '.join(READERS)}, which are all that is read"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError(f"prompts: {path} is no text")
        prompts = read(text, path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise ValueError(f"prompts: {path} is damaged ({error})") from error
    if not prompts:
        raise ValueError(f"prompts: {path} holds none")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt.strip()]:
        raise ValueError(f"prompts: entry {empty[0]} of {path} is empty")
    return prompts


def _from_lines(text: str, path: Path) -> list[str]:
    lines = text.removesuffix("\n").split("\n") if text else []
    for whole, ending in (([text], ".json"), (lines, ".jsonl")):
        if whole and all(_is_json(part) for part in whole):
            raise ValueError(f"prompts: {path} holds JSON; give its name the ending {ending}")
    return lines


def _is_json(text: str) -> bool:
    """Whether it is a JSON object or array: a prompt may be a number or in quotes."""
    try:
        return text.lstrip()[:1] in ("{", "[") and isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _from_csv(text: str, path: Path) -> list[str]:
    return _of_rows(_quoted(text, ","), path)


def _from_tsv(text: str, path: Path) -> list[str]:
    """By the reading that fits, quotes being text or not; ValueError when none does, or when both
    do and are not the same."""
    readings, errors = [], []
    for rows in (
        lambda: [line.split("\t") for line in text.split("\n")],
        lambda: _quoted(text, "\t"),
    ):
        try:
            readings.append(_of_rows(rows(), path))
        except (ValueError, csv.Error) as error:
            errors.append(error)
    if not readings:
        raise errors[0]
    if readings[0] != readings[-1]:
        raise ValueError(
            f"prompts: quotes in {path} may be part of the prompts or not; write it as .csv or "
            ".json"
        )
    return readings[0]


def _quoted(text: str, mark: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))


def _of_rows(rows: list[list[str]], path: Path) -> list[str]:
    """The column of prompts of a table whose first row names the columns; ValueError for a row of
    another length."""
    while rows and rows[-1] in ([], [""]):
        rows = rows[:-1]
    if not rows:
        return []
    names, *entries = rows
    column = names.index(_column(names, path))
    for i, row in enumerate(entries):
        if len(row) != len(names):
            raise ValueError(
                f"prompts: entry {i} of {path} has {len(row)} fields under {len(names)} names; a "
                "field with the separator in it is quoted"
            )
    return [row[column] for row in entries]


def _from_json(text: str, path: Path) -> list[str]:
    document = _parsed(text, path)
    if isinstance(document, dict):
        if "annotations" in document:
            document = document["annotations"]
        elif not any(name.lower() in COLUMNS for name in document):
            document = list(document.values())
        elif isinstance(document := document[_column(document, path)], str):
            raise ValueError(f"prompts: {path} is a single entry, not a list of them")
    if not isinstance(document, list):
        raise ValueError(f"prompts: {path} is no list of prompts")
    return [_entry(entry, path) for entry in document]


def _from_json_lines(text: str, path: Path) -> list[str]:
    return (
        [_entry(_parsed(line, path), path) for line in text.removesuffix("\n").split("\n")]
        if text
        else []
    )


def _parsed(text: str, path: Path) -> Any:
    """A JSON document in which no object names a key twice, of which one would be lost."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(row := dict(pairs)) < len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"prompts: {path} has the key {twice[:40]!r} twice in one object")
        return row

    return json.loads(text, object_pairs_hook=once)


def _entry(entry: Any, path: Path) -> str:
    if isinstance(entry, dict):
        entry = entry[_column(list(entry), path)]
    if not isinstance(entry, str):
        raise ValueError(f"prompts: {path} has an entry that is no text ({str(entry)[:40]})")
    return entry


def _column(names: Iterable[str], path: Path) -> str:
    for wanted in COLUMNS:
        if matches := [name for name in names if name.lower() == wanted]:
            if len(matches) > 1:
                raise ValueError(f"prompts: {path} has {len(matches)} columns {', '.join(matches)}")
            return matches[0]
    raise ValueError(f"prompts: {path} has no column of prompts (it has {', '.join(names)[:80]})")


READERS: dict[str, Callable[[str, Path], list[str]]] = {
    ".txt": _from_lines, ".csv": _from_csv, ".tsv": _from_tsv, ".json": _from_json,
    ".jsonl": _from_json_lines,
}  # fmt: skip
"""How a file is read, by the ending of its name."""
