"""The layout of a run folder: where its spec, requests, records, samples and scores lie. No torch.

spec.json, command.txt           what was run, and by which command
.lock                            the command that writes there now (`ditbench.records.lock`)
requests/MODEL.json              what a model was asked for, in sample order
cells/KEY/record.json            a finished cell (`ditbench.records.record`)
cells/KEY/round-N.json           what round N of a cell measured
cells/KEY/round-N-SESSION.json   its time again, beside cells that a later command added
cells/KEY/samples.safetensors    uint8 [n, H, W, 3] or [n, T, H, W, 3]
cells/KEY/samples/SSSSS.tar      the same of a large cell, in shards (`ditbench.records.sample_files`)
cells/KEY/samples/SSSSS.json     what a shard is of and how it was made; of shard 0, round-0.json
cells/KEY/samples/SSSSS.lease-N  the process that makes a shard now (`ditbench.runner.leases`)
scores/KEY.safetensors           per-sample values and statistics (`ditbench.records.scores`)
features/KEY.safetensors         what the statistics are made of; reports do without it
features/KEY.parts/              features of a cell whose extraction was stopped
ray.jsonl                        what the nodes of a cluster did (`ditbench.runner.members`)
references.json                  reference files by model and extractor
readings.safetensors             cached statistics of the report
superseded/KEY/                  cells that were planned again under another key

A published run (`ditbench.records.published`) has instead of cells/, scores/ and readings:

records.jsonl                    the records, a line each
scores.zip                       KEY.safetensors: per-sample values and statistics, no features
thumbnails.zip                   KEY/SAMPLE-FRAME.webp
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ditbench.records.reading import is_inside, regular


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder; none of them need exist."""

    path: Path

    def own(self, path: Path) -> Path:
        """`path`, where it is a file of this folder and no link out of it; ValueError otherwise,
        FileNotFoundError where nothing is there."""
        return regular(path, self.path)

    def check_own(self) -> None:
        """ValueError where a part of the folder is a link out of it: what is written there would
        land elsewhere."""
        parts = [self.path / name for name in ("requests", "cells", "scores", "superseded")]
        for part in (*parts, *self.path.glob("cells/*")):
            if part.is_symlink() and not is_inside(part, self.path):
                raise ValueError(
                    f"out: {part} is a link out of the run folder, and nothing is written there; "
                    "remove the link, or choose another folder with --out"
                )

    @property
    def spec(self) -> Path:
        """What the run was made with; a folder without it is no run folder."""
        return self.path / "spec.json"

    @property
    def command(self) -> Path:
        """The latest command, as text."""
        return self.path / "command.txt"

    @property
    def lock(self) -> Path:
        """What a command locks that writes to the folder."""
        return self.path / ".lock"

    @property
    def ray_log(self) -> Path:
        """What the nodes of a cluster did, a line each."""
        return self.path / "ray.jsonl"

    @property
    def foreign(self) -> bool:
        """Whether something lies in the folder that is not what a run leaves that was stopped in its
        first moments, before it had a spec."""
        ours = {self.lock.name, self.command.name, "requests", "cells"}
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        return any(name not in ours and not name.endswith(".partial") for name in names)

    @property
    def references(self) -> Path:
        """Reference files of the run's metrics, with their hashes."""
        return self.path / "references.json"

    @property
    def readings(self) -> Path:
        """Statistics that a report worked out, by what they were made of."""
        return self.path / "readings.safetensors"

    @property
    def published_records(self) -> Path:
        """The records of a published run, a line each."""
        return self.path / "records.jsonl"

    @property
    def published_scores(self) -> Path:
        """The scores of a published run."""
        return self.path / "scores.zip"

    @property
    def thumbnails(self) -> Path:
        """The first samples of each cell of a published run."""
        return self.path / "thumbnails.zip"

    def requests(self, model: str) -> Path:
        """What a model was asked for."""
        return self.path / "requests" / f"{model}.json"

    def cell(self, key: str) -> Path:
        """Folder of a cell."""
        return self.path / "cells" / key

    def record(self, key: str) -> Path:
        """A cell's record; there once all its rounds are."""
        return self.cell(key) / "record.json"

    def round(self, key: str, number: int, session: str = "") -> Path:
        """What one round of a cell measured; with `session` (digits and letters), its time again in
        that command."""
        return self.cell(key) / f"round-{number}{'-' if session else ''}{session}.json"

    def samples(self, key: str) -> Path:
        """A cell's samples, where they are one file."""
        return self.cell(key) / "samples.safetensors"

    def shards(self, key: str) -> Path:
        """Folder of a cell's samples, where they are several files."""
        return self.cell(key) / "samples"

    def shard(self, key: str, number: int) -> Path:
        """One shard of a cell's samples."""
        return self.shards(key) / f"{number:05d}.tar"

    def shard_document(self, key: str, number: int) -> Path:
        """What a shard is of and how it was made, or why it was not. Of shard 0, the first round."""
        return self.shards(key) / f"{number:05d}.json" if number else self.round(key, 0)

    def stored_samples(self, key: str) -> Path:
        """A cell's samples as they are there: the one file, else the folder of shards where there is
        one, else the file that is missing."""
        one, several = self.samples(key), self.shards(key)
        return several if not one.exists() and any(several.glob("*.tar")) else one

    def parts(self, key: str) -> list[Path]:
        """What lies where files of a cell are to be, links to nothing too: record, rounds, samples,
        shards with their documents and leases."""
        one = [path for path in (self.record(key), self.samples(key)) if os.path.lexists(path)]
        several = [
            path
            for pattern in ("*.tar", "*.json", "*.lease-*")
            for path in sorted(self.shards(key).glob(pattern))
        ]
        return [*one, *self.rounds(key), *self.timed_again(key), *several]

    def scores(self, key: str) -> Path:
        """A cell's scores."""
        return self.path / "scores" / f"{key}.safetensors"

    def features(self, key: str) -> Path:
        """A cell's features."""
        return self.path / "features" / f"{key}.safetensors"

    def feature_parts(self, key: str) -> Path:
        """Features of some of a cell's samples, while they are extracted."""
        return self.path / "features" / f"{key}.parts"

    def superseded(self, key: str) -> Path:
        """Where the folder of a cell goes that was planned again under another key."""
        return self.path / "superseded" / key

    def rounds(self, key: str) -> list[Path]:
        """The rounds of a cell that are there, in order."""
        paths = [p for p in self.cell(key).glob("round-*.json") if p.stem.count("-") == 1]
        return sorted(paths, key=lambda path: (len(path.name), path.name))

    def timed_again(self, key: str, number: int | None = None) -> list[Path]:
        """What was timed again of a cell, of all its rounds or of one, by command."""
        return sorted(self.cell(key).glob(f"round-{'*' if number is None else number}-*.json"))

    def records(self) -> list[Path]:
        """The records that are there, in no particular order."""
        return list(self.path.glob("cells/*/record.json"))

    def all_scores(self) -> list[Path]:
        """The scores files that are there, by key."""
        return sorted(self.path.glob("scores/*.safetensors"))

    def all_shards(self) -> list[Path]:
        """The shards that are there, of all cells."""
        return sorted(self.path.glob("cells/*/samples/*.tar"))

    def leases(self) -> list[Path]:
        """What processes make now, of all cells, as `ditbench.runner.leases` names it."""
        return sorted({p.with_suffix("") for p in self.path.glob("cells/*/samples/*.lease-*")})
