"""The few functions of Ray that are used: nodes, tasks on one of them, their results. No other module of
the runner imports Ray, and this one when it connects."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ditbench.records.text import one_line

LONGEST = 300
"""Characters of a reason."""
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
"""Environment variables of a cluster that is started here: it reports to nobody, and may take longer
than half a minute to start."""


class Lost(Exception):
    """A task has no result: its node is gone (`node`), or its process, or it raised an error."""

    def __init__(self, reason: str, *, node: bool) -> None:
        super().__init__(reason)
        self.node = node


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node, and what it has for tasks."""

    id: str
    name: str
    """Host, and the beginning of the id."""
    cpus: float
    gpus: float
    memory: float
    """Bytes."""


class Cluster:
    """A Ray cluster that this process is the driver of."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at `address`; without one to that of this machine, else to one that
        is started here and ends with the process. OSError where there is none."""
        for name, value in OWN.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray = ray
        self._functions: dict[Callable[..., Any], Any] = {}
        self._handlers = {n: signal.getsignal(n) for n in SIGNALS}
        self._stopped: BaseException | None = None
        try:
            ray.init(
                address=address or None, log_to_driver=False, logging_level=logging.CRITICAL,
                include_dashboard=None if address else False,
            )  # fmt: skip
        except Exception as error:  # of several types, and some of none but this
            at = f"at {address}" if address else "here"
            raise OSError(f"no Ray cluster {at}: {one_line(str(error), LONGEST)}") from error
        finally:  # Ray's own handlers would end the process at once
            self._set_handlers({n: self._remembering(h) for n, h in self._handlers.items()})

    def _remembering(self, handler: Any) -> Any:
        """A signal's handler that notes what it raises: out of a function of Ray comes a
        KeyboardInterrupt in its place."""
        if not callable(handler):
            return handler

        def note(number: int, frame: Any) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                self._stopped = error
                raise

        return note

    def _set_handlers(self, handlers: dict[int, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        return [
            Node(
                id=n["NodeID"], name=f"{n['NodeManagerHostname']}/{n['NodeID'][:6]}",
                cpus=n["Resources"].get("CPU", 0.0), gpus=n["Resources"].get("GPU", 0.0),
                memory=n["Resources"].get("memory", 0.0),
            )
            for n in self._ray.nodes()
            if n["Alive"]
        ]  # fmt: skip

    def put(self, value: Any) -> Any:
        """`value` for the arguments of several tasks, sent to each node once."""
        return self._ray.put(value)

    def submit(
        self, node: Node, function: Callable[..., Any], *arguments: Any, cpus: float, gpus: float,
        memory: float,
    ) -> Any:  # fmt: skip
        """Begin `function(*arguments)` on a node as soon as it has so much to spare; what stands for
        the task. Ray does not retry: it would count lost nodes and tasks that kill their process
        alike, and those that run out of memory not at all."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if function not in self._functions:  # each is sent to the cluster once
            self._functions[function] = self._ray.remote(function)
        task = self._functions[function].options(
            num_cpus=cpus, num_gpus=gpus, memory=int(memory), max_retries=0,
            name=function.__name__,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )  # fmt: skip
        return task.remote(*arguments)

    def wait(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        """The tasks that have ended, at the latest after so many seconds."""
        tasks = list(tasks)
        try:
            done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0, fetch_local=False)
            if not done:
                done, _ = self._ray.wait(tasks, num_returns=1, timeout=seconds, fetch_local=False)
        except KeyboardInterrupt as error:
            raise self._stopped or error from None
        return list(done)

    def result(self, task: Any) -> Any:
        """What a task that has ended returned; `Lost` where it did not."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except KeyboardInterrupt as error:
            raise self._stopped or error from None
        except (
            errors.NodeDiedError, errors.TaskUnschedulableError, errors.ObjectLostError,
            errors.LocalRayletDiedError,
        ) as error:  # fmt: skip
            raise Lost(_reason(error), node=True) from error
        except errors.OutOfMemoryError as error:
            raise Lost("its node ran out of memory, and Ray ended it", node=False) from error
        except errors.WorkerCrashedError as error:
            raise Lost("its Ray worker ended without a word", node=False) from error
        except errors.RayError as error:
            raise Lost(_reason(error), node=False) from error

    def cancel(self, task: Any) -> None:
        """End a task, and its process."""
        self._ray.cancel(task, force=True)

    def close(self) -> None:
        """End all tasks and leave the cluster; one that was started here ends."""
        self._ray.shutdown()
        self._set_handlers(self._handlers)


def _reason(error: BaseException) -> str:
    """What an error says: of one that was raised on a node the line of the error itself, which ends
    its traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return one_line(f"{type(cause).__name__}: {cause}", LONGEST)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if "Traceback" in str(error) else lines[0], LONGEST) if lines else ""
