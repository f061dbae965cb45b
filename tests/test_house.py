"""The house rules: imports flow one way, light commands stay light, files stay short, documents agree with the code."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("bench", "methods", "reports") for p in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "bench" else parts
    return ".".join(("ditbench", *(p for p in parts if p != "__init__")))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    nodes = ast.walk(tree) if not top_level_only else [n for n in tree.body]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in names)


def test_methods_import_only_what_a_stranger_could_and_never_each_other():
    running = [
        "method",
        "anatomy",
        "blocks",
        "reuse",
        "shipped",
        "tokens",
        "rules",
        "schedule",
        "budget",
        "workload",
        "quiet",
        "stack",
        "quantizing",
    ]
    preparing = ["distilling", "checkpoints", "learning", "mixing", "calibration", "prepare"]
    allowed = tuple(f"ditbench.{name}" for name in running + preparing)
    for path in sorted((ROOT / "methods").glob("*.py")):
        for name in imports(path):
            if name == "ditbench" or name.startswith("ditbench."):
                assert name.startswith(allowed), f"{path.name} imports {name}"


def test_reports_never_import_torch_nor_the_running_side():
    for path in sorted((ROOT / "reports").rglob("*.py")):
        names = imports(path)
        for banned in ("torch", "diffusers", "transformers", "ditbench.execute", "ditbench.cell", "ditbench.measure"):
            assert not reaches(names, banned), f"{path.name} imports {banned}"


def test_the_harness_does_not_know_any_method_by_name():
    for path in sorted((ROOT / "bench").glob("*.py")):
        if path.name != "testing.py":
            names = {n for n in imports(path) if n.startswith("ditbench.methods.")}
            assert names <= {"ditbench.methods.BUILT_IN"}, f"{path.name} imports {names}"


def test_only_the_command_line_calls_the_stages():
    for path in sorted((ROOT / "bench").glob("*.py")):
        if path.name not in ("cli.py", "execute.py"):
            assert not reaches(imports(path), "ditbench.execute"), path.name
            assert not reaches(imports(path), "ditbench.cli"), path.name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "models"], ["list", "methods"], ["list", "metrics"], ["plan"]]
)
def test_light_commands_answer_without_torch(arguments):
    code = f"""
import sys, runpy
sys.argv = ["run_bench.py", *{arguments!r}]
try:
    runpy.run_path({str(ROOT / "run_bench.py")!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]


def test_source_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_the_spine_is_read_in_one_sitting():
    spine = ("cli", "spec", "plan", "execute", "cell", "record")
    assert sum(len((ROOT / "bench" / f"{name}.py").read_text().splitlines()) for name in spine) < 1100


def test_datasets_holds_data_only():
    assert not list((ROOT / "datasets").rglob("*.py"))


def test_every_package_folder_is_installed():
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert {module_of(p) for p in SOURCES if p.name == "__init__.py"} <= packages


def test_nothing_unpickles_and_torchs_own_files_are_read_in_one_place_as_tensors_only():
    for path in SOURCES:
        names = imports(path)
        assert not reaches(names, "pickle"), path
        text = path.read_text()
        assert not re.search(r"allow_pickle\s*=\s*True|use_safetensors\s*=\s*False|weights_only\s*=\s*False", text), (
            path
        )
        loads = re.findall(r"torch\.load\(.*", text)
        if path == ROOT / "bench" / "networks" / "files.py":  # pinned weights that are published in no other form
            assert len(loads) == 1 and "weights_only=True" in loads[0], path
        else:
            assert not loads, path


def test_no_test_looks_at_a_clock():
    """How fast a machine is at this moment is no property of the code: times are `ditbench.benchmarks`', tests assert work."""
    clock = re.compile(r"\b(perf_counter|process_time|thread_time|timeit|performance\.now)\b")
    others = [path for path in (ROOT / "tests").glob("*.py") if path.name != "test_house.py"]
    assert not [path.name for path in others if clock.search(path.read_text())]


def test_every_source_file_is_in_the_readme_tree():
    readme = (ROOT / "README.md").read_text()
    for path in SOURCES:
        if path.name != "__init__.py":
            assert path.name in readme, f"README's tree lacks {path.relative_to(ROOT)}"


def test_every_flag_of_run_is_in_the_readme_or_its_help():
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_bench.py"), "run", "--help"], capture_output=True, text=True, timeout=60
    )
    for flag in re.findall(r"--[a-z-]+", (ROOT / "README.md").read_text()):
        if flag in (
            "--models",
            "--methods",
            "--num-samples",
            "--rounds",
            "--seed",
            "--weights",
            "--out",
            "--plugin",
            "--device",
        ):
            assert flag in done.stdout
