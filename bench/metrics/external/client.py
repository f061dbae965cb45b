"""Ask a package that lives in another Python environment: a job as JSON in, an answer as JSON out,
one process each.

The environment is named by an environment variable that holds the path of its python. Files that
the package needs are found and their hashes checked here; the script `worker.py`, which runs there,
gets their paths.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ditbench.records.reading import read_json
from ditbench.records.text import one_line

SCRIPT = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python environment with one package and what that needs."""

    name: str
    package: str
    """As pip has it."""
    version: str
    """The only one whose results go by the metric's name."""

    @property
    def variable(self) -> str:
        """Environment variable that holds the path of its python."""
        return f"DITBENCH_PYTHON_{self.name.upper()}"

    def python(self) -> Path:
        """Its python; ValueError says how to name it."""
        path = os.environ.get(self.variable, "")
        if not path:
            raise ValueError(
                f"needs {self.package} {self.version} in an environment of its own: set "
                f"{self.variable} to the path of its python"
            )
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise ValueError(f"{self.variable} names {path}, which is no program that can be run")
        return Path(path)

    def examine(self) -> None:
        """ValueError says how to name its python, or which version of the package is not installed
        there."""
        installed = _installed(str(self.python()), self.package)
        if installed != self.version:
            raise ValueError(
                f"needs {self.package} {self.version}, and the environment of {self.variable} has "
                f"{installed or 'none'}"
            )


@cache
def _installed(python: str, package: str) -> str:
    """The version of a package in another environment; "" where it is not installed or its python
    does not run."""
    script = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    with TemporaryDirectory() as empty:  # `-c` looks for modules in the working directory
        done = subprocess.run(
            [python, "-c", script, package], cwd=empty, capture_output=True, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else ""


def ask(environment: Environment, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer to a job, worked out in `folder`, where job, answer and log are left; ValueError
    in one sentence where there is none."""
    job = job | {"package": environment.package, "version": environment.version}
    request, answered, log = (folder / name for name in ("job.json", "answer.json", "log.txt"))
    request.write_text(json.dumps(job), encoding="utf-8")
    with log.open("wb") as f:
        # stdin is a pipe that nothing is written to: it ends with this process, and so does the job
        process = subprocess.Popen(
            [str(environment.python()), str(SCRIPT), str(request), str(answered)], cwd=folder,
            stdin=subprocess.PIPE, stdout=f, stderr=subprocess.STDOUT
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
    if code:
        lines = [
            line
            for line in log.read_text(errors="replace", encoding="utf-8").splitlines()
            if line.strip()
        ]
        raise ValueError(
            f"{environment.package} failed with code {code}: "
            f"{one_line(lines[-1]) if lines else 'it said nothing'}"
        )
    try:
        answer = read_json(answered)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{environment.package} left no answer that can be read ({error})"
        ) from error
    if not isinstance(answer, dict):
        raise ValueError(f"{environment.package} left no answer that can be read (it is no table)")
    if refusal := answer.get("refused"):
        raise ValueError(one_line(str(refusal)))
    return answer


def numbers(environment: Environment, answer: dict[str, Any], num: int) -> list[float]:
    """The answer's `values`; ValueError when they are not `num` numbers."""
    values = answer.get("values")
    if (
        not isinstance(values, list)
        or len(values) != num
        or not all(isinstance(v, int | float) for v in values)
    ):
        raise ValueError(
            f"{environment.package} was asked for {num} numbers and answered with something else"
        )
    return [float(v) for v in values]
