"""The device with values: what CUDA refuses it refuses, and methods are prepared on it. In processes
of their own, for torch has room for one such device and other tests simulate a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
BEGIN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
from ditbench.testing.valued_device import NAME, DevicesMeet, with_values
"""
RULES = """
def refused(do):
    try:
        do()
    except DevicesMeet:
        return
    raise AssertionError("two devices met")

with with_values():
    host, there = torch.arange(12.0).view(3, 4), torch.arange(12.0, device=NAME).view(3, 4)
    assert there.device.type == NAME == host.to(NAME).device.type == (there[0] * 2).device.type
    assert there.cpu().device.type == "cpu" and torch.equal(there.cpu(), host)
    for do in (
        lambda: there + host, lambda: host + there, lambda: there @ host.T,
        lambda: torch.cat([there, host]), lambda: host[torch.tensor([0], device=NAME)],
        lambda: there.gather(1, torch.zeros(3, 1, dtype=torch.long)), lambda: host.add_(there),
        lambda: torch.tensor(1.0).add_(there[0, 0]), lambda: torch.stack([there[0, 0], host[0, 0]]),
        lambda: host + there[0, 0], lambda: there[host > 3].add_(host[host > 3]),
        lambda: torch.randn(2, device=NAME, generator=torch.Generator()),
        lambda: nn.functional.scaled_dot_product_attention(
            *[there[None]] * 3, attn_mask=torch.ones(3, 3, dtype=torch.bool)),
    ):
        refused(do)
    assert (there + torch.tensor(1.0)).sum().item() == 78
    assert there[torch.tensor([1])].tolist() == [[4, 5, 6, 7]] == there[[1]].tolist()
    assert there[host > 9].tolist() == [10, 11] and torch.where(there > 9, there, 0.0).sum() == 21
    there[0, 0] = 5
    there[1:] -= 4
    assert there.tolist()[0] == [5, 1, 2, 3] and there.tolist()[1] == [0, 1, 2, 3]
    try:
        there.numpy()
        raise AssertionError("an array of what is not there")
    except TypeError:
        pass

    def trained(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1))
        model.to(device)
        data = host.to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimiser.zero_grad()
            loss = torch.utils.checkpoint.checkpoint(model, data, use_reentrant=False).square().mean()
            loss.backward()
            optimiser.step()
        assert all(p.grad.device.type == p.device.type == device for p in model.parameters())
        before = model[0].weight.data.cpu()
        model[0].weight.data = before
        assert model[0].weight.device.type == "cpu"
        model[0].weight.data = before.to(device)
        assert isinstance(model[0].weight, nn.Parameter)
        return model(data).detach().cpu()

    assert torch.equal(trained(NAME), trained("cpu"))
"""
PREPARED = """
from pathlib import Path
from ditbench.acceleration.caching import learn_schedule
from ditbench.acceleration.distillation import flow_finetuning, students
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.models.workload import with_workload

for cls, few in (
    (flow_finetuning.FlowRecipe, {"examples": 4, "held_out": 2, "iterations": 2, "batch": 2}),
    (students.Recipe, {"recordings": 8, "iterations": 2, "batch": 2, "finish": 1, "finish_batch": 2}),
    (learn_schedule.Recipe, {"stage1": 1, "stage2": 1, "batch": 1, "trial_batch": 1}),
):
    cls.__init__.__kwdefaults__.update(few)
model = with_workload(select(sys.argv[2])[0], {"steps": "4"})
(method,) = Stack.parse(sys.argv[3]).methods
with with_values():
    pipe = load(model, weights="bundled", device=NAME, dtype=sys.argv[4])
    room = Workroom(
        pipe=pipe, model=model, below=Stack(), sampling=sampling_of(model), tell=lambda row: None
    )
    assert room.device.type == NAME
    folder = Path(sys.argv[5])
    method.prepare(folder, room)
    with Stack((method,)).attached(pipe, {method.name: folder}) as attached, torch.no_grad():
        sampling = method.adapt(room.sampling)
        attached.start(sampling.steps, 1)
        call = room.draw(0, 1, steps=sampling.steps, guidance=sampling.guidance)
        assert torch.as_tensor(pipe(**call, output_type="np")[0]).isfinite().all()
"""


def alone(program, *words):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program, str(TESTS), *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_cuda_refuses_is_refused_and_what_it_computes_is_computed():
    alone(RULES)


@pytest.mark.parametrize(
    "model, stack, dtype",
    [
        ("wan-tiny", "fpsattention(trained=True)", "bfloat16"),
        ("flux-tiny", "distill(steps=2)", "float32"),
        ("flux-tiny", "int8(down='smoothed')", "float32"),
        pytest.param("dit-tiny", "diffsparse(keep=0.6)", "float32", marks=pytest.mark.slow),
    ],
)
def test_methods_are_prepared_on_the_device(model, stack, dtype, tmp_path):
    """Trainings and calibrations, which read values."""
    alone(PREPARED, model, stack, dtype, tmp_path)
