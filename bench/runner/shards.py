"""A cell's samples in shards: whole batches, so that they are the samples of the undivided cell.
Which there are, which are whole, and which are still to be made. No torch.

Shard 0 is made, and timed, by the first round, whose document stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditbench.models.sampling import count_for, sampling_of
from ditbench.models.table import Model
from ditbench.records.files import set_aside
from ditbench.records.record import MEASURED, read_shard
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import OTHER, digest_of, write_samples, writing_shard
from ditbench.runner.plan import Cell


def shard_size(cell: Cell) -> int:
    """Samples of a whole shard: as many as were asked for, rounded up to batches as planned."""
    return -(-count_for(cell.model, cell.spec.shard) // cell.batch_size) * cell.batch_size


def num_shards(cell: Cell) -> int:
    """How many shards the samples of a cell are; 1 where they are one file."""
    return -(-cell.num_samples // shard_size(cell))


def shard_range(cell: Cell, number: int) -> range:
    """The samples of a shard, by their index."""
    size = shard_size(cell)
    return range(number * size, min((number + 1) * size, cell.num_samples))


def disk_bytes(cell: Cell) -> int:
    """What the samples of a cell take on the disk at most: a byte a colour of a pixel. Compressed, as
    those of shards are, it is 0.3 to 0.6 of that."""
    return cell.num_samples * bytes_of_sample(cell.model)


def bytes_of_sample(model: Model) -> int:
    """A byte a colour of a pixel of a frame."""
    sampling = sampling_of(model)
    return sampling.frames * sampling.height * sampling.width * 3


def is_divided(cell: Cell, folder: RunFolder) -> bool:
    """Whether a cell's samples are shards in a run folder, or will be. Older runs have one file
    however many there are."""
    return num_shards(cell) > 1 and not folder.samples(cell.key).exists()


def save_first(
    folder: RunFolder, key: str, parts: Sequence[Any], *, divided: bool
) -> dict[str, str]:
    """Write what the first round made, as the one samples file or as shard 0; its sha256 by its path
    in the cell's folder."""
    if not divided:
        write_samples(folder.samples(key), parts)
        return digest_of(folder.cell(key), folder.samples(key))
    with writing_shard(folder.shard(key, 0), 0) as add:
        for part in parts:
            add(part)
    return digest_of(folder.cell(key), folder.shard(key, 0))


def read_shards(cell: Cell, folder: RunFolder) -> list[dict[str, Any]]:
    """What is on record of the shards beside the first, in order, of those that are over."""
    if not is_divided(cell, folder):
        return []
    paths = (folder.shard_document(cell.key, i) for i in range(1, num_shards(cell)))
    return [read_shard(path) for path in paths if path.exists()]


def take_up_shards(
    cell: Cell, folder: RunFolder, stale: Callable[[Mapping[str, Any]], bool]
) -> list[str]:
    """Keep the shards of a cell (but the first) that are as they were written, set aside those that
    are not, forget those that failed or are `stale`. A sentence for each file that was set aside."""
    damaged = []
    for number in range(1, num_shards(cell)):
        document, tar = folder.shard_document(cell.key, number), folder.shard(cell.key, number)
        content: dict[str, Any] = {"status": ""}
        try:
            if document.exists():
                content = read_shard(document)
        except ValueError as error:
            damaged.append(f"{error}; set aside as {set_aside(document).name}, made again")
        wanted = shard_range(cell, number)
        fits = (
            content["status"] in MEASURED
            and content["requests"] == [wanted.start, wanted.stop]
            and not stale(content)
        )
        if fits and tar.exists():
            if digest_of(folder.cell(cell.key), tar).items() <= content["sample_files"].items():
                continue
            damaged.append(
                f"{tar} is damaged ({OTHER}); set aside as {set_aside(tar).name}, made again"
            )
        document.unlink(missing_ok=True)
    return damaged


def missing_shards(cell: Cell, folder: RunFolder) -> list[int]:
    """The shards of a divided cell, but the first, that are not over."""
    return [
        i for i in range(1, num_shards(cell)) if not folder.shard_document(cell.key, i).exists()
    ]
