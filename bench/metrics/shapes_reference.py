"""Make the reference features of the shapes worlds again: `python -m
ditbench.metrics.shapes_reference [--out datasets] [--worlds class,scene,video] [--judges
shapes_v1,shapes_check_v1]`.

2048 renders of the split "reference" per world through a judge, rounded to 8 bits as samples are,
float16 on disk, and their entries in manifest.toml. Minutes on one core; run it whenever a judge's
weights change.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from ditbench.metrics.shapes_features import reference_path
from ditbench.records.files import file_sha256, replacing
from ditbench.shapes import judge as judges
from ditbench.shapes import scenes as shapes
from ditbench.shapes import second_judge as check

NUM = 2048
CHUNK = 64
JUDGES: dict[str, tuple[Callable[..., Any], Callable[..., Path]]] = {
    "shapes_v1": (judges.load_judge, judges.weights_path),
    "shapes_check_v1": (check.load_check, check.weights_path),
}
"""By the name their features have: how a judge of (world, folder) is loaded, and where its weights
lie."""


@torch.inference_mode()
def features(
    world: str, num: int = NUM, judge_folder: Path | None = None, name: str = "shapes_v1"
) -> np.ndarray:
    """Features of `num` renders by a judge of `JUDGES`, [num, 64] float16; ValueError when one does
    not fit float16."""
    judge, parts = JUDGES[name][0](world, judge_folder), []
    for start in range(0, num, CHUNK):
        seed = start // CHUNK
        scenes = shapes.draw(world, min(CHUNK, num - start), split="reference", seed=seed)
        pixels = shapes.render(scenes, world, split="reference", seed=seed)
        parts.append(judge.features((pixels * 255).round() / 255))
    wide = torch.cat(parts)
    narrow = wide.half()
    if not narrow.isfinite().all():
        raise ValueError(
            f"the judge's features of {world} do not fit float16 (largest {wide.abs().max():.3g})"
        )
    return narrow.numpy()


def write(
    world: str, out: Path, num: int = NUM, judge_folder: Path | None = None, name: str = "shapes_v1"
) -> Path:
    """Write a world's reference by a judge into the folder `out`, enter it in `out/manifest.toml`,
    and return its path."""
    path = out / f"{name}-{world}.safetensors"
    weights = JUDGES[name][1](world, judge_folder)
    with replacing(path) as partial:
        save_file({"feature": features(world, num, judge_folder, name)}, partial)
    enter(
        out / "manifest.toml",
        path.name,
        source="rendered by ditbench.shapes.scenes",
        licence="Apache-2.0",
        made=f"python -m ditbench.metrics.shapes_reference: {num} scenes of the {world} world, split reference",
        judge_sha256=file_sha256(weights),
        sha256=file_sha256(path),
    )
    return path


def enter(manifest: Path, name: str, **facts: str) -> None:
    """Put an entry in a manifest in place of the one of that name; the others stay, sorted by name.
    Facts are strings.
    """
    entries = tomllib.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    entries[name] = facts
    head = "# Every data file here, and the sets that do not come along: where from, licence, how made, and sha256 where it is known.\n"
    tables = [
        f'["{file}"]\n' + "".join(f"{key} = {_quoted(value)}\n" for key, value in entry.items())
        for file, entry in sorted(entries.items())
    ]
    manifest.write_text(head + "\n" + "\n".join(tables), encoding="utf-8")


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=reference_path("class").parent,
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument("--worlds", default=",".join(shapes.WORLDS), help="default: %(default)s")
    parser.add_argument("--judges", default=",".join(JUDGES), help="default: %(default)s")
    args = parser.parse_args()
    for name in args.judges.split(","):
        for world in args.worlds.split(","):
            write(world, args.out, name=name)


if __name__ == "__main__":
    main()
