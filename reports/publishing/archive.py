"""A published run as one file, FILE.tar.zst: packed so that the same run gives the same bytes, and
unpacked so that nothing lands outside its folder. No torch."""

from __future__ import annotations

import importlib
import tarfile
from pathlib import Path, PurePosixPath
from types import ModuleType

from ditbench.records.files import replacing

MOST_BYTES, MOST_FILES = 4 << 30, 10_000
"""Of an archive that is unpacked: the files of it together, and how many."""
LEVEL = 10


def zstandard() -> ModuleType:
    """The package; ValueError says how to get it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise ValueError(
            "a .tar.zst needs the package zstandard (pip install 'ditbench[share]'); a folder needs "
            "nothing"
        ) from None


def pack(folder: Path, path: Path) -> None:
    """Write the files of a folder into an archive, without owners and times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compressor = zstandard().ZstdCompressor(level=LEVEL)
    with (
        replacing(path) as partial,
        partial.open("wb") as raw,
        compressor.stream_writer(raw, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(entry, content)


def unpack(path: Path, into: Path) -> None:
    """Write the files of an archive below a folder. ValueError for a file that is no archive, and,
    before anything of it is written, for a member that is a link, a device, an absolute path or
    outside the folder; for more than `MOST_FILES` files, or more than `MOST_BYTES` bytes."""
    package = zstandard()
    decompressor = package.ZstdDecompressor()
    num = size = 0
    try:
        with (
            path.open("rb") as raw,
            decompressor.stream_reader(raw) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for member in archive:
                _check(member, path)
                num, size = num + 1, size + member.size
                if num > MOST_FILES or size > MOST_BYTES:
                    raise ValueError(
                        f"{path} holds more than {MOST_FILES} files or {MOST_BYTES >> 30} GiB: no "
                        "published run does"
                    )
                archive.extract(member, into, filter="data")
    except (package.ZstdError, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or no .tar.zst ({error})") from error


def _check(member: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path} holds {member.name}, which is no file (a link or a device)")
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        raise ValueError(f"{path} holds {member.name}, which would lie outside the folder")
