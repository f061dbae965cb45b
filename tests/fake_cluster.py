"""The few functions of Ray that the engine uses, with threads in place of nodes."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ditbench.runner.cluster import Lost, Node

ONE_AT_A_TIME = threading.Lock()
"""Nodes have environments of their own; threads share theirs, which starting processes changes."""


def node(name, cpus=1.0, gpus=0.0, memory=8e9):
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, memory=memory)


class FakeCluster:
    """`when(function, node, number)` is asked before each task, the `number`-th of its function: it
    may return "node" or "process", and that is lost, once the task has run; or an answer in place of
    what the function would return."""

    def __init__(self, *nodes, when=lambda function, node, number: None):
        self.alive = {n.id: n for n in nodes}
        self.when, self.closed = when, False
        self.submitted, self.running, self.most = [], {}, {}
        self._lock, self._threads = threading.Lock(), ThreadPoolExecutor(8)

    def __call__(self, address):
        self.address = address
        return self

    def nodes(self):
        return list(self.alive.values())

    def put(self, value):
        return value

    def submit(self, node, function, *arguments, cpus, gpus, memory):
        with self._lock:
            number = sum(name == function.__name__ for name, *_ in self.submitted)
            self.submitted.append((function.__name__, node.id, cpus, gpus, memory))
            of_node = self.running.setdefault(node.id, [])
            of_node.append(function.__name__)
            self.most.setdefault(node.id, []).append(sorted(of_node))
        what = self.when(function.__name__, node.id, number)

        def work():
            try:
                if what == "node":
                    self.alive.pop(node.id, None)
                if node.id not in self.alive:
                    raise Lost("its node died", node=True)
                if what == "process":
                    raise Lost("its process died", node=False)
                if what is not None:
                    return what
                with ONE_AT_A_TIME:
                    return function(*arguments)
            finally:
                with self._lock:
                    of_node.remove(function.__name__)

        return self._threads.submit(work)

    def wait(self, tasks, seconds):
        return list(wait(tasks, seconds, FIRST_COMPLETED).done)

    def result(self, task: Future):
        return task.result()

    def close(self):
        self.closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
