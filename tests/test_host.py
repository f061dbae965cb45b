"""The GPU that timed a run: read from the driver's program, probed, and doubted where it was not
itself. The driver's program is a stand-in that prints what one prints."""

import os

import pytest
import torch

from ditbench.analysis import host
from ditbench.analysis.controls import reliable
from ditbench.profiling.gpus import gpu_called
from ditbench.profiling.probe import probe
from ditbench.records import gpu_state

XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>570.86.15</driver_version>
  <gpu id="00000000:65:00.0">
    <product_name>NVIDIA H100 80GB HBM3</product_name>
    <persistence_mode>Enabled</persistence_mode>
    <mig_mode><current_mig>Disabled</current_mig></mig_mode>
    <serial>1652823054567</serial>
    <fb_memory_usage><total>81559 MiB</total><used>{used} MiB</used></fb_memory_usage>
    <ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
    <temperature><gpu_temp>41 C</gpu_temp></temperature>
    <gpu_power_readings>
      <power_draw>{draw}</power_draw><current_power_limit>700.00 W</current_power_limit>
    </gpu_power_readings>
    <clocks><sm_clock>1980 MHz</sm_clock><mem_clock>2619 MHz</mem_clock></clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
    <clocks_event_reasons>
      <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
      <clocks_event_reason_hw_thermal_slowdown>{hot}</clocks_event_reason_hw_thermal_slowdown>
    </clocks_event_reasons>
    <processes><process_info><pid>4711</pid><process_name>/secret</process_name>
      <used_memory>500 MiB</used_memory></process_info></processes>
  </gpu>
</nvidia_smi_log>
"""
CALM = {"used": "4", "draw": "121.50 W", "hot": "Not Active"}


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a program `nvidia-smi` with that output and exit code first on the path."""

    def put(text, code=0):
        program = tmp_path / "nvidia-smi"
        (tmp_path / "output.xml").write_bytes(text.encode(errors="surrogateescape"))
        program.write_text(f'#!/bin/sh\ncat "{tmp_path / "output.xml"}"\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_settings_and_state_are_read_and_nothing_secret(driver):
    driver(XML.format(**CALM))
    settings, state = gpu_state.read("GPU-1")
    assert settings == {
        "driver": "570.86.15", "power_limit_w": 700.0, "largest_sm_mhz": 1980.0,
        "persistence": "Enabled", "ecc": "Enabled", "mig": "Disabled",
    }  # fmt: skip
    assert state == {
        "sm_mhz": 1980.0, "memory_mhz": 2619.0, "power_w": 121.5, "temperature_c": 41.0,
        "slowed_by": ["sw_power_cap"], "used_bytes": 4 * 2**20, "processes": 1,
    }  # fmt: skip
    assert "secret" not in str((settings, state)) and "1652823054567" not in str(settings)


def test_an_older_driver_names_its_tags_otherwise(driver):
    old = XML.format(**CALM | {"hot": "Active"})
    old = old.replace("clocks_event_reason", "clocks_throttle_reason")
    driver(old.replace("gpu_power_readings", "power_readings").replace("current_power", "power"))
    settings, state = gpu_state.read("")
    assert settings["power_limit_w"] == 700 and state["power_w"] == 121.5
    assert state["slowed_by"] == ["hw_thermal_slowdown", "sw_power_cap"]


@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("no XML", 0), ("<nvidia_smi_log/>", 0), ("NVML failed", 9)]
)
def test_what_the_driver_does_not_say_is_not_made_up(driver, text, code):
    driver(text, code)
    assert gpu_state.read("GPU-1") == ({}, {})
    driver(XML.format(**CALM | {"draw": "[N/A]", "used": "N/A"}))
    assert {"power_w", "used_bytes"} & gpu_state.read("")[1].keys() == set()


@pytest.mark.parametrize("number", ["nan MiB", "inf", "[N/A]", "", "many"])
def test_numbers_that_are_none_are_not_said(driver, number):
    driver(XML.format(**CALM).replace("4 MiB", number).replace("1980 MHz", number))
    settings, state = gpu_state.read("")
    assert "used_bytes" not in state and "sm_mhz" not in state and state["temperature_c"] == 41
    assert "largest_sm_mhz" not in settings and settings["driver"] == "570.86.15"


def test_texts_that_are_none_and_bytes_that_are_no_text_do_no_harm(driver):
    warning = "WARNING: infoROM is corrupted at gpu 0000:65:00.0"
    text = XML.format(**CALM).replace("<current_ecc>Enabled", "<current_ecc>[N/A]")
    driver(warning + text.replace("/secret", "caf\udce9"))
    settings, state = gpu_state.read("")
    assert "ecc" not in settings and settings["mig"] == "Disabled" and state["processes"] == 1


def test_without_the_driver_s_program_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state.read("") == ({}, {})


def test_the_probe_counts_operations_and_bytes(monkeypatch):
    from ditbench.profiling import probe as module

    monkeypatch.setattr(module, "_median", lambda work, device: work() is None or 0.5)
    rates = probe("cpu", "float32")
    monkeypatch.setattr(module, "_median", lambda work, device: float("nan"))
    assert probe("cpu", "float32") == {"flops": None, "copied": None}
    assert rates == {"flops": 4 * 512**3, "copied": 4 * 2**22}  # in half a second each
    monkeypatch.undo()
    rates = probe("cpu", "bfloat16")
    assert 1e8 < rates["flops"] < 1e14 and 1e7 < rates["copied"] < 1e13


