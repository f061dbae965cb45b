"""The Triton kernel of eight-bit attention, in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ditbench.acceleration.attention.operator import block_attention, in_e4m3, no_triton
from ditbench.acceleration.attention.rounding import by_channel, by_tile
from ditbench.method.stack import Stack
from ditbench.testing import tiny

KEYS = 64
"""Keys of a block of the kernel."""


def sketched(q, k, v, mask, query_tiles, key_tiles):
    """The same arithmetic without a kernel: [B,H,K,d], weights rounded block by block."""
    tiles, width = mask.shape[-1], q.shape[-1]
    q8, k8 = by_tile(q, query_tiles, tiles), by_tile(k, key_tiles[None], tiles)
    v8 = by_channel(v)
    rows = torch.stack(
        [mask[b % len(mask)][:, of] for b, of in enumerate(query_tiles.expand(len(q), -1))]
    )
    scores = (q8 @ k8.mT) * width**-0.5
    scores = scores.masked_fill(~rows[..., key_tiles], float("-inf"))
    out, total = torch.zeros_like(q), torch.zeros(q.shape[:3])
    top = torch.full(q.shape[:3], float("-inf"))
    for at in range(0, k.shape[2], KEYS):
        part = scores[..., at : at + KEYS]
        higher = torch.maximum(top, part.amax(-1))
        base = torch.where(higher.isinf(), 0.0, higher)
        weights, shrunk = (part - base[..., None]).exp(), (top - base).exp()
        total = total * shrunk + weights.sum(-1)
        rounded = in_e4m3(weights, torch.ones_like(weights[..., :1]))
        out, top = out * shrunk[..., None] + rounded @ v8[..., at : at + KEYS, :], higher
    return out / total[..., None]


def example(heads_of_mask, width, tokens, rows):
    torch.manual_seed(width)
    q, k, v = (torch.randn(2, 3, tokens, width) for _ in range(3))
    tiles = torch.randint(0, 5, (tokens,)).sort().values
    mask = torch.rand(1, heads_of_mask, 5, 5) > 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    if not rows:
        return q, k, v, mask, tiles[None], tiles
    chosen = torch.stack([torch.randperm(tokens)[:rows] for _ in range(2)])
    q = q.gather(2, chosen[:, None, :, None].expand(-1, 3, -1, width))
    return q, k, v, mask, tiles[chosen], tiles


CASES = [(1, 40, 150, 0), (3, 64, 64, 0), (3, 72, 200, 70), (1, 16, 65, 1)]


def kernel_is_its_arithmetic(whole_sums=True):
    """`whole_sums`: products of eight-bit numbers are summed in float32, as the interpreter does and
    the tensor cores of a GPU do not: those of an H100 keep about 14 bits (DeepSeek-V3,
    arXiv:2412.19437, section 3.3.2). Sums cut to 13 bits are off by 0.3 to 0.7 % in these cases, to 14
    bits by 0.02 to 0.5 %."""
    from ditbench.acceleration.attention.fp8_kernel import fp8_attention

    for case in CASES:
        given = example(*case)
        out = fp8_attention(*given)
        expected = sketched(*given)
        # a weight half-way between two numbers goes either way by the last bit of its product
        far = (out - expected).abs() > 1e-5 * expected.abs().mean()
        assert not whole_sums or far.float().mean() <= 0.01, case
        off = (out - expected).norm() / expected.norm()
        assert off <= (2e-3 if whole_sums else 1e-2), (case, off)
        q, k, v, mask, asking, tiles = given
        count = mask.shape[-1]
        parts = by_tile(q, asking, count), by_tile(k, tiles[None], count), by_channel(v)
        whole = block_attention(*parts, mask, asking, tiles, rounded=True)
        # E4M3 rounds by up to 1/16; relative to another largest score it rounds others
        assert (out - whole).norm() <= 0.03 * whole.norm(), case
        again = block_attention(*given, kernel="triton", rounded=True)
        assert torch.equal(again, out)
        half = fp8_attention(*(x.bfloat16() for x in given[:3]), *given[3:])
        assert half.dtype == torch.bfloat16 and (half - out).norm() <= 0.05 * out.norm(), case


def interpreted():
    """What the child process does: every case, as text of what is wrong."""
    kernel_is_its_arithmetic()
    subject, samples = tiny("wan", steps=2), []
    for kernel in ("triton", "dense"):
        with Stack.parse(f"fpsattention(kernel={kernel!r})").attached(subject.pipeline) as attached:
            attached.start(2, 1)
            samples.append(subject.generate(subject.sampling, [0]).float())
            assert attached.notes()["fpsattention.kernel"] == kernel
    assert 0 < (samples[0] - samples[1]).abs().mean() <= 0.02 * samples[1].abs().mean()


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_is_its_arithmetic_in_tritons_interpreter():
    child = "import sys; sys.path.insert(0, 'tests'); import test_fp8_kernel as t; t.interpreted()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", child]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


def test_where_the_kernel_cannot_run_it_is_said_and_auto_does_without(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = no_triton(torch.device("cpu"))
    assert reason in ("the package triton is not installed", "it wants a GPU of NVIDIA and not cpu")
    subject = tiny("wan", steps=1)
    refused = Stack.parse("fpsattention(kernel='triton')").refusal(subject.pipeline)
    assert refused == f"fpsattention: kernel='triton' cannot run: {reason}"
    with Stack.parse("fpsattention").attached(subject.pipeline) as attached:
        attached.start(1, 1)
        subject.generate(subject.sampling, [0])
        assert attached.notes()["fpsattention.kernel"] == "dense"
