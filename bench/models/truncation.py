"""Prompts that are longer than a model's text encoders read: counted for the record of a cell, said
in its row. No torch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ditbench.models.family import family_named
from ditbench.models.requests import Request
from ditbench.models.sampling import Sampling

if TYPE_CHECKING:
    from ditbench.models.table import Model


def cut_prompts(
    pipe: Any, model: Model, sampling: Sampling, requests: Sequence[Request]
) -> dict[str, dict[str, int]]:
    """By tokenizer of the pipeline: `reads`, the tokens its encoder takes, `cut`, the requests
    whose prompt is longer, and `of`, all.

    Prompts are tokenized as the pipeline does it, special tokens included. Empty for a model
    without prompts.
    """
    prompts = [request.prompt for request in requests if request.prompt is not None]
    if not prompts:
        return {}
    counts = {}
    for name, limit in family_named(model.family).tokenizers(pipe, sampling).items():
        texts = dict.fromkeys(prompts)
        lengths = {
            text: len(getattr(pipe, name)(as_encoded(pipe, model, text)).input_ids)
            for text in texts
        }
        counts[name] = {
            "reads": limit,
            "cut": sum(lengths[text] > limit for text in prompts),
            "of": len(prompts),
        }
    return counts


def as_encoded(pipe: Any, model: Model, prompt: str) -> str:
    """A prompt as the pipeline cleans it before its tokenizer."""
    return family_named(model.family).clean(pipe, prompt)


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What a report says of a record's prompts that were cut, a sentence for each text encoder;
    none where all were read whole."""
    encoders = {
        "tokenizer": "text encoder",
        "tokenizer_2": "second text encoder",
        "tokenizer_3": "third text encoder",
    }
    return [
        f"{counts['cut']} of {counts['of']} prompts were cut: they are longer than the "
        f"{counts['reads']} tokens the {encoders[name]} reads"
        for name, counts in (record.get("prompts_cut") or {}).items()
        if counts["cut"]
    ]
