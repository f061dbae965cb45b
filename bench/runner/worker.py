"""One cell in one fresh process: load, attach, warm up, time, save. Runs in a child of `execute`;
what it measures it writes to files."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ditbench.method.dependencies import changed
from ditbench.method.needs import resolve
from ditbench.models.requests import Request, batches, call_arguments, fingerprint
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.models.truncation import cut_prompts
from ditbench.models.workload import sampler_of
from ditbench.records.files import read_json, write_json
from ditbench.records.record import MEASURED
from ditbench.records.run_folder import RunFolder
from ditbench.runner import failures
from ditbench.runner.failures import failure
from ditbench.runner.loaded import Loaded, shortened
from ditbench.runner.plan import Cell, missing_device, rebuild
from ditbench.runner.shards import save_first, shard_range
from ditbench.runner.spec import Spec

WARMING_PART = 5
"""Where the process has made a whole call already, one step in so many warms up, two at least."""


def read_requests(path: Path) -> list[Request]:
    """The requests of a model as a run folder keeps them."""
    return [Request(**fields) for fields in read_json(path)]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One round of one cell, as the process that measures it is told."""

    model: str
    stack: str
    round: int
    key: str
    depends: dict[str, Any]
    """What the cell depended on when it was planned."""
    again: bool = False
    """Whether only its time is wanted, beside other cells of the command."""


def run_units(
    spec: Spec, jobs: Sequence[Job], session: str, folder: RunFolder, sender: Any
) -> None:
    """Measure jobs of one model one after another with one pipeline, sending after each whether the
    next follows: it does not after an error, for nobody knows what that left attached, nor after a
    stack that is known to have left something."""
    loaded = Loaded()
    for i, job in enumerate(jobs):
        status = run_round(spec, job, folder, session, loaded)
        fit = status in (*MEASURED, "refused") and not loaded.spoiled
        sender.send(fit and i + 1 < len(jobs))
        if not fit:
            return


def run_round(
    spec: Spec, job: Job, folder: RunFolder, session: str = "", loaded: Loaded | None = None
) -> str:
    """Measure one round of a cell and leave it in the run folder under its key; the first round
    also leaves the samples. Its status.

    `session`: the command, by its start. A file that the cell depends on and that was edited since
    the run was planned is a failure, for the folder is named after it. Whatever goes wrong is
    written down as the round's status and reason; only a killed process leaves nothing.
    """
    loaded = loaded or Loaded()
    smaller = failures.halved_before(folder, job)
    while True:
        status, oom_at = _try_round(spec, job, folder, session, loaded, smaller)
        if oom_at < 2 or not spec.halves(job.model):
            return status
        loaded.pipe, loaded.warm, smaller = None, False, oom_at // 2


