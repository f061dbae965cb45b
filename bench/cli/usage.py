"""What the command line answers to input it cannot use: one sentence that names the flag as it was
typed, and the usage line of the command. No torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ditbench.suggest import suggest

FLAGS = {"plugins": "--plugin", "references": "--reference"}
"""Flags whose name is not that of their key in a spec."""
QUOTES = "put stacks with knobs in quotes, as in --methods 'fora(interval=3)+int8'"


class UsageError(ValueError):
    """Input that does not fit the grammar; `usage` is the line of the command it was for."""

    def __init__(self, sentence: str, usage: str) -> None:
        super().__init__(sentence)
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """argparse's parser with `UsageError` in place of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint of argparse as one sentence."""
        sentence = re.sub(r"^argument (\S+): ", lambda m: f"{m[1].split('/')[-1]}: ", message)
        if choice := re.fullmatch(r"(.*)invalid choice: '(.*)' \(choose from (.*)\)", sentence):
            names = re.findall(r"[\w-]+", choice[3])
            sentence = f"no {choice[2]!r} to {self.prog.split()[-1]}; {suggest(choice[2], names)}"
        raise UsageError(sentence, usage_line(self))


def usage_line(parser: argparse.ArgumentParser) -> str:
    """The command with what it requires; optional flags are left to its help."""
    words = [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words.append("COMMAND")
        elif not action.option_strings:
            name = str(action.metavar or "|".join(action.choices or [action.dest.upper()]))
            words.append(f"{name} [{name} ...]" if action.nargs == "+" else name)
        elif action.required:
            words += [action.option_strings[-1], str(action.metavar or action.dest.upper())]
    return f"usage: {' '.join(words)} [flags]; all flags: {parser.prog} --help"


def check_command(words: Sequence[str], commands: Iterable[str], usage: str) -> None:
    """UsageError when the first word is no command and no flag; a method or a model is shown its
    flag."""
    if words and not words[0].startswith("-") and words[0] not in commands:
        advice = _flag_of(words[0]) or suggest(words[0], commands)
        raise UsageError(f"no command {words[0]!r}; {advice}", usage)


def _flag_of(word: str) -> str:
    """How a word that names methods or models is given; "" for any other."""
    from ditbench.method.registry import names
    from ditbench.models.table import GROUPS, models

    given = f"'{word}'" if "(" in word else word
    first = re.split(r"[(+,]", word)[0]
    if first in names() or first == "none":
        return f"methods are given by a flag: --methods {given}"
    if first in models() or first in GROUPS:
        return f"models are given by a flag: --models {given}"
    return ""


def check_left_over(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """UsageError for words that the parser of a command has no place for: an unknown flag, or a
    word that stands alone where a shell took the quotes or a comma is missing."""
    if not words:
        return
    word = words[0]
    if word.startswith("-"):
        flags = [flag for action in parser._actions for flag in action.option_strings]
        flag = word.partition("=")[0]
        raise UsageError(f"{flag}: no such flag; {suggest(flag, flags)}", usage_line(parser))
    raise UsageError(
        f"{word!r} stands alone: {parser.prog} takes no such word. Several stacks or models are "
        f"one word with commas, as in fora,int8; {QUOTES}",
        usage_line(parser),
    )


def check_given(words: Sequence[str]) -> None:
    """ValueError for an empty argument, as an unset variable of a shell leaves it: it is never
    taken for a default; and for one with NUL in it."""
    for flag, word in zip(["", *words], words, strict=False):
        if "\0" in word:  # not from a shell, which has none
            raise ValueError(f"{flag or word!r}: no name and no text has a NUL in it")
        if word == "" or re.fullmatch(r"--[a-z-]+=", word):
            about = word.removesuffix("=") or (
                flag if flag.startswith("--") else f"the argument after {flag}"
            )
            hint = "; the un-accelerated model is called none" if about == "--methods" else ""
            raise ValueError(f"{about}: nothing is given{hint}")


def sentence_of(error: BaseException, words: Sequence[str]) -> str:
    """What is wrong in one sentence: keys of a spec that were given as flags are named as the flag,
    and words with unbalanced parentheses get the advice to quote."""
    text = str(error)
    key = re.match(r"([a-z_]+)(?=[:.\[])", text)
    if key:
        flag = FLAGS.get(key[1], "--" + key[1].replace("_", "-"))
        typed = [word.partition("=")[0] for word in words if word.startswith("--")]
        if any(len(word) > 3 and flag.startswith(word) for word in typed):
            text = flag + text[key.end() :]
    if QUOTES not in text and any(word.count("(") != word.count(")") for word in words):
        text += f"; {QUOTES}"
    return text


def whole_number(text: str) -> int:
    """An integer flag's value."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def decimal_number(text: str) -> float:
    """A float flag's value."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
