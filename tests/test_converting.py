"""`convert`: weights that are there as .bin only."""

import json
import os
import shutil

import pytest
import torch
from command import command
from safetensors import safe_open
from safetensors.torch import load_file

from ditbench import ZOO
from ditbench.models.converting import convert
from ditbench.models.loading import load
from ditbench.models.table import models
from ditbench.models.weights import check_folder
from ditbench.records.files import file_sha256

PARTS = {"transformer": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}


@pytest.fixture
def folder(tmp_path):
    """pixart-tiny with transformer and text encoder as .bin only."""
    shutil.copytree(ZOO / "pixart-tiny", tmp_path / "mine")
    for part, name in PARTS.items():
        (file,) = (tmp_path / "mine" / part).glob("*.safetensors")
        torch.save(load_file(file), file.with_name(f"{name}.bin"))
        file.unlink()
    return tmp_path / "mine"


def test_a_folder_of_bin_is_refused_with_the_command_that_converts_it(folder):
    with pytest.raises(ValueError, match=f"python run_bench.py convert {folder} makes"):
        check_folder(folder)
    done = command("convert", folder, "--json")
    assert done.returncode == 0, done.stderr
    check_folder(folder)
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    assert [row["source"] for row in rows] == [f"{PARTS[p]}.bin" for p in ("text_encoder", "transformer")]  # fmt: skip
    for row in rows:
        assert row["sha256"] == file_sha256(folder / row["file"])


def test_weights_are_what_they_were(folder):
    names = [row["file"] for row in convert(folder, lambda *step: None)]
    assert sorted(os.path.basename(n) for n in names) == [
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]
    model, kept = models()["pixart-tiny"], {}
    for weights in ("bundled", str(folder)):
        pipe = load(model, weights=weights, device="cpu", dtype="float32")
        kept[weights] = pipe.transformer.state_dict() | pipe.text_encoder.state_dict()
    assert kept["bundled"].keys() == kept[str(folder)].keys()
    assert all(torch.equal(kept["bundled"][k], v) for k, v in kept[str(folder)].items())
    source = folder / "transformer" / "diffusion_pytorch_model.bin"
    with safe_open(source.with_suffix(".safetensors"), "pt") as f:
        assert f.metadata() == {
            "format": "pt", "source": source.name, "source_sha256": file_sha256(source)
        }  # fmt: skip


def test_shards_keep_their_table_and_a_killed_conversion_goes_on(tmp_path, monkeypatch):
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    tensors = {"a": torch.arange(4.0), "b": torch.arange(3.0).bfloat16()}
    for name, key in zip(names, tensors, strict=True):
        torch.save({key: tensors[key]}, tmp_path / name)
    index = {"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    seen = []

    def stop(text, done, of):
        seen.append(text)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path, stop)
    first = tmp_path / "model-00001-of-00002.safetensors"
    before = first.stat().st_mtime_ns
    assert [row["source"] for row in convert(tmp_path, lambda *step: None)] == names[1:]
    assert first.stat().st_mtime_ns == before
    table = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for key, name in table.items():
        loaded = load_file(tmp_path / name)[key]
        assert torch.equal(loaded, tensors[key]) and loaded.dtype == tensors[key].dtype
    with pytest.raises(ValueError, match=r"no part whose weights are \.bin alone"):
        convert(tmp_path, lambda *step: None)


class Trap:
    """What runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_but_tensors_is_read(tmp_path):
    source = tmp_path / "diffusion_pytorch_model.bin"
    for content in (
        {"a": torch.ones(2), "b": Trap(str(tmp_path / "sprung"))},
        {"a": 3},
        [torch.ones(2)],
    ):
        torch.save(content, source)
        done = command("convert", tmp_path)
        assert done.returncode == 2 and f"ditbench: {source} is n" in done.stderr, done
        assert "arbitrary" not in done.stderr and "Traceback" not in done.stderr
    source.write_bytes(b"not a file of torch")
    assert command("convert", tmp_path).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_tensors_that_share_memory_are_each_written(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": whole, "tied": whole, "row": whole[1], "turned": whole.t()}, tmp_path / "pytorch_model.bin")  # fmt: skip
    torch.save({"step": torch.ones(1)}, tmp_path / "optimizer.bin")  # no weights
    convert(tmp_path, lambda *step: None)
    loaded = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded["a"], whole) and torch.equal(loaded["tied"], whole)
    assert torch.equal(loaded["row"], whole[1]) and torch.equal(loaded["turned"], whole.t())
    assert not (tmp_path / "optimizer.safetensors").exists()


def test_a_variant_alone_is_loaded_as_such(tmp_path):
    shutil.copytree(ZOO / "dit-tiny", tmp_path / "mine")
    for file in (tmp_path / "mine").glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    pipe = load(models()["dit-tiny"], weights=str(tmp_path / "mine"), device="cpu", dtype="float32")
    whole = load(models()["dit-tiny"], weights="bundled", device="cpu", dtype="float32")
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], value)
