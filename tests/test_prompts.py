"""Prompt files of every layout, read entry by entry, and sets found by name."""

import hashlib
import json
from dataclasses import replace

import pytest

from ditbench.metrics.scoring import group
from ditbench.models import prompts
from ditbench.models.prompts import (
    FOLDER,
    find_prompts,
    load_prompts,
    manifest,
    prompt_sets,
    read_prompts,
)
from ditbench.models.requests import make_requests
from ditbench.models.table import models
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec

TEXTS = ["a cat", "A cat", "a cat", 'a dog, "two" cats\tand one', "a cat "]


def write(path, texts):
    ending = path.suffix.lower()
    if ending == ".txt":
        path.write_text("\n".join(texts) + "\n")
    elif ending == ".json":
        path.write_text(json.dumps(texts))
    else:
        mark = "\t" if ending == ".tsv" else ","
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
        path.write_text(
            "\n".join([f"Prompt{mark}Category", *(f"{text}{mark}x" for text in quoted)]) + "\n"
        )
    return path


def test_a_set_that_comes_along_is_there_by_its_name(monkeypatch):
    monkeypatch.delenv("DITBENCH_DATASETS", raising=False)
    assert prompts.find_prompts("prompts.txt") == prompts.find_prompts()


@pytest.mark.parametrize(
    "ending", [".txt", ".csv", ".tsv", ".json", ".TXT", ".CSV", ".Tsv", ".JSON"]
)
def test_every_entry_is_one_prompt_equal_or_not(tmp_path, ending):
    assert read_prompts(write(tmp_path / f"p{ending}", TEXTS)) == TEXTS


@pytest.mark.parametrize(
    "document",
    [
        [{"prompt_en": text, "dimension": ["scene"]} for text in TEXTS],
        {"annotations": [{"image_id": 1, "caption": text} for text in TEXTS]},
        {f"key{i}": {"category": "plants", "prompt": text} for i, text in enumerate(TEXTS)},
    ],
    ids=["vbench", "coco", "mjhq"],
)
def test_documents_of_the_published_sets_are_read(tmp_path, document):
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert read_prompts(tmp_path / "p.json") == TEXTS


def test_repeated_and_near_equal_prompts_stay_requests_of_their_own_and_units_of_their_own(
    tmp_path,
):
    path = write(tmp_path / "p.txt", TEXTS)
    requests = make_requests(models()["pixart-alpha-256"], 12, 0, str(path))
    assert [r.prompt for r in requests[:5]] == TEXTS and [r.entry for r in requests] == [
        0,
        1,
        2,
        3,
        4,
    ] * 2 + [0, 1]
    assert len({r.id for r in requests}) == len({r.seed for r in requests}) == 12
    units = group([{"id": r.id, "prompt": r.prompt, "entry": r.entry} for r in requests])
    assert units.tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_the_prompts_that_come_along_are_used_when_none_are_named():
    requests = make_requests(models()["flux-1-dev"], 3, 0)
    assert [r.prompt for r in requests] == load_prompts()[:3] and len(load_prompts()) == 32


