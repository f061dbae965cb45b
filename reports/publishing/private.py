"""What a published run must not tell: secrets, folders of the machine, names of its user and host. No
torch."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditbench.records.published_files import members
from ditbench.records.run_folder import RunFolder

SECRETS = {
    "a token of the Hugging Face hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a token of GitHub": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a key of AWS": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a key of an API": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a password in an address": re.compile(r"://[^\s/:@]+:[^\s/@]+@"),
}
PATH = re.compile(
    r"""(?:^|[\s='"(\[,:])(/(?:[^\s/'"]+/)+[^\s'"]*|~/[^\s'"]+|[A-Za-z]:\\[^\s'"]+)"""
)
"""An absolute path in a text, or one that begins at home."""
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.I)
"""Environment variables whose values are secrets."""
COMMON = {"root", "user", "admin", "ubuntu", "runner", "jovyan", "localhost", "docker", "debian"}
"""Names of users and hosts that say nothing."""
SHORTEST = 3
"""Letters of a name that is looked for."""


def private_strings(folder: Path) -> list[str]:
    """A sentence for each thing a published run tells that it should not, with its file and place;
    prompts are looked through for secrets and folders alone, for they may well name somebody."""
    words = _names()
    found: list[str] = []
    for place, text in _texts(RunFolder(folder)):
        reason = _secret(text) or ("" if "prompt" in place else _name(text, words))
        if reason:
            found.append(f"{place} has {reason}")
    return found


def _secret(text: str) -> str:
    for what, pattern in SECRETS.items():
        if pattern.search(text):
            return what
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 8 and value in text:
            return f"the value of the environment variable {name}"
    if path := PATH.search(text):
        return f"a folder of this machine ({path[1]})"
    home = str(Path.home())
    return "the home folder" if len(home) > SHORTEST and home in text else ""


def _names() -> dict[str, re.Pattern[str]]:
    """What to look for: names of the user and of the host, where these say anything."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process without a user
        user = ""
    host = platform.node()
    names = {"the user's name": {user}, "the host's name": {host, host.partition(".")[0]}}
    return {
        what: re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(usable)))
        for what, of in names.items()
        if (usable := {n for n in of if len(n) >= SHORTEST and n.lower() not in COMMON})
    }


def _name(text: str, words: dict[str, re.Pattern[str]]) -> str:
    return next((what for what, pattern in words.items() if pattern.search(text)), "")


def _texts(files: RunFolder) -> Iterator[tuple[str, str]]:
    """(place, text) of every text of a published run, keys of its documents included."""
    documents = [files.spec, files.references, *sorted(files.requests("x").parent.glob("*.json"))]
    for path in documents:
        if path.is_file():
            yield from _inside(
                json.loads(path.read_text(encoding="utf-8")),
                path.relative_to(files.path).as_posix(),
            )
    if files.command.is_file():
        yield files.command.name, files.command.read_text(encoding="utf-8")
    if files.published_records.is_file():
        for i, line in enumerate(
            files.published_records.read_text(encoding="utf-8").splitlines(), 1
        ):
            yield from _inside(json.loads(line), f"{files.published_records.name}, line {i},")
    if files.published_scores.is_file():
        content, _ = members(files.published_scores)
        for name, of_name in content.items():
            head = of_name[8 : 8 + int.from_bytes(of_name[:8], "little")]
            metadata = json.loads(head).get("__metadata__", {})
            yield from _inside(json.loads(metadata.get("scores", "{}")), f"scores.zip, {name},")


def _inside(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, of_name in value.items():
            yield place, str(name)
            yield from _inside(of_name, f"{place} {name}")
    elif isinstance(value, list):
        for part in value:
            yield from _inside(part, place)
    elif isinstance(value, str):
        yield place, value
