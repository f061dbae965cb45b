"""Prompts that a text encoder does not read to their end are counted, and said in the row."""

import json
from dataclasses import replace

import pytest
from report_runs import edit, write_run

from ditbench.models import loading, truncation
from ditbench.models import table as models
from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import sampling_of
from ditbench.models.truncation import cut_prompts
from ditbench.reports.sections.section import read_sections


def ask(prompts):
    return [Request(id=f"{i}", seed=i, prompt=prompt) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module", params=["pixart-tiny", "flux-tiny", "wan-tiny"])
def loaded(request):
    model = models.models()[request.param]
    return model, loading.load(model, weights="bundled", device="cpu", dtype="float32")


def watched(pipe, name, seen):
    """The tokenizer of a pipeline, telling `seen` the ids of each prompt before and after it was
    cut."""
    inner = getattr(pipe, name)

    class Watched:
        def __getattr__(self, attribute):
            return getattr(inner, attribute)

        def __call__(self, texts, **how):
            if how.get("truncation"):
                whole = [inner(text).input_ids for text in texts]
                seen.setdefault(name, []).extend(len(ids) > how["max_length"] for ids in whole)
            return inner(texts, **how)

    return Watched()


def test_the_count_is_of_what_the_pipeline_itself_cuts(loaded, monkeypatch):
    model, pipe = loaded
    sampling = replace(sampling_of(model), steps=2)
    base = len(pipe.tokenizer("circle " * 3).input_ids) - 3
    room = sampling.text_tokens - base
    prompts = [
        "circle",
        "circle " * room,
        "circle " * (room + 1),
        "  CIRCLE &amp;  circle " * room,
        "circle",
    ]
    told = cut_prompts(pipe, model, sampling, ask(prompts))
    seen = {}
    for name in told:
        monkeypatch.setattr(pipe, name, watched(pipe, name, seen), raising=False)
    pipe(**call_arguments(model, sampling, ask(prompts)), output_type="latent")
    assert seen.keys() == told.keys() and all(
        told[name]["reads"] == sampling.text_tokens for name in told
    )
    for name, cut in seen.items():
        assert told[name]["cut"] == sum(cut[: len(prompts)]) >= 2 and told[name]["of"] == 5


def test_the_scenes_of_the_tiny_models_are_read_whole(loaded):
    from ditbench.models.requests import make_requests

    model, pipe = loaded
    told = cut_prompts(pipe, model, sampling_of(model), make_requests(model, 64, 0))
    assert {counts["cut"] for counts in told.values()} == {0} and {
        counts["of"] for counts in told.values()
    } == {64}


def test_clip_reads_77_tokens_of_flux_and_t5_512():
    model = models.models()["flux-1-dev"]

    class Pipe:
        tokenizer_max_length = 77

        @staticmethod
        def tokenizer(text):
            return type("Ids", (), {"input_ids": text.split()})

        tokenizer_2 = tokenizer

    told = cut_prompts(
        Pipe,
        model,
        sampling_of(model),
        ask(["word " * 77, "word " * 78, "word " * 513, "word " * 78]),
    )
    assert told == {
        "tokenizer": {"reads": 77, "cut": 3, "of": 4},
        "tokenizer_2": {"reads": 512, "cut": 1, "of": 4},
    }  # fmt: skip


def test_a_model_asked_for_classes_has_none():
    model = models.models()["dit-tiny"]
    assert cut_prompts(None, model, sampling_of(model), [Request(id="0", seed=0, label=3)]) == {}


def test_the_row_says_how_many_were_cut(tmp_path):
    folder = write_run(tmp_path / "run", models=("pixart-tiny",))
    cut = {
        "tokenizer": {"reads": 16, "cut": 3, "of": 12},
        "tokenizer_2": {"reads": 64, "cut": 0, "of": 12},
    }
    edit(folder, lambda record: record.update(prompts_cut=cut), stack="int8")
    (section,) = read_sections([folder])
    told = "3 of 12 prompts were cut: they are longer than the 16 tokens the text encoder reads"
    assert {row["stack"] for row in section.rows if told in row["notes"]} == {"int8"}
    assert json.dumps(section.records[section.rows[0]["key"]].get("prompts_cut", {})) == "{}"
    assert truncation.sentences({}) == []
