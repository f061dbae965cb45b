"""Every legal pair of methods, each with a setting that does something, keeps the contract."""

from itertools import combinations

import pytest
from test_method_contract import STACKS

from ditbench.method.stack import Stack
from ditbench.testing import KINDS, check_method, tiny

SINGLE = {text.partition("(")[0]: text for text in reversed(STACKS) if "+" not in text}
"""The first of the contract's stacks of each method. Methods that must be prepared are not there, but
for settings that need no preparation."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_keeps_the_contract_or_is_refused(kind):
    subject, ran, broken = tiny(kind), 0, {}
    for pair in combinations(sorted(SINGLE.values()), 2):
        text = "+".join(pair)
        if Stack.parse(text).problems(kind):
            continue
        checks = check_method(text, subject)
        ran += [check.name for check in checks] != ["refused"]
        if failed := [f"{check.name}: {check.note}" for check in checks if not check.passed]:
            broken[text] = failed
    assert ran > 100
    assert not broken
