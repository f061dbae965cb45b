"""What doctor says of metrics, extractors and prompts."""

import hashlib
import sys

import pytest

from ditbench.cli.doctor import examine
from ditbench.extractors.table import FOLDER, extractors
from ditbench.metrics import shapes_features
from ditbench.metrics.external import client
from ditbench.metrics.table import metrics


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.delenv("DITBENCH_DATASETS", raising=False)
    client._installed.cache_clear()  # of this very python, under the variables of another test
    yield tmp_path
    client._installed.cache_clear()


def rows():
    return {row["what"]: row for row in examine()}


def test_every_metric_is_available_or_says_which_file_it_wants(nothing):
    found = rows()
    for name, metric in metrics().items():
        if not metric.extractor:
            wanted = getattr(metric.module, "missing", lambda _: "")(metric)
            assert found[name]["state"] == ("absent" if wanted else "ok") and found[name][
                "note"
            ].endswith(wanted)
            continue
        row = extractors()[metric.extractor]
        assert found[name]["state"] == "absent" and all(
            file in found[name]["note"] for file in row.files
        )
        told = found[f"extractor {metric.extractor}"]["note"]
        assert (
            all(file in told and sha256 in told for file, sha256 in row.files.items())
            and row.published in told
        )


def test_files_and_environments_that_people_bring_are_missed_by_name(nothing, monkeypatch):
    for name in ("VBENCH", "IMAGEREWARD", "CDFVD"):
        monkeypatch.delenv(f"DITBENCH_PYTHON_{name}", raising=False)
    found = rows()
    assert "alexnet-owt-7be5be79.pth is missing" in found["lpips.alex_v0_1"]["note"]
    for name, variable in (
        ("vbench.color", "VBENCH"),
        ("imagereward.v1_0", "IMAGEREWARD"),
        ("fd.cdfvd_i3d.vs_none", "CDFVD"),
    ):
        assert (
            found[name]["state"] == "absent"
            and f"DITBENCH_PYTHON_{variable}" in found[name]["note"]
        )
    assert found["pickscore.v1"]["state"] == "absent" and found["ssim.vs_none"]["state"] == "ok"


def test_sums_of_dimensions_are_absent_where_the_dimensions_are(nothing, monkeypatch):
    monkeypatch.delenv("DITBENCH_PYTHON_VBENCH", raising=False)
    of_package = [row for name, row in rows().items() if name.startswith("vbench.")]
    assert {"vbench.quality", "vbench.semantic", "vbench.total"} <= {r["what"] for r in of_package}
    assert {row["state"] for row in of_package} == {"absent"}


def test_an_environment_without_its_package_or_with_another_version_is_no_environment(
    nothing, monkeypatch
):
    monkeypatch.setenv("DITBENCH_PYTHON_VBENCH", sys.executable)
    wanted = "needs vbench 0.1.5, and the environment of DITBENCH_PYTHON_VBENCH has "
    for name in ("vbench.color", "vbench.total"):
        assert rows()[name]["state"] == "absent" and rows()[name]["note"] == f"{wanted}none"
    (nothing / "vbench-0.1.4.dist-info").mkdir()
    (nothing / "vbench-0.1.4.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.4\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(nothing))
    client._installed.cache_clear()
    assert rows()["vbench.color"]["note"] == f"{wanted}0.1.4"
    client._installed.cache_clear()


def test_a_metric_whose_reference_features_are_gone_is_absent(nothing, monkeypatch):
    monkeypatch.setattr(shapes_features, "reference_path", lambda *_: nothing / "gone")
    for name in ("fd.shapes_v1", "mmd.shapes_v1", "recall.shapes_v1"):
        assert rows()[name]["state"] == "absent"
        assert rows()[name]["note"].startswith("the reference features are missing (gone;")
    assert rows()["align.shapes_v1"]["state"] == "ok"


def test_what_has_no_network_here_says_so_and_where_it_is_published(nothing):
    for name in ("i3d", "videomae"):
        row = rows()[f"extractor {name}"]
        assert row["state"] == "absent" and extractors()[name].published in row["note"]


def test_a_wrong_file_is_told_with_both_hashes(nothing):
    (nothing / "model.safetensors").write_bytes(b"x")
    note = rows()["extractor dinov2_l14"]["note"]
    assert (
        hashlib.sha256(b"x").hexdigest() in note
        and extractors()["dinov2_l14"].files["model.safetensors"] in note
    )


def test_prompt_sets_that_are_not_there_are_named_with_their_source(nothing):
    assert "published at https://github.com/Vchitect/VBench" in rows()["prompts vbench"]["note"]
    assert rows()["prompts drawbench"]["state"] == "absent"
