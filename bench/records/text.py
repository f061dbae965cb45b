"""Text from elsewhere (errors, files, names of files) that is written down or shown: bounded, and
without what a terminal, a table or UTF-8 cannot bear. No torch."""

from __future__ import annotations

import re

LONGEST = 500
"""Characters of a sentence; a table does not bear more."""
CUT = " ..."
"""The end of a text that was longer."""
ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)")
"""What a terminal obeys: colours, cursor, title (ECMA-48 CSI and OSC sequences)."""
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Control characters but tabs and line ends, marks that reverse the direction of text, and lone
surrogates, which UTF-8 has no bytes for."""


def clean(text: str, longest: int = 0) -> str:
    """Text that can be written in UTF-8 and shown anywhere: terminal escapes are left out, and what
    else cannot be shown is a question mark. Of more than `longest` characters, where that is not 0,
    the first with `CUT`."""
    if 0 < longest < len(text):
        text = text[: longest - len(CUT)] + CUT
    if text.isprintable():
        return text
    return UNSHOWN.sub("?", ESCAPE.sub("", text.replace("\r\n", "\n")))


def one_line(text: str, longest: int = LONGEST) -> str:
    """The same on one line, each run of blanks and line ends being one blank."""
    return clean(" ".join(text[: 4 * longest].split()), longest)


def cleaned(document: object) -> object:
    """A JSON document with all of its texts clean, names of fields too."""
    if isinstance(document, str):
        return document if document.isprintable() else clean(document)
    if isinstance(document, dict):
        return {clean(name): cleaned(value) for name, value in document.items()}
    return list(map(cleaned, document)) if isinstance(document, list) else document
