"""The core beside a broken torchvision: it imports, Inception runs, and what transformers takes
down says so in one sentence."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from small_extractors import write_extractors

ROOT = Path(__file__).resolve().parents[1]
BROKEN = {
    "another torch": "raise RuntimeError('operator torchvision::nms does not exist')",
    "half installed": "raise ImportError('libtorchvision.so: cannot open shared object file')",
    "not there": "raise ModuleNotFoundError(\"No module named 'torchvision'\", name='torchvision')",
}
CODE = """
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {broken!r})
import json, pathlib, run_bench
from ditbench import extractors
from ditbench.analysis import summary
from ditbench.cli import doctor
from ditbench.extractors import build_reference, images, references
from ditbench.metrics import scoring
from ditbench.metrics import metrics, fidelity, features, network_statistics, clip
from ditbench.extractors.networks import load
from ditbench.reports import build
import numpy as np
folder = pathlib.Path({out!r})
table = {{name: extractors.Extractor(**row) for name, row in json.loads((folder / "table.json").read_text()).items()}}
picture = np.zeros((1, 30, 30, 3), np.uint8)
assert load(table["tf2015"], folder).features(picture)["pool"].shape == (1, 2048)
try:
    load(table["dinov2_l14"], folder)
    raise AssertionError("transformers came through a torchvision that is broken")
except ValueError as error:
    assert str(error).startswith("dinov2_l14 needs transformers, which cannot be imported ("), error
rows = {{row["what"]: row for row in doctor.examine()}}
assert rows["torchvision"]["state"] == "missing" and "broken" in rows["torchvision"]["note"], rows["torchvision"]
assert rows["psnr.vs_none"]["state"] == "ok"
print("well")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small extractors and the table that pins them, as a document."""
    at = tmp_path_factory.mktemp("extractors")
    table = write_extractors(at, ("tf2015", "dinov2_l14"))
    (at / "table.json").write_text(json.dumps({name: asdict(row) for name, row in table.items()}))
    return at


@pytest.mark.parametrize("kind", BROKEN)
def test_the_core_works_beside_a_broken_torchvision_and_what_does_not_says_why(
    tmp_path, folder, kind
):
    package = tmp_path / "broken" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN[kind] + "\n")
    # so that libraries believe it is installed
    told = package.parent / "torchvision-0.28.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    (told / "RECORD").write_text("")
    code = CODE.format(root=str(ROOT), broken=str(package.parent), out=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("well"), done.stderr[-2000:]
