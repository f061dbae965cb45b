"""The samples of a cell on disk: one safetensors file, or a folder of shards, read alike. No torch.

A shard is a tar of lossless WebP pictures, `INDEX.webp`, of a video its frames, `INDEX/FRAME.webp`;
INDEX is that of the request, and the shards of a cell follow one another without a gap. n samples,
T frames, H height, W width.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ditbench.records.files import digest, replacing
from ditbench.records.reading import regular
from ditbench.records.text import one_line

Pixels = NDArray[np.uint8]
WEBP = {"lossless": True, "quality": 0, "method": 1}
"""How pictures are compressed: 0.34 of the bytes of samples of 64 pixels in 1.1 ms, 0.49 of noisy
ones of 512 in 28 ms; the slowest setting saves 0.02 and takes a hundred times as long."""
MEMBER = re.compile(r"(\d+)(?:/(\d+))?\.webp")
SUFFIX = ".tar"
OTHER = "its sha256 is not that of what was written"
"""What is wrong with a file that `not_as_written` names."""


def write_samples(path: Path, parts: Sequence[Pixels]) -> None:
    """Write batches of samples as one safetensors file, uint8 [n, H, W, 3] or [n, T, H, W, 3]."""
    # safetensors writes memory as it lies: a video that is a transposed view would come back
    # scrambled.
    with replacing(path, synced=True) as partial:
        save_file({"samples": np.ascontiguousarray(np.concatenate(parts))}, partial)


@contextmanager
def writing_shard(path: Path, start: int) -> Iterator[Callable[[Pixels], None]]:
    """Yields a function that takes the next batch of a shard, whose first sample has the index
    `start`. The file is there, on the disk, when the block ends, and not at all when it fails; the
    same samples make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, synced=True) as partial, tarfile.open(
        partial, "w", format=tarfile.USTAR_FORMAT
    ) as tar:  # fmt: skip
        index = start

        def add(batch: Pixels) -> None:
            nonlocal index
            for sample in batch:
                frames = {f"/{t:04d}": frame for t, frame in enumerate(sample)}
                for frame, pixels in ({"": sample} if sample.ndim == 3 else frames).items():
                    content = _compressed(pixels)
                    member = tarfile.TarInfo(f"{index:05d}{frame}.webp")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
                index += 1

        yield add


def _compressed(picture: Pixels) -> bytes:
    content = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, "WEBP", **WEBP)
    return content.getvalue()


def open_samples(path: Path, within: Path | None = None) -> SingleFile | Shards:
    """The samples in a file, or in a folder of shards, none of them a link out of the folder
    `within`; ValueError says what is wrong with them."""
    return Shards(path, within) if path.is_dir() else SingleFile(path, within)


class SingleFile:
    """Samples in one safetensors file."""

    def __init__(self, path: Path, within: Path | None = None) -> None:
        self.path = path
        try:
            with safe_open(regular(path, within), "np") as f:
                tensor = f.get_slice("samples")
                self.shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({one_line(str(error))})") from error
        if dtype != "U8" or len(self.shape) not in (4, 5) or self.shape[-1] != 3 or 0 in self.shape:
            raise ValueError(
                f"{path} holds {dtype} samples of shape {list(self.shape)}, not uint8 [n, H, W, 3] "
                "or [n, T, H, W, 3]"
            )

    def read(self, start: int, stop: int, frames: Sequence[int] | None = None) -> Pixels:
        """Samples start to stop - 1, of videos all frames or those named."""
        try:
            with safe_open(self.path, "np") as f:
                tensor = f.get_slice("samples")
                if frames is None:
                    every: Pixels = tensor[start:stop]
                    return every
                return np.stack([tensor[start:stop, t : t + 1][:, 0] for t in frames], 1)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({one_line(str(error))})") from error

    def sha256(self) -> str:
        """Of the file."""
        return digest(self.path)

    def as_file(self, folder: Path) -> Path:
        """A safetensors file of all samples."""
        return self.path


