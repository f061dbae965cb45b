"""Shards of the samples of one cell, made in a process of their own that loads the model and
attaches the stack once, and times nothing. It holds one batch of samples at a time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ditbench.method.dependencies import changed
from ditbench.method.needs import resolve
from ditbench.models.requests import Request, batches, call_arguments, fingerprint
from ditbench.records.files import write_json
from ditbench.records.record import MEASURED
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import digest_of, writing_shard
from ditbench.runner import failures
from ditbench.runner.failures import failure
from ditbench.runner.leases import claim
from ditbench.runner.loaded import Loaded, seed_everything
from ditbench.runner.plan import missing_device, rebuild
from ditbench.runner.shards import shard_range
from ditbench.runner.spec import Spec
from ditbench.runner.worker import read_requests

BEGINS, MADE, OVER = "begins", "made", "over"
"""What a process says: that it begins a shard, and waits to hear whether it may; that it is over with
it; that no other is left to take."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Shards of one cell, as the processes that make them are told."""

    model: str
    stack: str
    key: str
    depends: dict[str, Any]
    """What the cell depended on when it was planned."""
    shards: tuple[int, ...]
    """Those that were missing; another process may take some of them."""
    batch: int
    """Samples a call, where the first round came down to another number than was planned; else 0."""


def make_shards(
    spec: Spec, job: ShardJob, session: str, folder: RunFolder, connection: Any
) -> None:
    """Make those shards of a job that no other process makes or has made, one after another, until
    one fails or the answer to `BEGINS` is no. Each leaves its file and its document, a failed one
    the document alone."""
    loaded = Loaded()
    with ExitStack() as undo:
        maker: Maker | None = None
        for number in job.shards:
            document = folder.shard_document(job.key, number)
            lease = None if document.exists() else claim(document.with_suffix(""), session)
            if lease is None:
                continue
            with lease:
                if document.exists():  # it was made between the two looks
                    continue
                connection.send((BEGINS, number))
                if not connection.recv():
                    return
                began = time.monotonic()
                try:
                    maker = maker or Maker(spec, job, folder, loaded, undo)
                    result = maker.make(number)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    result = failure(error)
                    if loaded.ledger and maker:
                        hint = failures.advice(spec, maker.cell.batch_size, loaded.ledger)
                        result["reason"] = f"{result['reason']}; {hint}"
                result |= {"session": session, "seconds": time.monotonic() - began}
                write_json(document, result)
            connection.send((MADE, number))
            if result["status"] not in MEASURED:
                return
    connection.send((OVER, -1))


class Maker:
    """A loaded pipeline with the stack of a cell attached."""

    def __init__(
        self, spec: Spec, job: ShardJob, folder: RunFolder, loaded: Loaded, undo: ExitStack
    ) -> None:
        """What is attached is taken off when `undo` ends. ValueError where the cell cannot run, or is
        not what was planned."""
        import torch

        from ditbench.models.fused_rows import computed_by
        from ditbench.models.text_ahead import TextAhead
        from ditbench.models.weights import weights_sha256
        from ditbench.profiling.latency import Sampler
        from ditbench.quiet import quiet
        from ditbench.records import environment

        self.planned = rebuild(spec, job.model, job.stack)
        if names := [] if self.planned.refusal else changed(job.depends, self.planned.depends):
            raise ValueError(f"{' and '.join(names)} changed after the run was planned")
        cell = self.cell = failures.with_batch(self.planned, job.batch)
        if reason := missing_device(spec.device) or cell.refusal:
            raise ValueError(reason)
        self.folder, self.key, self.loaded = folder, job.key, loaded
        self.requests = read_requests(folder.requests(job.model))
        undo.enter_context(quiet())
        undo.enter_context(torch.inference_mode())
        undo.enter_context(computed_by(spec.row_kernels))
        pipe = loaded.load(cell)
        if refusal := cell.stack.refusal(pipe):
            raise ValueError(refusal)
        artifacts = resolve(
            cell.model, cell.stack, spec.weights, spec.plugins, preparing=spec.preparing
        )
        prepared = {name: artifact.folder for name, artifact in artifacts.items()}
        sampling = cell.sampling
        self.ahead = undo.enter_context(
            TextAhead(
                pipe, spec.device, lambda batch: call_arguments(cell.model, sampling, batch),
                once=cell.encodes_once, offload=spec.offload,
            ).attached()
        )  # fmt: skip
        with loaded.watching(cell):
            self.ahead.batches = self._batches(job.shards[0])
            self.ahead.encode(self.ahead.batches[0])  # before methods hold memory
            self.attached = undo.enter_context(cell.stack.attached(pipe, prepared))
        self.sampler = Sampler(
            pipe, cell.model, sampling, self.attached, spec.device, self.ahead
        )  # fmt: skip
        self.made_with = {
            "requests_sha256": fingerprint(self.requests),
            "model_sha256": weights_sha256(cell.model, spec.weights),
            "environment": environment.describe(spec.device),
        }

    def _batches(self, number: int) -> list[list[Request]]:
        """The calls of a shard."""
        of = shard_range(self.planned, number)
        return list(batches(self.requests[of.start : of.stop], self.cell.batch_size))

    def make(self, number: int) -> dict[str, Any]:
        """Make a shard, and leave its file; what is on record of it."""
        seed_everything()  # whatever shards this process made before
        of, path = shard_range(self.planned, number), self.folder.shard(self.key, number)
        self.ahead.batches, self.loaded.attached = self._batches(number), self.attached
        with self.loaded.watching(self.cell), writing_shard(path, of.start) as add:
            for batch in self.ahead.batches:
                add(self.sampler(batch)[0])
        return {
            "status": "ok",
            "reason": "",
            "requests": [of.start, of.stop],
            "sample_files": digest_of(self.folder.cell(self.key), path),
            **self.made_with,
        }
