"""A run without processes of its own, for very many runs: the runner's code is as it is, but rounds
and shards are made in this process, and the pipeline is called once for each batch."""

import time
from contextlib import contextmanager

import pytest

from ditbench.profiling import counting, latency
from ditbench.profiling.flops import Flops
from ditbench.records.record import read_round
from ditbench.runner import loaded
from ditbench.runner.generating import ShardJob, make_shards
from ditbench.runner.loaded import Loaded
from ditbench.runner.worker import run_round

FLOPS = Flops(
    flops=4000, linear_macs=1500, attention_macs=500, conv_macs=0, forwards=2, passes=4,
    text_flops=0, decoder_flops=100, uncounted={},
)  # fmt: skip
"""In place of a count."""


class InProcess:
    """An engine (`ditbench.runner.work.Engine`) whose processes are this one. `made`: what it was
    asked for, by cell and number of the shard, 0 for a round."""

    def __init__(self):
        self.loaded, self.made = Loaded(), []

    def run(self, work, time_rounds):
        def measure(units):
            for unit in units:
                began = time.monotonic()
                self.made.append((unit.cell.key, 0))
                run_round(work.spec, unit.job, work.folder, work.session, self.loaded)
                name = work.session if unit.again else ""
                path = work.folder.round(unit.cell.key, unit.round, name)
                yield read_round(path), time.monotonic() - began

        time_rounds(work, work.rounds, measure)
        for unit in work.shards:
            cell = unit.cell
            self.made.append((cell.key, unit.shard))
            job = ShardJob(
                model=cell.model.name, stack=str(cell.stack), key=cell.key, depends=cell.depends,
                shards=(unit.shard,), batch=0,
            )  # fmt: skip
            make_shards(work.spec, job, work.session, work.folder, Agreeing())
            work.finish(cell)


class Agreeing:
    """The end of a pipe at which everything is agreed to."""

    def send(self, word):
        pass

    def recv(self):
        return True


@contextmanager
def in_process():
    """Commands run in this process while it lasts; yields the engine. Only for stacks that change the
    sampling alone: what a batch made before is not made again."""
    engine, samples, call = InProcess(), {}, latency.Sampler.__call__

    def once(sampler, requests):
        name = sampler.sampling.steps, tuple(request.seed for request in requests)
        if name not in samples:
            samples[name] = call(sampler, requests)
        return samples[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditbench.runner.execute.engine_of", lambda spec: engine)
        patch.setattr(latency.Sampler, "__call__", once)
        patch.setattr(counting, "count_generation", lambda *_, **__: FLOPS)
        patch.setattr(loaded, "_release", lambda device: None)  # collects garbage: 0.1 s a cell
        yield engine
