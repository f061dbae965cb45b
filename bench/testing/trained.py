"""The contract of methods, tried on trained models, for `python run_bench.py check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ditbench.method.needs import resolve
from ditbench.method.stack import Stack
from ditbench.models.family import family_named
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.quiet import quiet
from ditbench.testing.contract import check_method, error_text
from ditbench.testing.subjects import Subject

if TYPE_CHECKING:
    from ditbench.models.table import Model


def check_models(
    stack: Stack, models: Sequence[Model], plugins: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The contract on the bundled models, as rows of a table; `result` is `passed`, `failed` or
    `refused`. `plugins`: files that were loaded for the stack, for the commands in notes.

    A model whose weights are absent or damaged is a refused row with that reason, and the others
    are still tried; so they are where something breaks down outside the method.
    """
    rows: list[dict[str, Any]] = []

    def tell(model: Model, clause: str, result: str, note: str) -> None:
        rows.append({"model": model.name, "clause": clause, "result": result, "note": note})

    for model in models:
        try:
            subject = _bundled(model)
            prepared = {
                name: a.folder for name, a in resolve(model, stack, "bundled", plugins).items()
            }
        except ValueError as error:
            tell(model, "its files are there", "refused", str(error))
            continue
        except Exception as error:
            tell(model, "its files are there", "failed", error_text(error))
            continue
        try:
            with quiet():
                checks = check_method(str(stack), subject, prepared)
        except Exception as error:
            tell(model, "the model itself runs", "failed", error_text(error))
            continue
        for check in checks:
            result = (
                "failed" if not check.passed else "refused" if check.name == "refused" else "passed"
            )
            tell(
                model,
                "runs on this model" if result == "refused" else check.name,
                result,
                check.note,
            )
    return rows


def _bundled(model: Model) -> Subject:
    from ditbench.models.loading import load

    requests = make_requests(model, 2, seed=0)

    def arguments(sampling: Sampling, which: Sequence[int]) -> dict[str, Any]:
        call: dict[str, Any] = call_arguments(model, sampling, [requests[i] for i in which])
        return call | {"output_type": family_named(model.family).raw_output}

    pipeline = load(model, weights="bundled", device="cpu", dtype="float32")
    return Subject(pipeline=pipeline, sampling=sampling_of(model), arguments=arguments)
