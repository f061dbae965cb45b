"""Make a reference file from pictures: `python run_bench.py reference build DIR --extractor X --out
FILE`. n pictures, d features."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.images import Pictures
from ditbench.extractors.references import ADM, ROWS, from_moments, write
from ditbench.extractors.shelf import Shelf
from ditbench.extractors.table import find
from ditbench.records.files import write_json
from ditbench.statistics.frechet import Reference
from ditbench.statistics.moments import Moments


def build(
    source: Path,
    name: str,
    out: Path,
    shelf: Shelf | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Moments of every picture in `source` and features of the first ROWS into `out`; returns its
    manifest, written to `out`.json.

    `source` is a folder of PNG and JPEG files or an npz with `arr_0`; where such a file has moments
    (ADM's have, of the whole training set), those are taken in place of the pictures'. `progress`
    is told `done` and `of`. Raises ValueError in one sentence when the extractor or a picture
    cannot be used; nothing is written then.
    """
    shelf = shelf or Shelf()
    if out.suffix != ".safetensors":
        raise ValueError(f"--out: {out.name} does not end in .safetensors")
    if reason := shelf.refuse(name):
        raise ValueError(reason)
    extractor, pictures = find(name, shelf.table), Pictures(source)
    if pictures.num < 2:
        raise ValueError(f"a reference needs at least two pictures, {source} has {pictures.num}")
    network = shelf.network(name)
    moments: dict[str, Moments] = {}
    rows: dict[str, list[NDArray]] = {}
    done = 0
    for chunk in pictures.chunks():
        for feature, values in network.features(chunk).items():
            new = Moments.of(values)
            moments[feature] = moments[feature] + new if feature in moments else new
            rows.setdefault(feature, []).append(values[: max(0, ROWS - done)])
        done += len(chunk)
        if progress:
            progress({"done": done, "of": pictures.num})
    published = _published(source, set(moments)) if source.suffix == ".npz" else {}
    references = {
        feature: published.get(feature) or Reference.of(of_all)
        for feature, of_all in moments.items()
    }
    write(
        out,
        extractor,
        references,
        {feature: np.concatenate(parts) for feature, parts in rows.items()},
    )
    manifest = {
        "n": pictures.num, "source": str(source), "extractor": name, "key": extractor.key,
        "preprocessing": extractor.preprocessing,
        "weights_sha256": dict(extractor.files),
        "moments": {f: "as published" if f in published else "of the pictures" for f in references},
        "pictures_sha256": pictures.sha256,
    }  # fmt: skip
    write_json(out.with_suffix(".json"), manifest)
    return manifest


def _published(source: Path, features: set[str]) -> dict[str, Reference]:
    """Moments an npz of ADM's carries, by feature."""
    try:
        with np.load(source) as arrays:
            there = {
                f: pair
                for f, pair in ADM.items()
                if f in features and set(pair) <= set(arrays.files)
            }
            return {
                f: from_moments(*(np.asarray(arrays[name], np.float64) for name in pair))
                for f, pair in there.items()
            }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} is damaged ({error})") from error
