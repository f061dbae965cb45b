"""A transformer of made-up blocks and sub-layers: a method is attached to it, and driven step by step
with tensors that a test knows."""

from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import torch

from ditbench.method import Attachment, Now, build, find
from ditbench.models.family import family_named

B, D = 2, 3


def method_of(name, **knobs):
    """A method with these knobs."""
    return build(find(name), knobs)


def paths(steps, *shape, seed=0):
    """A tensor [B,*shape,D] for each step, that moves like a sampling: smooth, with some noise."""
    random = np.random.default_rng(seed)
    start, drift, bend = random.normal(size=(3, B, *shape, D))
    return [
        start + drift * t / 5 + bend * (t / 5) ** 2 + 0.01 * random.normal(size=start.shape)
        for t in range(steps)
    ]


def tensor(x):
    """In single precision."""
    return torch.tensor(np.asarray(x), dtype=torch.float32)


def near(x, y, tolerance=1e-4):
    """Assert that two arrays or tensors are equal within rounding."""
    assert np.allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


class Part:
    """A block or a sub-layer that remembers the route it was given."""

    def __init__(self, **facts):
        self.__dict__.update(facts)
        self.route = None

    def reroute(self, route, _patch, *, deferred=False, dense=None, idle=None, outputs_only=None):
        """Called by `Attachment.reroute` and `reroute_deferred`; nothing waits here."""
        self.route = route
        return False

    def __call__(self, run, given):
        """What comes out for `given`, where `run` is what it computes by itself."""
        return run(given) if self.route is None else self.route(run, given)


class Fake:
    """A pipeline of a family whose parts are all made up, with one method attached."""

    def __init__(
        self, method, *, family="dit", steps, blocks=2, kinds=("mlp",), grid=(1, 1, 1),
        scheduler=None, artifact=None,
    ):  # fmt: skip
        transformer = type(family_named(family).transformer, (), {})()
        transformer.forward = lambda hidden_states: (self.output(hidden_states),)
        config = {"prediction_type": "epsilon"}
        self.pipeline = SimpleNamespace(
            transformer=transformer, scheduler=scheduler or SimpleNamespace(config=config)
        )
        self.at = Attachment(self.pipeline, Now(num_steps=steps, grid=grid), ExitStack())
        self.at.blocks = [Part(index=i, module=None) for i in range(blocks)]
        self.at.sublayers = [
            Part(index=i, kind=kind, block=min(i, blocks - 1), stream="image")
            for i, kind in enumerate(kinds)
        ]
        self.at.artifact = artifact
        self.computed = []
        """(step, branch) of every part, or transformer, that ran by itself."""
        method.attach(self.pipeline, self.at)

    def output(self, hidden):
        """The transformer's own output; tests replace it."""
        raise NotImplementedError

    def at_step(self, step, branch=0):
        """Go to a step."""
        self.at.now.step, self.at.now.branch = step, branch

    def through_blocks(self, entering, own):
        """What leaves the last block for `entering` streams; `own(block, streams)` is what a block
        gives by itself."""
        streams = entering
        for block in self.at.blocks:

            def run(given, block=block):
                self.computed.append((self.at.now.step, block.index))
                return own(block, given)

            streams = block(run, streams)
        return streams
