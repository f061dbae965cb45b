"""Students that are low-rank updates of their teacher."""

import functools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditbench.acceleration.distillation.low_rank import LowRankLinear, low_rank_copy, train
from ditbench.acceleration.distillation.students import Recipe, prepare_student
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.sublayers import sublayers
from ditbench.models.table import models
from ditbench.testing import KINDS, Subject, check_method, tiny


def room_of(kind):
    tried = tiny(kind, steps=8)
    model = models()[f"{kind}-tiny"]
    pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    assert type(pipe.transformer) is type(tried.pipeline.transformer)
    return Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling_of(model), tell=lambda row: None)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_is_its_teacher_and_shares_its_weights(kind):
    tried = tiny(kind)
    teacher = tried.pipeline.transformer
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = low_rank_copy(teacher, 2, 0)
    tried.pipeline.transformer = student
    mine = tried.generate(tried.sampling, [0])
    tried.pipeline.transformer = teacher
    assert torch.equal(mine, tried.generate(tried.sampling, [0]))
    own = {id(p) for p in teacher.parameters()}
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    new = {n for n, p in student.named_parameters() if id(p) not in own}
    assert trained == new and len(trained) == 2 * sum(len(s.linears) for s in sublayers(teacher))
    assert not any(isinstance(m, LowRankLinear) for m in teacher.modules())
    assert before.keys() == teacher.state_dict().keys()


def test_a_layer_is_its_weight_and_the_product_of_its_factors():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    layer.__class__ = LowRankLinear
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))
    x = torch.randn(3, 6)
    whole = x @ (layer.weight + layer.lora_B @ layer.lora_A).T + layer.bias
    assert torch.allclose(layer(x), whole, atol=1e-6)
    wide = layer.bfloat16()
    assert wide(x.bfloat16()).dtype == torch.bfloat16


def test_a_training_moves_the_updates_alone_and_goes_on_where_it_was_killed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    layer = model[0]
    layer.__class__ = LowRankLinear
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))
    train(model)
    x, before = torch.randn(16, 4), layer.weight.clone()

    def loss_of(step, stop):
        if step == stop:
            raise KeyboardInterrupt
        return (model(x) - x[:, :1]).square().mean()

    run = functools.partial(fit, model, steps=40, lr=0.05, folder=tmp_path, every=10, warm_up=1)
    first = float(loss_of(-1, 0))
    with pytest.raises(KeyboardInterrupt):
        run(functools.partial(loss_of, stop=25), tell=lambda row: None)
    kept = load_file(tmp_path / "state.safetensors")
    assert {n for n in kept if n.startswith("now.")} == {"now.0.lora_A", "now.0.lora_B"}
    rows = []
    run(functools.partial(loss_of, stop=-1), tell=rows.append)
    assert rows[0]["done"] == 30 and torch.equal(layer.weight, before)
    assert float(loss_of(-1, 0)) < first


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_a_trained_student_is_a_small_file_that_is_merged_and_taken_back(kind, tmp_path):
    room = room_of(kind)
    recipe = Recipe(steps=2, rank=4, recordings=4, iterations=6, batch=2, rate=1e-2, average=0.5, finish=1, finish_batch=2)  # fmt: skip
    notes = prepare_student(tmp_path, room, recipe)
    assert notes["rank"] == 4
    state = load_file(tmp_path / "student.safetensors")
    linears = {n: m for n, m in room.pipe.transformer.named_modules() if isinstance(m, nn.Linear)}
    names = {n.removeprefix("transformer.").rsplit(".lora_", 1)[0] for n in state}
    assert names <= linears.keys() and len(state) == 2 * len(names)
    whole = sum(p.numel() for p in room.pipe.transformer.parameters())
    assert sum(v.numel() for v in state.values()) < 0.25 * whole
    moved = [n for n in names if state[f"transformer.{n}.lora_B.weight"].abs().sum() > 0]
    assert len(moved) > len(names) / 2
    before = {n: m.weight.detach().clone() for n, m in linears.items()}
    stack = Stack.parse("distill(steps=2, rank=4)")
    with stack.attached(room.pipe, {"distill": tmp_path}):
        for name in names:
            down, up = (state[f"transformer.{name}.lora_{w}.weight"].float() for w in "AB")
            assert torch.allclose(linears[name].weight, before[name] + up @ down, atol=1e-6)
    assert all(torch.equal(linears[n].weight, before[n]) for n in linears)


def test_the_student_satisfies_the_contract(tmp_path):
    room = room_of("pixart")
    recipe = Recipe(steps=2, rank=2, recordings=2, iterations=2, batch=2, finish=0)
    prepare_student(tmp_path, room, recipe)
    requests = make_requests(room.model, 2, seed=0)

    def arguments(sampling, which):
        asked = call_arguments(room.model, sampling, [requests[i] for i in which])
        return asked | {"output_type": "latent"}

    subject = Subject(
        pipeline=room.pipe, sampling=replace(room.sampling, steps=4), arguments=arguments
    )
    checks = check_method("distill(steps=2, rank=2)", subject, {"distill": tmp_path})
    assert checks and all(c.passed for c in checks), [c for c in checks if not c.passed]


def test_updates_of_other_layers_do_not_fit(tmp_path):
    room = room_of("dit")
    prepare_student(tmp_path, room, Recipe(steps=2, rank=2, recordings=2, iterations=1, batch=2, finish=0))  # fmt: skip
    file = tmp_path / "student.safetensors"
    save_file({f"transformer.elsewhere.{i}": v for i, v in enumerate(load_file(file).values())} | {
        "transformer.elsewhere.lora_A.weight": torch.ones(1, 4)}, file)  # fmt: skip
    with (
        pytest.raises(ValueError, match=r"the student in .*: none of its .* keys matches a layer"),
        Stack.parse("distill(steps=2, rank=2)").attached(room.pipe, {"distill": tmp_path}),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "distill(rank=4, objective='meanflow')",
            "updates are trained to trajectory or lcm, not to",
        ),
        ("distill(rank=4, checkpoint='hyper-flux')", "a rank or a given student, not both"),
    ],
)
def test_what_a_rank_does_not_go_with_is_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Stack.parse(text)