def _try_round(
    spec: Spec, job: Job, folder: RunFolder, session: str, loaded: Loaded, smaller: int
) -> tuple[str, int]:
    """Measure one round with the batch that was planned, or a `smaller` one where that is above 0;
    its status, and the batch with which memory ran out, else 0."""
    path, oom_at = folder.round(job.key, job.round, session if job.again else ""), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        cell = rebuild(spec, job.model, job.stack)
        if names := [] if cell.refusal else changed(job.depends, cell.depends):
            raise ValueError(
                f"{' and '.join(names)} changed after the run was planned; the same command runs "
                "it again"
            )
        first = len(shard_range(cell, 0))
        cell = failures.with_batch(cell, smaller)
        result = _measure(cell, job, session, folder, first, loaded)
        if left := loaded.left_by(cell):
            result["left_behind"] = shortened(left)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise  # Ctrl-C; processes of their own do not hear it, and a method may have raised it
        result = failure(error)
        if loaded.ledger:
            hint = failures.advice(spec, cell.batch_size, loaded.ledger)
            result |= {"memory": loaded.ledger, "reason": f"{result['reason']}; {hint}"}
            oom_at, loaded.ledger = cell.batch_size, {}
    spent = {"round": job.round, "seconds": time.monotonic() - started}
    if smaller:
        spent |= failures.halved_to(smaller, result)
    try:
        write_json(path, result | spent)
    except (
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # what a library measured is no JSON: said, not swallowed
        result = failure(error, "what was measured cannot be written down: ")
        write_json(path, result | spent)
    return str(result["status"]), oom_at


def _measure(
    cell: Cell, job: Job, session: str, folder: RunFolder, first: int, loaded: Loaded
) -> dict[str, Any]:
    """What a round of a cell measures, on its `first` samples: all, or those of the first shard."""
    import torch

    from ditbench.models.fused_rows import computed_by
    from ditbench.models.text_ahead import TextAhead
    from ditbench.models.weights import weights_sha256
    from ditbench.profiling import counting, flops
    from ditbench.profiling.compiling import Compilation
    from ditbench.profiling.latency import Sampler, Timing
    from ditbench.profiling.memory import measure_memory
    from ditbench.profiling.operations import profile_loop
    from ditbench.quiet import quiet
    from ditbench.records import environment

    if reason := missing_device(cell.spec.device):
        return {"status": "refused", "reason": reason}
    with quiet(), torch.inference_mode(), computed_by(cell.spec.row_kernels):
        pipe = loaded.load(cell)
        if refusal := cell.stack.refusal(pipe):
            return {"status": "refused", "reason": refusal}
        sampling, spec = cell.sampling, cell.spec
        artifacts = resolve(
            cell.model, cell.stack, spec.weights, spec.plugins, preparing=spec.preparing
        )
        prepared = {name: artifact.folder for name, artifact in artifacts.items()}
        whole = job.round == 0 and not job.again
        ahead = TextAhead(
            pipe, spec.device, lambda batch: call_arguments(cell.model, sampling, batch),
            once=cell.encodes_once, offload=spec.offload, encoded=loaded.text,
            waiting=loaded.encoders_wait,
        )  # fmt: skip
        requests = read_requests(folder.requests(job.model))
        parts = list(batches(requests[:first], cell.batch_size))
        coming = timed(parts)[: None if whole else 1]
        ahead.batches = [parts[0], *(parts[i] for i in coming if i)]
        with loaded.watching(cell), ahead.attached() as text, ExitStack() as undo:
            text.encode(parts[0])  # before methods hold memory, and before that is measured
            attached = undo.enter_context(cell.stack.attached(pipe, prepared))
            loaded.attached = attached
            sampler = Sampler(pipe, cell.model, sampling, attached, cell.spec.device, text)
            made: dict[int, Any] = {}
            warm: list[Timing] = []
            later: list[Timing] = []
            compilation = None
            if cell.stack.compiling:  # before anything is measured
                compilation = Compilation(sampler, [parts[i] for i in (0, *coming)], cell.stack)

            def warm_up() -> None:
                """With the real batch and the real number of steps; its samples count, its time
                does not."""
                made[0], took = sampler(parts[0])
                warm.append(took)

            memory = {}
            if compilation and not whole:
                loaded.warm = True
            elif loaded.warm and not whole:
                sampler.warm_up(parts[0], max(2, sampling.steps // WARMING_PART))
            else:
                memory = measure_memory(
                    warm_up, pipe, attached, cell.spec.device,
                    shared=cell.spec.process_of_device == "round",
                )  # fmt: skip
            loaded.warm, timing = True, []
            for i in coming:
                made[i], took = sampler(parts[i])
                later.append(took)
                timing.append({"session": session, "round": job.round, "batch": i, **asdict(took)})
            idle = cell.stack.idle(sampling_of(cell.model), attached)
            result: dict[str, Any] = {
                "status": "inert" if idle else "ok",
                "reason": f"{' and '.join(idle)} changed nothing and counted no event"
                if idle
                else "",
                "load_s": loaded.seconds,
                "first_call_s": warm[0].call_s if warm else None,
                "timing": timing,
                "counters": attached.counters(),
                "schedule": attached.schedule(),
                "artifacts": {name: artifact.cost() for name, artifact in artifacts.items()},
                "environment": environment.describe(cell.spec.device) | _shared(cell.spec),
                "sampling": asdict(sampling) | sampler_of(cell.model) | _calls(pipe, sampling),
                "requests_sha256": fingerprint(requests),
                "model_sha256": weights_sha256(cell.model, cell.spec.weights),
            }
            if compilation:
                result["compilation"] = compilation.as_dict([*warm, *later])
            if loaded.gpu:
                result["host"] = loaded.gpu.now() | {"session": session, "round": job.round}
                result["environment"]["gpu"] = loaded.gpu.settings
            if whole:
                pixels, divided = [made[i] for i in sorted(made)], first < len(requests)
                result["sample_files"] = save_first(folder, job.key, pixels, divided=divided)
                result["memory"] = memory | text.as_dict()
                if cell.spec.weights != "random":  # their tokenizer is a stand-in
                    result["prompts_cut"] = cut_prompts(pipe, cell.model, sampling, requests)
                chosen = flops.counted_parts(cell.stack, parts)
                alike = flops.alike_every_call(cell.stack)
                call = partial(counting.count_generation, pipe, alike=alike)
                with attached.inspected():
                    counted = text.counted(chosen, lambda: call(lambda: [*map(sampler, chosen)]))
                result["flops"] = asdict(counted.divided(sum(map(len, chosen)), len(chosen)))
                if spec.profile:
                    loop = profile_loop(pipe, lambda: sampler(parts[0]), spec.device)
                    result["operations"] = loop | {"samples": len(parts[0])}
            result["notes"] = attached.notes()
    return result


def _shared(spec: Spec) -> dict[str, str]:
    """That cells share a process, in their environment: times of the two ways are not compared."""
    return {"process": "round"} if spec.process_of_device == "round" else {}


def _calls(pipe: Any, sampling: Sampling) -> dict[str, int]:
    """How many steps the sampler made, where they are not as many as it was asked for (Heun's makes
    2 N - 1 of N)."""
    made = len(pipe.scheduler.timesteps)
    return {"calls": made} if made != sampling.steps else {}


def timed(parts: Sequence[Sequence[Any]]) -> list[int]:
    """Which batches are timed: all but the first, which warms up; that one too where no other is as
    large. Later rounds time the first of these again."""
    whole = len(parts) > 1 and len(parts[1]) == len(parts[0])
    return list(range(1 if whole else 0, len(parts)))
