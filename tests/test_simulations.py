"""The quick half of the simulations, every row as it should be, and the command that prints them
all."""

import pytest

from ditbench.analysis import simulations


@pytest.mark.parametrize("group", ["means", "times", "levels", "sets"])
def test_intervals_cover_and_verdicts_keep_their_levels(group):
    rows = list(simulations.run(quick=True, groups=[group]))
    assert rows and not [row for row in rows if not row.well]


def test_a_row_outside_its_bounds_is_not_well():
    def row(kind, share, nominal, note=""):
        return simulations.Outcome(
            kind=kind, what="", n=1, share=share, nominal=nominal, repetitions=1000, note=note
        )

    assert row("coverage", 0.95, 0.95).well and row("level", 0.05, 0.05).well
    assert not row("coverage", 0.88, 0.95).well and not row("level", 0.118, 0.05).well
    assert not row("coverage", 1.0, 0.95).well and row("coverage", 1.0, 0.95, "discrete").well


def test_the_command_prints_a_table_and_refuses_a_group_it_does_not_know(capsys):
    assert simulations.main(["--quick", "levels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "| | what | n |"
    ) and "| level | equivalent at the margin, one sample in 50 lost | 256 |" in "\n".join(lines)
    with pytest.raises(SystemExit):
        simulations.main(["others"])