class Shards:
    """Samples in a folder of shards. Pictures are decoded as they are read."""

    def __init__(self, path: Path, within: Path | None = None) -> None:
        self.path = path
        self._places: list[tuple[int, list[tuple[int, int]]]] = []
        """Of each sample: which tar, and offset and size of its pictures."""
        self._tars = [regular(tar, within) for tar in sorted(path.glob(f"*{SUFFIX}"))]
        self._videos = False
        for number, tar in enumerate(self._tars):
            pictures, self._videos = _pictures_of(tar, len(self._places))
            self._places += [(number, of_sample) for of_sample in pictures]
        if not self._places:
            raise ValueError(f"{path} holds no samples")
        first = self._decoded(0, 1, None)
        self.shape = (len(self._places), *first.shape[1:])

    def read(self, start: int, stop: int, frames: Sequence[int] | None = None) -> Pixels:
        """Samples start to stop - 1, of videos all frames or those named."""
        pixels = self._decoded(start, stop, frames)
        wanted = self.shape[1:] if frames is None else (len(frames), *self.shape[2:])
        if pixels.shape[1:] != wanted:
            raise ValueError(f"{self.path} holds samples of several sizes")
        return pixels

    def _decoded(self, start: int, stop: int, frames: Sequence[int] | None) -> Pixels:
        samples: list[Pixels] = []
        file: BinaryIO | None = None
        opened = -1
        try:
            for number, pictures in self._places[start:stop]:
                if number != opened:
                    if file:
                        file.close()
                    file, opened = self._tars[number].open("rb"), number
                assert file is not None
                chosen = pictures if frames is None else [pictures[t] for t in frames]
                decoded = [_picture(file, *place) for place in chosen]
                samples.append(np.stack(decoded) if self._videos else decoded[0])
            return np.stack(samples)
        except (OSError, ValueError, SyntaxError, IndexError) as error:  # of bytes that are no WebP
            place = self._tars[opened] if opened >= 0 else self.path
            raise ValueError(f"{place} is damaged ({one_line(str(error))})") from error
        finally:
            if file:
                file.close()

    def sha256(self) -> str:
        """Of the names and hashes of all shards."""
        lines = (f"{tar.name} {digest(tar)}\n" for tar in self._tars)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def as_file(self, folder: Path) -> Path:
        """A safetensors file of all samples, written to a folder a sample at a time, for programs
        that read nothing else."""
        target, size = folder / "all.safetensors", int(np.prod(self.shape))
        shape = ",".join(map(str, self.shape))
        header = (
            f'{{"samples":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,{size}]}}}}'
        ).encode()
        header += b" " * (-len(header) % 8)
        with target.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for i in range(self.shape[0]):
                file.write(np.ascontiguousarray(self.read(i, i + 1)).tobytes())
        return target


def _pictures_of(path: Path, first: int) -> tuple[list[list[tuple[int, int]]], bool]:
    """Offset and size of the pictures of each sample in a shard that begins with the index `first`,
    and whether these are videos; ValueError where it does not, or something is missing from it."""
    video = False
    samples: list[list[tuple[int, int]]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = MEMBER.fullmatch(member.name)
                if not match:
                    raise ValueError(f"{member.name} is no sample")
                video = match[2] is not None
                index, frame = int(match[1]) - first, int(match[2] or 0)
                if index == len(samples) and frame == 0:
                    samples.append([])
                if index != len(samples) - 1 or frame != len(samples[-1]):
                    raise ValueError(f"{member.name} does not follow what is before it")
                samples[-1].append((member.offset_data, member.size))
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({one_line(str(error))})") from error
    return samples, video


def _picture(file: BinaryIO, offset: int, size: int) -> Pixels:
    file.seek(offset)
    return np.asarray(Image.open(BytesIO(file.read(size)), formats=["WEBP"]).convert("RGB"))


def not_as_written(cell: Path, stated: Mapping[str, str]) -> list[Path]:
    """The samples files of a cell's folder that are there and are not what was written: `stated`
    has the sha256 of each by its path in the folder."""
    return [
        path
        for name, sha256 in stated.items()
        if (path := cell / name).is_file() and digest(path) != sha256
    ]


def digest_of(cell: Path, path: Path) -> dict[str, str]:
    """The sha256 of a samples file by its path in the cell's folder, as records have it."""
    return {path.relative_to(cell).as_posix(): digest(path)}
