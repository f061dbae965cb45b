"""Command lines and files that users write, at random: an answer in a sentence, and nothing made."""

import json
import string

import pytest
from attacking import attack, digest, outside
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import BYTES, VALUES

from ditbench.cli.commands import COMMANDS

QUICK = ("plan", "list", "recommend", "compare", "reproduce", "report", "score", "run", "stack")
"""Commands whose wrong usage is found out before anything is worked out."""
FLAGS = (
    "--models", "--methods", "--num-samples", "--batch-size", "--rounds", "--seed", "--device",
    "--dtype", "--weights", "--prompts", "--reference", "--plugin", "--spec", "--steps", "--guidance",
    "--height", "--frames", "--scheduler", "--negative-prompt", "--margins", "--time-limit",
    "--stop-after", "--process", "--offload", "--vae", "--lora", "--model", "--json", "--metrics",
    "--max-seconds", "--min-alignment", "--gpu", "-v", "--help", "--versoin", "-", "--", "---",
)  # fmt: skip
WORDS = (
    "fora", "int8+fora", "none", "dit-tiny", "tiny", "full", "0", "-1", "1e999", "nan", "inf", "x=y",
    "dit-tiny=4", "../outside", "/dev/zero", "/dev/stdin", "pipe", "outside", "fora(interval=",
    "fora(interval=3)", "__import__('os').system('x')", "(" * 5000, "fora+" * 300 + "fora", "9" * 5000,
    ",", ",,", "=", "\x1b[31m", "\ud800", "a\x00b", "x" * 300, "\u202e", " ", "\n", "cuda:99", "*",
)  # fmt: skip
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
lines = st.tuples(
    st.one_of(st.sampled_from(QUICK), st.sampled_from(sorted(QUICK)), texts),
    st.lists(st.one_of(st.sampled_from(FLAGS), texts), max_size=6),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(("prompt", "caption", "id")), st.text(max_size=6)),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    ("models", "methods", "num_samples", "rounds", "seed", "device", "dtype", "margins", "steps",
     "guidance", "prompts", "out", "plugins", "references", "weights", "batches", "x")
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    outside(folder / "outside")
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        yield folder


def all_of(examples):
    """Hypothesis as it is wanted here: the same cases each time, none of them against a clock."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip


def check_line(line, place):
    command, words = line
    # a whole command, as `run --methods fora`, would measure for minutes: this one is refused
    before = digest(place)
    attack(command, *words, *(["--out", "/dev/null/x"] if command in ("run", "stack") else []))
    assert digest(place) == before


def check_spec(content, place):
    path = place / "work" / "spec.toml"
    path.write_bytes(content)
    attack("plan", "--spec", path)
    path.unlink()


def check_prompts(content, ending, place):
    path = place / "work" / f"prompts{ending}"
    path.write_bytes(content)
    attack("plan", "--models", "pixart-xl-2-512", "--weights", "random", "--prompts", path)
    path.unlink()


def toml_of(table):
    """TOML of what TOML can hold, and text that looks like it of the rest."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    return "\n".join(lines).replace("null", '""').encode("utf-8", "replace")


contents = st.one_of(
    st.sampled_from(BYTES),
    st.binary(max_size=30),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(VALUES).map(lambda value: json.dumps([value]).encode()),
    st.text(string.printable, max_size=40).map(str.encode),
)
specs = st.one_of(contents, st.dictionaries(keys, values, max_size=3).map(toml_of))
endings = st.sampled_from((".json", ".jsonl", ".txt", ".csv", ".tsv", ".pt", ""))


@pytest.mark.parametrize(
    ("lines_of", "specs_of", "prompts_of"),
    [(40, 20, 20), pytest.param(900, 300, 300, marks=pytest.mark.slow)],
)
def test_no_line_no_spec_and_no_prompts_break_a_command(place, lines_of, specs_of, prompts_of):
    all_of(lines_of)(given(lines)(lambda line: check_line(line, place)))()
    all_of(specs_of)(given(specs)(lambda content: check_spec(content, place)))()
    all_of(prompts_of)(
        given(contents, endings)(lambda content, ending: check_prompts(content, ending, place))
    )()


def test_the_commands_are_still_called_so():
    assert {*QUICK} <= {*COMMANDS}
