"""The embedded world: what the judge can read."""

import pytest
import torch

from ditbench import shapes
from ditbench.zoo.judge import agreement, load_judge
from ditbench.zoo.train import small


@pytest.mark.parametrize("world", ["scene", "class"])
def test_the_judge_reads_every_attribute_of_held_out_renders(world):
    truth = shapes.draw(world, 512, split="test", seed=31)
    seen = load_judge(world).read(shapes.render(truth, world, split="test", seed=31))
    there = truth.shape >= 0
    assert ((seen.shape >= 0) == there).double().mean() >= 0.98
    for name in ("shape", "colour", "size"):
        assert (getattr(seen, name) == getattr(truth, name))[there].double().mean() >= 0.98, name
    for name in ("background", "texture"):
        assert (getattr(seen, name) == getattr(truth, name)).double().mean() >= 0.98, name


def test_agreement_counts_what_was_asked_for_and_no_more():
    truth = shapes.draw("scene", 200, split="test", seed=3)
    assert all((v == 1).all() for v in agreement(truth, truth, "scene").values())
    nothing = torch.full_like(truth.shape, -1)
    empty = shapes.Scenes(nothing, nothing, nothing, truth.background, truth.texture, truth.motion)
    found = agreement(empty, truth, "scene")
    assert all((found[name] == 0).all() for name in ("shape", "colour", "size", "position"))
    assert (found["background"] == 1).all()


def test_in_the_class_world_a_second_object_is_wrong():
    truth = shapes.draw("class", 50, split="test", seed=3)
    assert (agreement(truth, truth, "class")["class"] == 1).all()
    crowded = shapes.Scenes(truth.shape.clamp(min=0), truth.colour.clamp(min=0), truth.size.clamp(min=0), *(
        getattr(truth, name) for name in ("background", "texture", "motion")))  # fmt: skip
    assert (agreement(crowded, truth, "class")["class"] == 0).all()


def test_small_keeps_the_first_and_every_fourth_frame():
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 8, 8)
    assert small(video)[0, 0, :, 0, 0].tolist() == [0.0, 4.0]
    assert small(video[:, :, 0]).shape == (1, 3, 2, 2)