@pytest.mark.parametrize(
    ("name", "contents", "complaint"),
    [
        ("p.txt", "", "holds none"),
        ("p.txt", "a\n\nb\n", "entry 1 of .* is empty"),
        ("p.csv", "a,b\n1,2\n", "has no column of prompts \\(it has a, b\\)"),
        ("p.json", "{", "is damaged"),
        ("p.json", "[1]", "an entry that is no text"),
        ("p.json", "3", "is no list of prompts"),
        ("p.csv", "prompt\na red kite, over the sea\n", "entry 0 of .* has 2 fields under 1 names"),
        ("p.CSV", "prompt\na red kite, over the sea\n", "entry 0 of .* has 2 fields under 1 names"),
        ("p.csv", "prompt,kind\na red kite\n", "entry 0 of .* has 1 fields under 2 names"),
        ("p.csv", "prompt\na boat\n\na kite\n", "entry 1 of .* has 0 fields under 1 names"),
        ("p.csv", 'prompt\n"a red kite\na boat\na house\n', "is damaged .unexpected end of data"),
        ("p.csv", 'prompt\n"big" cats\na boat\n', "is damaged"),
        ("p.csv", 'prompt\n"a red kite\na boat\na "big" house\n', "is damaged"),
        ("p.csv", "prompt,Prompt\na,b\n", "has 2 columns prompt, Prompt"),
        ("p.csv", "prompt\n", "holds none"),
        ("p.tsv", "prompt\tkind\na red kite\n", "entry 0 of .* has 1 fields under 2 names"),
        (
            "p.tsv",
            'prompt\tkind\n"a red kite"\tx\n',
            "quotes in .* may be part of the prompts or not",
        ),
        ("p.tsv", 'prompt\tkind\n"a red\tkite\tx\n', "has 3 fields under 2 names"),
        ("p.jsonl", '"a"\n\n"b"\n', "is damaged"),
        ("p.jsonl", '{"seed": 1}\n', "has no column of prompts"),
        ("p.json", '"a"\n"b"\n', "is damaged"),
        ("p.json", '{"prompt": "a", "negative": "b"}', "is a single entry"),
        ("p.json", '{"x": "a", "x": "b"}', "has the key 'x' twice in one object"),
        ("p.json", "[" * 200_000, "is damaged"),
        ("p.parquet", "a\nb\n", r"ends in none of \.txt, \.csv, \.tsv, \.json, \.jsonl"),
        ("p.csv.gz", "a\nb\n", "ends in none of"),
        ("prompts", "a\nb\n", "ends in none of"),
        ("p.txt", '["a", "b"]\n', r"holds JSON; give its name the ending \.json"),
        (
            "p.txt",
            '{"prompt": "a"}\n{"prompt": "b"}\n',
            r"holds JSON; give its name the ending \.jsonl",
        ),
        ("p.txt", "PAR1\0\0", "is no text"),
    ],
)
def test_files_that_are_no_prompts_or_not_what_their_name_says_are_named(
    tmp_path, name, contents, complaint
):
    (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=complaint) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "contents", "prompts_read"),
    [
        (
            "p.tsv",
            'Prompt\tNote\n"big" cats\tx\na "small" dog\t\n',
            ['"big" cats', 'a "small" dog'],
        ),  # as PartiPrompts
        ("p.tsv", 'prompt\tNote\n"a\tb"\tx\n', ["a\tb"]),
        (
            "p.csv",
            'prompt\n"a red kite, over the sea"\n"say ""hi"""\n\n',
            ["a red kite, over the sea", 'say "hi"'],
        ),
        ("p.csv", 'id,text\n1,"two\nlines"\n', ["two\nlines"]),
        ("p.jsonl", '{"prompt": "a", "seed": 1}\n"b"\n', ["a", "b"]),
        ("p.json", '{"Prompts": ["a", "b"]}', ["a", "b"]),
        ("p.txt", '42\n"quoted"\n[bracketed] text\n', ["42", '"quoted"', "[bracketed] text"]),
    ],
)
def test_quotes_and_commas_stay_where_they_are_part_of_the_text(
    tmp_path, name, contents, prompts_read
):
    (tmp_path / name).write_text(contents)
    assert read_prompts(tmp_path / name) == prompts_read


@pytest.mark.parametrize(
    "models_asked", ["pixart-tiny", "wan-tiny", "dit-xl-2-256", "flux-1-dev,dit-tiny"]
)
def test_prompts_for_models_that_would_not_read_them_are_an_error(tmp_path, models_asked):
    path = write(tmp_path / "p.txt", TEXTS)
    spec = Spec(models=tuple(models_asked.split(",")), prompts=str(path), weights="random")
    with pytest.raises(
        ValueError, match=f"prompts: {models_asked.split(',')[-1]} would not read them"
    ):
        plan(spec)
    assert plan(replace(spec, models=("flux-1-dev", "wan-2.1-1.3b")))


def test_a_set_that_is_not_there_is_named_with_its_licence_and_source(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(
        ValueError, match=r"drawbench lacks drawbench\.csv .*licence unknown.*published at https://"
    ):
        find_prompts("drawbench")
    with pytest.raises(
        ValueError, match=r"nor a set of that name; did you mean drawbench or vbench\?"
    ):
        find_prompts("drawbanch")


def test_a_set_is_found_in_the_folder_and_its_hash_and_number_of_entries_are_checked(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    path = write(tmp_path / "drawbench.csv", ["a prompt"] * 200)
    assert load_prompts("drawbench") == ["a prompt"] * 200
    write(path, ["a prompt"] * 199)
    with pytest.raises(ValueError, match="holds 199 entries, and drawbench has 200"):
        load_prompts("drawbench")
    pinned = manifest() | {"drawbench": manifest()["drawbench"] | {"sha256": "0" * 64}}
    monkeypatch.setattr(prompts, "manifest", lambda: pinned)
    with pytest.raises(
        ValueError,
        match=f"its sha256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, expected 000",
    ):
        find_prompts("drawbench")


def test_the_manifest_says_of_every_set_where_it_is_from_and_what_ships():
    for name, facts in manifest().items():
        assert facts["source"] and facts["licence"], name
        assert "sha256" in facts
        ships = facts.get("ships", "yes") == "yes"
        assert ships == (prompts.datasets() / name).is_file()
        if ships:
            assert (
                hashlib.sha256((prompts.datasets() / name).read_bytes()).hexdigest()
                == facts["sha256"]
            )
    assert {"parti", "drawbench", "mjhq", "coco2014", "coco2017", "vbench"} <= set(prompt_sets())


def test_other_prompts_are_another_run_and_references_are_not(tmp_path):
    path = write(tmp_path / "p.txt", TEXTS)
    plain, asked = Spec(models=("flux-1-dev",)), Spec(models=("flux-1-dev",), prompts=str(path))
    assert plain.folder != asked.folder and plain.settings() != asked.settings()
    assert Spec(models=("flux-1-dev",), references=(str(path),)).folder == plain.folder
    with pytest.raises(ValueError, match="references: there is no file 'nowhere'"):
        Spec(references=("flux-1-dev=nowhere",))
