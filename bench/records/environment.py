"""What must match for two numbers to be compared: machine, versions and an allow-list of variables.
Nothing secret, no paths."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditbench import ROOT, __version__
from ditbench.records.allocator import allocator

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "torchao",
    "numpy",
    "scipy",
    "torchmetrics",
    "safetensors",
    "accelerate",
)
VARIABLES = (
    *(
        "GLIBC_TUNABLES",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "KMP_AFFINITY",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_LAUNCH_BLOCKING",
    ),
    *(
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "NVIDIA_TF32_OVERRIDE",
    ),
)
"""The only environment variables a record may hold."""
MACHINE = (
    "device", "processor", "cores", "threads", "process", "gpu", "capability", "cuda", "tf32",
    "packages", "variables", "allocator",
)  # fmt: skip
"""Fields of an environment that two times must share before one is divided by the other."""


def differing(*environments: Mapping[str, Any]) -> list[str]:
    """Names of the fields that must agree and do not."""
    first = environments[0]
    return [name for name in MACHINE if any(e.get(name) != first.get(name) for e in environments)]


def describe(device: str = "cpu") -> dict[str, Any]:
    """The environment a cell runs in, as plain JSON. Imports torch."""
    import torch

    environment: dict[str, Any] = {
        "ditbench": _version("ditbench") or _own_version(),
        "revision": _revision(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "device": "cpu",
    }
    if not device.startswith("cuda") and allocator():
        environment["allocator"] = allocator()
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        if triton := _version("triton"):  # which compiles kernels of ours, and torch.compile's
            environment["packages"]["triton"] = triton
        environment |= {
            "device": properties.name,
            "device_memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "attention": [
                name
                for name, on in (
                    ("flash", torch.backends.cuda.flash_sdp_enabled()),
                    ("efficient", torch.backends.cuda.mem_efficient_sdp_enabled()),
                    ("cudnn", torch.backends.cuda.cudnn_sdp_enabled()),
                    ("math", torch.backends.cuda.math_sdp_enabled()),
                )
                if on
            ],
        }
    return environment


def processor() -> str:
    """Name of the processor as the system gives it."""
    try:
        match = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M
        )
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory, bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # which every command would import

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _own_version() -> str:
    return __version__


def _revision() -> str | None:
    """Git revision of the checkout the code runs from, `+` appended when it has changes; None
    outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=5,
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if head.returncode else head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
