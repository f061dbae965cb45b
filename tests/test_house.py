"""The house rules: imports flow one way, light commands stay light, files stay short, documents
agree with the code."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    p for folder in ("bench", "methods", "reports") for p in (ROOT / folder).rglob("*.py")
)


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


LEVELS = [
    {"ditbench", "declarations", "quiet", "statistics", "suggest"},
    {"records", "shapes"},
    {"models"},
    {"extractors", "method"},
    {"metrics", "profiling"},
    {"acceleration", "analysis", "runner", "simulation"},
    {"methods", "reports.sections", "zoo"},
    {"reports.tables", "testing"},
    {"reports.answers", "reports.figures", "reports.terminal"},
    {"reports.page", "reports.publishing"},
    {"reports"},
    {"cli"},
]
"""Rooms, lowest first: a module imports from its own room and from lower ones, lazily or not."""


def room_of(module: str) -> str:
    """The folder below the package that a module lies in; `ditbench` for the package itself."""
    parts = module.split(".")[1:]
    if not parts:
        return "ditbench"
    return ".".join(parts[:2]) if parts[0] == "reports" else parts[0]


def graph() -> dict[str, set[str]]:
    """The modules of ditbench that each of them imports, at its top or inside functions."""
    modules = {module_of(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                of = [f"{node.module}.{alias.name}" for alias in node.names]
                edges[name] |= {full if full in modules else node.module for full in of}
    return {name: targets & modules.keys() - {name} for name, targets in edges.items()}


def test_imports_go_down_only():
    level = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
    assert {room_of(name) for name in graph()} == level.keys()
    up = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if room_of(name) != room_of(target) and level[room_of(target)] >= level[room_of(name)]
    ]
    assert not up


def test_no_two_files_import_each_other_not_even_over_others():
    below, edges = set(), graph()
    while rest := edges.keys() - below:
        leaves = {name for name in rest if edges[name] - {name} <= below}
        assert leaves, f"a circle among {sorted(rest)}"
        below |= leaves


def test_few_modules_lie_in_no_room():
    assert {path.name for path in (ROOT / "bench").glob("*.py")} == {
        "__init__.py",
        "declarations.py",
        "quiet.py",
        "suggest.py",
    }


def test_reports_never_import_torch():
    for path in sorted((ROOT / "reports").rglob("*.py")):
        for banned in ("torch", "diffusers", "transformers"):
            assert not reaches(imports(path), banned), f"{path.name} imports {banned}"


def test_methods_import_no_other_method_and_the_harness_knows_none_by_name():
    for name, targets in graph().items():
        if room_of(name) != "testing":
            known = {t for t in targets if room_of(t) == "methods"}
            assert not known - {name}, f"{name} imports {known}"


def test_analysis_and_reports_name_no_method_in_a_string():
    """But for publishing, which reads CSVs whose columns are named after methods."""
    methods = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__"}
    folders = [ROOT / "bench" / "analysis", ROOT / "reports"]
    named = []
    for path in sorted(p for folder in folders for p in folder.rglob("*.py")):
        if path.parent.name == "publishing":
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        named += [f"{path.name}: {text}" for text in texts if text.partition("(")[0] in methods]
    assert not named


def test_every_method_has_the_name_of_its_file():
    from ditbench.method import find

    for path in sorted((ROOT / "methods").glob("*.py")):
        if path.stem != "__init__":
            assert find(path.stem).__module__ == f"ditbench.methods.{path.stem}"


def test_the_links_for_mypy_lay_out_the_package():
    """`.typing/ditbench` shows mypy the folders as the package they are installed as."""
    links = {path.name: path.resolve() for path in (ROOT / ".typing" / "ditbench").iterdir()}
    own = {
        p.name: p for p in (ROOT / "bench").iterdir() if p.name not in ("__pycache__", "README.md")
    }
    assert links == own | {name: ROOT / name for name in ("methods", "reports")}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list", "models"], ["list", "methods"], ["list", "metrics"], ["plan"]],
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
    long = {
        str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 350
    }
    assert not long


def test_the_spine_is_read_in_one_sitting():
    spine = ("cli/commands", "runner/spec", "runner/plan", "runner/execute", "runner/worker")
    files = [ROOT / "bench" / f"{name}.py" for name in spine]
    assert sum(len(path.read_text().splitlines()) for path in files) < 1200


def test_datasets_holds_data_only():
    assert not list((ROOT / "datasets").rglob("*.py"))


def test_every_package_folder_is_installed():
    packages = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    assert {module_of(p) for p in SOURCES if p.name == "__init__.py"} <= packages


def test_nothing_unpickles_and_torchs_own_files_are_read_in_two_places_as_tensors_only():
    for path in SOURCES:
        names = imports(path)
        assert not reaches(names, "pickle"), path
        text = path.read_text()
        assert not re.search(
            r"allow_pickle\s*=\s*True|use_safetensors\s*=\s*False|weights_only\s*=\s*False", text
        ), path
        loads = re.findall(r"torch\.load\(.*", text)
        # pinned weights that are published in no other form, and the command that converts others
        if path in (
            ROOT / "bench/extractors/networks/tensors.py",
            ROOT / "bench/models/converting.py",
        ):
            assert loads and all("weights_only=True" in load for load in loads), path
        else:
            assert not loads, path


OTHER_OPEN = {"Image", "os", "archive", "zipfile", "tarfile", "gzip", "lzma"}
"""What has an `open` that is not of a text."""


def without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the machine prefers."""
    of = call.func
    name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given or name not in ("open", "read_text", "write_text", "run", "Popen"):
        return False
    if name in ("run", "Popen"):
        return bool({"text", "universal_newlines"} & {*given})
    if name == "write_text" or name == "read_text":
        # those of `ditbench.records` are functions, and write nothing but UTF-8
        return isinstance(of, ast.Attribute)
    if isinstance(of, ast.Attribute) and getattr(of.value, "id", "") in OTHER_OPEN:
        return False
    modes = call.args[1:2] if isinstance(of, ast.Name) else call.args[:1]
    mode = given.get("mode", next(iter(modes), None))
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


