"""Freed memory is kept for the next tensor where a CPU is timed."""

import json
import os
import platform
import subprocess
import sys

import pytest

from ditbench.records import allocator as module
from ditbench.records.environment import MACHINE, describe, differing

SCRIPT = """
import ctypes, json, sys
import torch
from ditbench.records import allocator
from ditbench.records.environment import describe

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost",
    )]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
before = libc.mallinfo2().hblkhd
large = torch.ones(int(sys.argv[2]) // 4)
mapped = libc.mallinfo2().hblkhd - before
del large
free = libc.mallinfo2().fordblks
allocator.give_back_freed_memory()
print(json.dumps([allocator.keep_freed_memory() if sys.argv[1] == "keep" else False, mapped, free,
                  describe("cpu").get("allocator")]))
"""


def done(what, size=20_000_000, **variables):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(module.CHOSEN)
    } | variables
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, str(size)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")


@needs_glibc
def test_freed_memory_is_kept_and_the_record_says_so():
    kept, mapped, free, said = done("keep")
    assert kept and not mapped and free > 20e6 and said == "glibc keeps freed memory"
    kept, mapped, free, said = done("leave")
    assert not kept and mapped > 20e6 and free < 20e6 and said is None


@needs_glibc
def test_the_largest_tensors_are_mapped():
    """Or blocks of many sizes would take several times the memory that is in use."""
    kept, mapped, free, _ = done("keep", 100_000_000)
    assert kept and mapped > 100_000_000 > free


@needs_glibc
@pytest.mark.parametrize(
    "variables", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}]
)
def test_what_the_user_has_chosen_stays(variables):
    kept, _, _, said = done("keep", **variables)
    assert not kept and said is None


def test_another_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(module, "_library", lambda: None)
    monkeypatch.setitem(module._state, "kept", False)
    assert module.keep_freed_memory() is False and module.allocator() == ""
    module.give_back_freed_memory()


def test_times_of_two_settings_are_not_compared():
    assert "allocator" in MACHINE
    assert differing({}, {"allocator": "glibc keeps freed memory"}) == ["allocator"]
    chosen = {"variables": {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"}}
    assert differing({"variables": {}}, chosen) == ["variables"]


def test_the_record_has_what_the_user_has_chosen(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")
    assert describe("cpu")["variables"]["GLIBC_TUNABLES"] == "glibc.malloc.mmap_max=0"
