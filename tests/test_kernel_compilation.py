"""Every Triton kernel compiled for GPUs that are not there: Triton's interpreter takes what its
compiler refuses, and has shared memory without end."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
"""Bytes of shared memory that a program can have, by compute capability (CUDA C++ Programming Guide,
table "Technical Specifications per Compute Capability", less the kilobyte that the system takes)."""
KERNELS = {
    "_modulated", "_put_and_added", "_added", "_sums", "_received", "_entropy", "_scores", "_attend",
}  # fmt: skip
EIGHT_BITS = 89
"""Compute capability from which on there are products of eight-bit floats."""


def compiled_for(capability):
    """Have Triton compile for `capability` and launch nothing; what it compiled, as a list that
    grows: the name of the kernel and its bytes of shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    made, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        assert "ptx" in kernel.asm
        made.append((self.fn.__name__, kernel.metadata.shared))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda _: 0, is_active=lambda: True,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_active_torch_device=lambda: torch.device("cpu"),
        )
    )  # fmt: skip
    return made


def call_all(dtype, capability):
    """Every kernel at the widths of full-size models: DiT's and PixArt's heads of 72, FLUX's and
    Wan's of 128."""
    from ditbench.acceleration.attention.fp8_kernel import fp8_attention
    from ditbench.acceleration.caching import ranking_kernels
    from ditbench.models import row_kernels

    for width in (1152, 3072):
        x = torch.randn(2, 64, width).to(dtype)
        some, gate, weight = x[:, :32].contiguous(), x[:, :1], x[0, 0]
        order = torch.arange(64).expand(2, -1)
        for affine, by_sample in (((weight, weight), (None, None)), ((None, None), (gate, gate))):
            for rows in (None, order[:, :32]):
                row_kernels.modulated(x, rows, *affine, 1e-6, *by_sample)
        for first in (True, False):
            times = torch.zeros(2, 64)
            row_kernels.put_and_added(
                x.clone(), times, order, some, 3.0, first, gate if first else None, x
            )
        for count in range(1, row_kernels.AT_ONCE + 1):
            row_kernels.added(x, [x] * count, [(None, gate)[i % 2] for i in range(count)])
    for heads, width in ((16, 72), (24, 128)):
        q = torch.randn(1, heads, 128, width).to(dtype)
        k = torch.randn(1, heads, 512, width).to(dtype)
        for mask in (None, torch.zeros(1, 1, 1, 512)):
            total = ranking_kernels.sums(q, k, mask)
            ranking_kernels.received(q, k, mask, total)
            ranking_kernels.entropy(q, k, mask)
            ranking_kernels.into(torch.empty(1, 256), order[:1].repeat(1, 2), q, k, mask)
        if capability >= EIGHT_BITS:
            tiles = torch.arange(128) // 64
            mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
            fp8_attention(q, k[:, :, :128], k[:, :, :128], mask, tiles[None], tiles)
    signals = [torch.rand(4, 77) for _ in range(2)]
    for signal, passes, times, grid, window in (
        (signals[:1], 1, None, (0, 0, 1), 0),
        (signals, 2, torch.zeros(4, 77), (2, 4, 6), 2),
        (signals, 2, torch.zeros(4, 77), (1, 9, 6), 3),
    ):
        ranking_kernels.scores(
            signal, [0.0] * len(signal), passes, times, 5.0, 0.1, grid, window, 0.4
        )


def compile_all(capability):
    """What the child process does."""
    made = compiled_for(capability)
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32):
            call_all(dtype, capability)
            too_large = {m for m in made if m[1] > SHARED[capability]}
            # full-size models in float32 are for GPUs of the large kind
            assert not too_large or (dtype == torch.float32 and capability == 89), too_large
    there = KERNELS if capability >= EIGHT_BITS else KERNELS - {"_attend"}
    assert {name for name, _ in made} == there


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_and_fits_into_shared_memory(capability, tmp_path):
    child = (
        "import sys; sys.path.insert(0, 'tests'); import test_kernel_compilation as t; "
        f"t.compile_all({capability})"
    )
    done = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