def test_text_is_utf_8_whatever_the_machine_prefers():
    texts = {path: path.read_text(encoding="utf-8") for path in (*SOURCES, ROOT / "run_bench.py")}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and without_encoding(node)
    ]
    assert not found
    for text, wrong in (
        ("open('x')", True), ("open('x', 'rb')", False), ("p.open('w')", True),
        ("p.open('rb')", False), ("p.read_text()", True), ("Image.open(p)", False),
        ("p.read_text(encoding='utf-8')", False), ("run([], text=True)", True), ("run([])", False),
        ("p.write_text('x')", True), ("write_text(p, 'x')", False), ("p.open(mode='w')", True),
    ):  # fmt: skip
        assert without_encoding(ast.parse(text).body[0].value) == wrong, text


def test_no_test_looks_at_a_clock():
    """How fast a machine is at this moment is no property of the code: times are
    `ditbench.testing.benchmarks`', tests assert work."""
    clock = re.compile(r"\b(perf_counter|process_time|thread_time|timeit|performance\.now)\b")
    others = [path for path in (ROOT / "tests").glob("*.py") if path.name != "test_house.py"]
    assert not [path.name for path in others if clock.search(path.read_text())]


def test_the_readme_of_a_folder_describes_its_modules_and_no_others():
    for folder in ("bench", "reports"):
        text = (ROOT / folder / "README.md").read_text()
        described = set()
        for heading, section in re.findall(r"^## (\S+)/\n(.*?)(?=^## |\Z)", text, re.S | re.M):
            for name, words in re.findall(r"^\| `(\w+\.py)` \| (.*) \|$", section, re.M):
                described.add(ROOT / folder / heading / name)
                assert 3 <= len(words) <= 90, (heading, name)
        modules = {
            path
            for path in (ROOT / folder).rglob("*.py")
            if path.name != "__init__.py" and path.parent != ROOT / folder
        }
        assert described == modules


@pytest.mark.parametrize("installed", [True, False])
def test_the_package_is_imported_from_the_folder_above_a_clone_of_its_name(tmp_path, installed):
    """There Python meets the clone before anything that is installed (-S: where nothing is)."""
    (tmp_path / "ditbench").symlink_to(ROOT)
    code = (
        "import ditbench, ditbench.methods\n"
        "from ditbench.reports import build\n"
        "print(ditbench.__version__, ditbench.ROOT, ditbench.IN_CHECKOUT)"
    )
    words = [sys.executable, *([] if installed else ["-S"]), "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.split() == ["0.1.0", str(ROOT), "True"], done.stderr


def test_a_clone_of_another_name_is_not_taken_for_the_package(tmp_path):
    (tmp_path / "another").symlink_to(ROOT)
    code = "import sys, another; print('ditbench' in sys.modules, another.__file__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.split() == ["False", str(tmp_path / "another/__init__.py")], done.stderr