@pytest.mark.parametrize(
    ("device", "mebibytes", "title"),
    [
        ("NVIDIA H100 80GB HBM3", 81008, "NVIDIA H100 SXM 80 GB"),
        ("NVIDIA H100 80GB HBM3", None, "NVIDIA H100 SXM 80 GB"),
        ("NVIDIA H200", 143156, "NVIDIA H200 SXM 141 GB"),
        ("NVIDIA A100-SXM4-80GB", 81153, "NVIDIA A100 SXM 80 GB"),
        ("NVIDIA GeForce RTX 4090", 24210, "NVIDIA GeForce RTX 4090 24 GB"),
        ("NVIDIA L20", 45589, "NVIDIA L20 48 GB"),
        ("NVIDIA H100 PCIe", 81008, None), ("NVIDIA H100 NVL", 95830, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9984, None), ("NVIDIA H100", 66000, None),
        ("NVIDIA GH200 480GB", 97280, None), ("NVIDIA H200", None, None),
        ("NVIDIA A100-SXM4-40GB", 40514, None), ("NVIDIA A100-SXM4-40GB", None, None),
        ("NVIDIA A100 80GB PCIe", 81153, None), ("NVIDIA A100X", 81153, None),
        ("NVIDIA A800-SXM4-80GB", 81153, None), ("NVIDIA H20", 97508, None),
        ("NVIDIA GeForce RTX 4090 D", 24210, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, None),
        ("NVIDIA L4", 22700, None), ("cpu", None, None), ("", None, None),
    ],
)  # fmt: skip
def test_a_device_is_held_against_its_own_row_or_none(device, mebibytes, title):
    gpu = gpu_called(device, mebibytes and mebibytes * 2**20)
    assert (gpu and gpu.title) == title


def record(device="NVIDIA H100 80GB HBM3", timing=(), **state):
    whole = {"flops": 0.7 * 989.4e12, "copied": 0.9 * 3.35e12}
    calm = {"used_bytes": 4e6, "slowed_by": ["sw_power_cap"]}
    round_ = {"dtype": "bfloat16", "probe": whole, "before": calm, "after": calm} | state
    return {"environment": {"device": device}, "host": [round_], "timing": list(timing)}


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"probe": {"flops": 0.3 * 989.4e12, "copied": 3e12}}, "30% of its published peak in matrix"),
        ({"probe": {"flops": 7e14, "copied": 1e12}}, "30% of its published peak in copies"),
        ({"after": {"slowed_by": ["hw_thermal_slowdown"]}}, "slowed down (hw_thermal_slowdown)"),
        ({"before": {"used_bytes": 30e9}}, "30.0 GB of the GPU were in use"),
        ({"probe": {"flops": float("nan"), "copied": 3e12}}, "matrix products gave no rate"),
        ({"probe": {"flops": 7e14, "copied": None}}, "copies gave no rate"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_slowed_down_or_shared_is_doubted_and_decides_nothing(state, part):
    (sentence,) = host.doubts(record(**state))
    assert part in sentence
    rounds = [{"session": "s", "round": r, "batch": 0, "size": 1, "call_s": 1.0} for r in range(3)]
    whole, doubtful = record(timing=rounds), record(timing=rounds, **state)
    assert reliable([whole, whole]) and not reliable([whole, doubtful])
    assert not reliable([doubtful, whole])


def test_a_whole_gpu_an_unknown_one_and_a_cpu_are_not_doubted():
    assert host.doubts(record()) == []
    slow = {"flops": 1e12, "copied": 1e11}
    assert host.doubts(record(device="NVIDIA L4", probe=slow)) == []
    assert host.doubts(record(probe={}, before={}, after={})) == []
    assert host.doubts(record(probe=None, before=None, after={"slowed_by": None})) == []
    assert host.doubts({"environment": {"device": "cpu"}}) == []
    assert host.doubts({"environment": {"device": "cpu"}, "host": None}) == []


def test_the_gpu_of_a_round_reaches_the_record(monkeypatch, driver):
    """The device is a stand-in: its driver, properties and probe are."""
    from types import SimpleNamespace

    from ditbench.runner.loaded import Watched

    driver(XML.format(**CALM))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1-2")
    )
    monkeypatch.setattr("ditbench.profiling.probe.probe", lambda device, dtype: {"flops": 1.0})
    watched = Watched("cuda:1", "bfloat16")
    assert watched.uuid == "GPU-1-2" and watched.settings["driver"] == "570.86.15"
    assert watched.now() == {
        "dtype": "bfloat16", "probe": {"flops": 1.0}, "before": watched.before,
        "after": watched.before,
    }  # fmt: skip


def test_of_a_merged_baseline_the_sessions_count_in_which_the_row_was_timed():
    busy = {"before": {"used_bytes": 30e9}}
    none = record(session="a") | {
        "host": [*record(session="a")["host"], *record(session="b", **busy)["host"]]
    }
    assert host.doubts(none, record(session="a")) == []
    assert host.doubts(none, record(session="b")) == host.doubts(none) != []
