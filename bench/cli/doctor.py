"""What works on this machine and what is missing, each with what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ditbench import ZOO
from ditbench.metrics.table import Metric, metrics
from ditbench.models.table import models
from ditbench.records.environment import PACKAGES, memory_bytes, processor


def examine() -> list[dict[str, Any]]:
    """Rows of (what, state, note); state is ok, absent (optional) or missing (something does not
    work without it)."""
    rows = [
        _row(
            "python", "ok" if sys.version_info >= (3, 11) else "missing", platform.python_version()
        )
    ]
    rows.append(_row("machine", "ok", f"{processor()}, {memory_bytes() / 2**30:.0f} GiB"))
    for name in PACKAGES:
        try:
            rows.append(_row(name, "ok", version(name)))
        except PackageNotFoundError:
            rows.append(_row(name, "missing", f"pip install -c constraints.txt {name}"))
    rows += [_gpu(), _torchvision(), *_zoo(), *_metrics(), *_prompts()]
    return rows


def _row(what: str, state: str, note: str) -> dict[str, Any]:
    return {"what": what, "state": state, "note": note}


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return _row("gpu", "absent", "none that torch can use; everything runs on the CPU")
    p = torch.cuda.get_device_properties(0)
    return _row(
        "gpu", "ok", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}"
    )


def _torchvision() -> dict[str, Any]:
    """torchvision is not needed, but one built for another torch breaks `import torchmetrics`."""
    if importlib.util.find_spec("torchvision") is None:
        return _row("torchvision", "ok", "not installed, and not needed")
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        return _row(
            "torchvision",
            "missing",
            f"installed but broken ({type(error).__name__}); pip uninstall torchvision",
        )
    return _row("torchvision", "ok", version("torchvision"))


def _zoo() -> list[dict[str, Any]]:
    """The embedded world's weights, whole or not."""
    from ditbench.models.weights import check_folder, locate

    rows = []
    for model in models().values():
        if model.is_bundled:
            try:
                check_folder(locate(model, "bundled"))
                rows.append(_row(model.name, "ok", "weights whole"))
            except ValueError as error:
                rows.append(_row(model.name, "missing", str(error)))
    for name, script in {
        "still": "train judge", "video": "train video-judge",
        "check-still": "train_second_judge still", "check-video": "train_second_judge video",
    }.items():  # fmt: skip
        there = (ZOO / "judge" / f"{name}.safetensors").is_file()
        made = f"python -m ditbench.zoo.{script}"
        rows.append(
            _row(
                f"judge ({name})", "ok" if there else "missing", "weights there" if there else made
            )
        )
    return rows


def _metrics() -> list[dict[str, Any]]:
    """Extractors with the files they lack, their hashes and where they are published; then every
    metric: available, or for want of what."""
    from ditbench.extractors.shelf import Shelf

    shelf, rows = Shelf(), []
    why = {
        name: shelf.refuse(name) for name, row in shelf.table.items() if row.architecture != "judge"
    }
    for name, reason in why.items():
        rows.append(
            _row(f"extractor {name}", "absent" if reason else "ok", reason or "pinned files there")
        )
    for metric in metrics().values():
        missing = _missing(metric)
        if why.get(metric.extractor):
            missing = f"wants {', '.join(shelf.table[metric.extractor].files)} (see extractor {metric.extractor})"
        rows.append(
            _row(metric.name, "absent" if missing else "ok", missing or f"needs {metric.needs}")
        )
    return rows


def _missing(metric: Metric) -> str:
    """Which file, package or reference of a metric is not there; "" when all are."""
    if reason := getattr(metric.module, "missing", lambda _: "")(metric):
        return str(reason)
    if metric.statistic and not metric.extractor and hasattr(metric.module, "reference"):
        for world in dict.fromkeys(model.world for model in models().values() if model.world):
            try:
                metric.module.reference(world)
            except ValueError as error:
                return str(error)
    return ""


def _prompts() -> list[dict[str, Any]]:
    """Prompt sets: there, or what is missing and where it is published."""
    from ditbench.models.prompts import find_prompts, prompt_sets

    rows = []
    for name, facts in prompt_sets().items():
        if facts["ships"] == "yes":
            continue
        try:
            rows.append(_row(f"prompts {name}", "ok", str(find_prompts(name))))
        except ValueError as error:
            rows.append(_row(f"prompts {name}", "absent", str(error).removeprefix("prompts: ")))
    return rows
