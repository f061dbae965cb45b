"""Pictures from outside, in order and a chunk at a time: a folder of PNG and JPEG files, or an npz
as ADM's. n pictures, H height, W width.

What cannot be read is named, all of it in one sentence, and nothing is left out silently.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ditbench.records.files import file_sha256

CHUNK = 32
ENDINGS = (".png", ".jpg", ".jpeg")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")
"""Kinds of Pillow picture with eight bits a channel or less."""
NAMED = 5
"""Damaged files that a sentence names."""


@dataclass
class Pictures:
    """The pictures of `source`; `chunks` gives them as uint8 [at most CHUNK, H, W, 3], all of a
    chunk of one size."""

    source: Path
    num: int = field(init=False)
    sha256: dict[str, str] = field(default_factory=dict, init=False)
    """File name -> sha256, of what has been read so far."""

    def __post_init__(self) -> None:
        if self.source.is_dir():
            self.num = len(names := files(self.source))
            if not names:
                raise ValueError(f"{self.source} holds no PNG or JPEG files")
        elif self.source.suffix == ".npz" and self.source.is_file():
            self.num = _shape(self.source)[0]
        else:
            raise ValueError(f"{self.source} is neither a folder of pictures nor an npz file")

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """The pictures; ValueError at the end names the files that could not be read."""
        if self.source.is_dir():
            yield from self._from_folder()
        else:
            yield from _from_npz(self.source)
            self.sha256[self.source.name] = file_sha256(self.source)

    def _from_folder(self) -> Iterator[NDArray[np.uint8]]:
        waiting: list[NDArray[np.uint8]] = []
        damaged = []
        for path in files(self.source):
            try:
                picture = open_picture(path)
            except ValueError as error:
                damaged.append(str(error))
                continue
            self.sha256[path.relative_to(self.source).as_posix()] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
            if waiting and (len(waiting) == CHUNK or waiting[0].shape != picture.shape):
                yield np.stack(waiting)
                waiting = []
            waiting.append(picture)
        if damaged:
            more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
            raise ValueError(
                f"{len(damaged)} of {self.num} pictures in {self.source} cannot be used: "
                f"{'; '.join(damaged[:NAMED])}{more}"
            )
        yield np.stack(waiting)


def files(folder: Path) -> list[Path]:
    """PNG and JPEG files under a folder in natural order: `2.png` before `10.png`."""
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file()]
    return sorted(paths, key=lambda p: natural(p.relative_to(folder).as_posix()))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key: runs of digits count as numbers."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def open_picture(path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]; transparency is dropped and grey is spread over the channels. ValueError
    names a damaged file."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has all three for damaged files
        raise ValueError(f"{path.name} is damaged ({str(error).splitlines()[0]})") from error
    if mode not in MODES:
        raise ValueError(f"{path.name} has more than eight bits a channel ({mode})")
    return pixels


def _shape(path: Path) -> tuple[int, ...]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as f:
            shape, _, dtype = _header(f)
    except KeyError:
        raise ValueError(f"{path} holds no pictures (it has no arr_0)") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or not shape[0]:
        raise ValueError(
            f"{path} holds {dtype} pictures of shape {list(shape)}, not uint8 [n, H, W, 3]"
        )
    return shape


def _header(f: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(f)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, by_column, dtype = read(f)
    if by_column:
        raise ValueError("arr_0 is stored by column")
    return shape, by_column, dtype


def _from_npz(path: Path) -> Iterator[NDArray[np.uint8]]:
    """`arr_0` as it streams out of the archive: ADM's are gigabytes."""
    num, *size = _shape(path)
    each = int(np.prod(size))
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as f:
            _header(f)
            for start in range(0, num, CHUNK):
                count = min(CHUNK, num - start)
                raw = f.read(count * each)
                if len(raw) < count * each:
                    raise ValueError("arr_0 ends early")
                yield np.frombuffer(raw, np.uint8).reshape(count, *size)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
