"""Prompt files: found by path or by name, read entry by entry. No torch.

Sets that do not come with ditbench are entries of `datasets/manifest.toml` with their licence and where they are published; put their
files into the folder that `DITBENCH_DATASETS` names. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tomllib
from pathlib import Path
from typing import Any

FOLDER = "DITBENCH_DATASETS"
"""Environment variable: the folder with files of prompt and reference sets."""
COLUMNS = ("prompt", "prompts", "caption", "text", "prompt_en")
"""Names a table or document may give its prompts, in any case."""


def datasets() -> Path:
    """The folder of the data that comes with ditbench."""
    here = Path(__file__).resolve().parent
    return here.parent / "datasets" if (here.parent / "run_bench.py").is_file() else here / "datasets"


def manifest() -> dict[str, dict[str, str]]:
    """Every data file and set by name."""
    found: dict[str, dict[str, str]] = tomllib.loads((datasets() / "manifest.toml").read_text())
    return found


def prompt_sets() -> dict[str, dict[str, str]]:
    """The entries of the manifest that are prompts."""
    return {name: facts for name, facts in manifest().items() if facts.get("kind") == "prompts"}


def find_prompts(told: str = "") -> Path:
    """The file of a set by name, or of a path; "": the prompts that come along.

    ValueError in one sentence: no such file or set, a set whose file is not there, or a file with another sha256 than the pinned one.
    """
    if not told:
        return datasets() / "prompts.txt"
    if Path(told).is_file():
        return Path(told)
    sets = prompt_sets()
    if told not in sets:
        raise ValueError(f"prompts: there is no file {told!r}, nor a set of that name (there are {', '.join(sets)})")
    facts = sets[told]
    places = [Path(os.environ[FOLDER]) / facts["file"]] if os.environ.get(FOLDER) else []
    if facts.get("hub"):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(facts["hub"], facts["file"], repo_type="dataset")
        places += [Path(cached)] if isinstance(cached, str) else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"prompts: {told} lacks {facts['file']} (sha256 {facts['sha256'] or 'not known'}, licence {facts['licence']}); "
            f"published at {facts['source']}; put it into the folder that {FOLDER} names"
        )
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if facts["sha256"] and got != facts["sha256"]:
        raise ValueError(f"prompts: {path} is not the file of {told}: its sha256 is {got}, expected {facts['sha256']}")
    return path


def load_prompts(told: str = "") -> list[str]:
    """`find_prompts` and `read_prompts`; ValueError too when a set of the manifest has not as many entries as it should."""
    path = find_prompts(told)
    found = read_prompts(path)
    expected = 0 if Path(told).is_file() else int(prompt_sets().get(told, {}).get("entries", 0))
    if expected and len(found) != expected:
        raise ValueError(f"prompts: {path} holds {len(found)} entries, and {told} has {expected}")
    return found


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file in its order, every entry one, equal or not. ValueError when it holds none, or an empty one.

    .txt: a prompt a line; .csv and .tsv: the first column of a name in COLUMNS; .json: a list, or a mapping, of texts or of entries with
    such a key (VBench, MJHQ-30K), or COCO's `annotations`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = {".csv": _from_table, ".tsv": _from_table, ".json": _from_json}.get(path.suffix, _from_lines)(
            text, path
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"prompts: {path} is damaged ({error})") from error
    if not found:
        raise ValueError(f"prompts: {path} holds none")
    if empty := [i for i, prompt in enumerate(found) if not prompt.strip()]:
        raise ValueError(f"prompts: entry {empty[0]} of {path} is empty")
    return found


def _from_lines(text: str, path: Path) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _from_table(text: str, path: Path) -> list[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    column = _column(rows.fieldnames or [], path)
    return [row[column] or "" for row in rows]


def _from_json(text: str, path: Path) -> list[str]:
    document: Any = json.loads(text)
    if isinstance(document, dict):
        document = document.get("annotations", list(document.values()))
    if not isinstance(document, list):
        raise ValueError(f"prompts: {path} is no list of prompts")
    return [_entry(entry, path) for entry in document]


def _entry(entry: Any, path: Path) -> str:
    if isinstance(entry, dict):
        entry = entry[_column(list(entry), path)]
    if not isinstance(entry, str):
        raise ValueError(f"prompts: {path} has an entry that is no text ({str(entry)[:40]})")
    return entry


def _column(names: Any, path: Path) -> str:
    by_lower = {str(name).lower(): str(name) for name in names}
    for name in COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise ValueError(f"prompts: {path} has no column of prompts (it has {', '.join(map(str, names))[:80]})")
