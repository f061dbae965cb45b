"""The command line in the test's own process: all runs of a session share one forkserver."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from conftest import no_figures

from ditbench.cli import main
from ditbench.method.plugins import forget


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object, figures: bool = False) -> Done:
    """Runs a command of ditbench and forgets the plug-ins it loaded; its report has no figures unless
    they are wanted, for they take longer than the rest of a small run."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = set(sys.modules)
    try:
        with (
            contextlib.nullcontext() if figures else no_figures(),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            code = main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # argparse
        code = int(leaving.code or 0)
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("ditbench_plugin_"):
                forget(name)
    return Done(code, stdout.getvalue(), stderr.getvalue())


def ours():
    """Names of the methods that come with ditbench, not of those that other tests declared."""
    folder = Path(__file__).resolve().parents[1] / "methods"
    return sorted(path.stem for path in folder.glob("[!_]*.py"))
