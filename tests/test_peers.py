"""Other libraries as methods: refused in a sentence without their package, and where it is installed,
within the contract."""

from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack
from ditbench.testing import check_method, tiny

PEERS = Path(__file__).parents[1] / "peers"
RUNS_ON = {
    "cachedit": (
        "cache-dit",
        ("dit", "pixart", "flux", "wan"),
        "front=1, warm_up=2, threshold=2.0",
    ),
    "paraattention": ("para-attn", ("wan",), "threshold=2.0"),
}


def there(package):
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def test_the_readme_describes_every_plug_in():
    text = (PEERS / "README.md").read_text()
    names = {path.stem for path in PEERS.glob("*.py")}
    assert names == set(RUNS_ON) and all(f"`{name}.py`" in text for name in names)


@pytest.mark.parametrize("name", RUNS_ON)
def test_without_its_package_a_peer_is_refused_in_a_sentence(name):
    package, kinds, _ = RUNS_ON[name]
    if there(package):
        pytest.skip(f"{package} is installed")
    load_plugin(str(PEERS / f"{name}.py"))
    reason = Stack.parse(name).refusal(tiny(kinds[0]).pipeline)
    assert package in reason and "is not installed" in reason


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, row in RUNS_ON.items() for k in row[1]])
def test_a_peer_keeps_the_contract(name, kind):
    package, _, knobs = RUNS_ON[name]
    if not there(package):
        pytest.skip(f"{package} is not installed")
    load_plugin(str(PEERS / f"{name}.py"))
    checks = check_method(f"{name}({knobs})", tiny(kind, steps=8))
    assert all(c.passed for c in checks), [c for c in checks if not c.passed]
    assert not any(c.name == "refused" for c in checks)


def test_what_a_library_leaves_behind_is_taken_away():
    class Pipeline:
        def __call__(self):
            return "own"

    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    weight, call = module[0].weight, Pipeline.__call__
    module.kept = 1
    with ExitStack() as stack:
        Attachment(None, Now(), stack).guard(Pipeline, module, module[0])
        Pipeline.__call__, Pipeline._is_cached = (lambda self: "theirs"), True
        module.embedder, module.kept = torch.nn.Linear(2, 2), 2
        module[0].forward = lambda x: x
        module[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
        module[0].register_buffer("residual", torch.zeros(2))
    assert Pipeline.__call__ is call and not hasattr(Pipeline, "_is_cached")
    assert module.kept == 1 and not hasattr(module, "embedder") and len(module) == 1
    assert module[0].weight is weight and "forward" not in vars(module[0])
    assert not hasattr(module[0], "residual")
