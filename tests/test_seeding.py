"""What tests draw is the same in any order."""

import random

import numpy as np
import pytest
import torch


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.fixture(scope="module")
def other():
    return draw(), draw()


@pytest.fixture(scope="module")
def drawn(other):
    return draw()


@pytest.mark.parametrize("turn", [1, 2])
def test_a_test_draws_the_same_first_or_second_with_fixtures_that_draw(drawn, turn):
    torch_first = torch.rand((), generator=torch.Generator().manual_seed(0))
    first = random.Random(0).random(), np.random.RandomState(0).rand(), float(torch_first)
    assert draw() == drawn == first
