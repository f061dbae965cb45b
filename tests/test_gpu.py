"""What only a GPU can show: `pytest -m gpu`, on a machine that has one. Everywhere else it is skipped."""

import pytest
import test_fp8_kernel
import test_fused_rows
import torch

from ditbench.acceleration.caching.timing import least_times
from ditbench.cli import main
from ditbench.method.stack import Stack
from ditbench.models import deferred, fused_rows
from ditbench.models.recorded import NOTHING, Call
from ditbench.testing import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def on_gpu():
    """Tensors are made on the GPU, products are not rounded to 10 bits, and rows have kernels."""
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    with torch.no_grad(), fused_rows.computed_by("triton"):
        yield
    torch.set_default_device(None)  # "cpu" would leave a mode on, under which no block has a list


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_rows_and_sums_are_their_arithmetic(on_gpu, dtype, error):
    test_fused_rows.rows_are_taken_and_put(dtype, error)
    test_fused_rows.sums_with_a_stream(dtype, error)


def test_rankings_are_their_arithmetic(on_gpu):
    test_fused_rows.attention_is_watched()
    test_fused_rows.tokens_are_scored()


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "wan", "sd3"])
def test_samples_with_kernels_are_nearly_those_without(kind, monkeypatch):
    # a decoder whose convolutions are in TF32 makes 7e-5 of a difference of 1e-6 (DiT)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # ranked by attention, tokens whose scores are nearly alike change places by the last bits
    test_fused_rows.samples_are_nearly_the_same(kind, "cuda", selector="shuffle")


def test_eight_bit_attention_is_its_arithmetic(on_gpu):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no products of eight-bit floats")
    test_fp8_kernel.kernel_is_its_arithmetic(whole_sums=False)


@pytest.mark.parametrize("name", ["dit-tiny", "pixart-tiny", "flux-tiny", "wan-tiny"])
def test_a_run_in_bfloat16(name, tmp_path):
    stacks = "fora,toca,diffsparse(allocator='uniform'),int8,tile_window(kernel='flex')"
    settings = "--device cuda --dtype bfloat16 --num-samples 4 --rounds 1"
    given = ["--models", name, "--methods", stacks, "--out", str(tmp_path), *settings.split()]
    assert main(given) == 0


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "wan", "sd3"])
@pytest.mark.parametrize("stack", ["fora(interval=2)", "taylorseer(interval=2,first=1)"])
def test_blocks_repeated_from_lists_give_the_same_samples(kind, stack, monkeypatch):
    subject = tiny(kind, steps=6)
    subject.pipeline.to("cuda")
    repeated, made, plain = [], [], Call.repeated

    def counting(call):
        out = plain(call)
        repeated.append(out is not NOTHING)
        return out

    monkeypatch.setattr(Call, "repeated", counting)
    for listed in (True, False):
        if not listed:
            monkeypatch.setattr(deferred, "may_be_recorded", lambda: False)
        with torch.inference_mode(), Stack.parse(stack).attached(subject.pipeline) as attached:
            attached.start(6, 2)
            made.append(subject.generate(subject.sampling, [0, 1]))
    assert any(repeated)
    assert (made[0] - made[1]).abs().max() <= 1e-4 * made[1].abs().max()


def test_host_and_gpu_are_timed_apart(on_gpu):
    large, small = torch.randn(4096, 4096), torch.randn(16, 16)

    def products():
        for _ in range(20):
            large @ large

    def launches():
        for _ in range(200):
            small.add_(1)

    taken = least_times({"products": lambda: products, "launches": lambda: launches}, 5, "cuda")
    products_took, launches_took = taken["products"], taken["launches"]
    assert products_took.device > 2 * products_took.host
    assert products_took.seconds == pytest.approx(products_took.device, rel=0.2)
    assert launches_took.device < launches_took.host
    assert launches_took.seconds == pytest.approx(launches_took.host, rel=0.5)


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "wan", "sd3"])
@pytest.mark.parametrize(
    "stack",
    [
        "none", "taylorseer(interval=2,first=1)", "diffsparse(allocator='uniform')", "toca", "clusca",
        "duca(selector='shuffle')", "tile_window", "radial", "frequency_tokens", "int8",
        "modulation_ahead+fora(interval=2)", "diffsparse(allocator='uniform',query_stride=3)",
    ],
)  # fmt: skip
def test_captured_calls_give_the_same_samples(kind, stack):
    subject, made, left = tiny(kind, steps=6), [], []
    subject.pipeline.to("cuda")
    captured = "cudagraph" if stack == "none" else f"{stack}+cudagraph"
    if refusal := Stack.parse(captured).refusal(subject.pipeline):
        pytest.skip(refusal)
    for text in (stack, captured, captured):
        with torch.inference_mode(), Stack.parse(text).attached(subject.pipeline) as attached:
            for which in ([0, 1], [1, 2], [2, 0], [0, 1]):
                attached.start(6, 2)
                samples = subject.generate(subject.sampling, which).cpu()
            made.append(samples)
            replayed = attached.counters().get("cudagraph.replayed", 0)
        assert replayed >= 12 or text == stack
        del attached
        left.append(torch.cuda.memory_allocated())
    assert all((made[0] - other).abs().max() <= 1e-4 * made[0].abs().max() for other in made[1:])
    assert left[2] <= left[1]  # the first time libraries keep memory to work in


@pytest.mark.parametrize("stack", ["none", "fora(interval=2)", "diffsparse(allocator='uniform')"])
def test_compiled_regions_are_captured(stack):
    subject, made = tiny("dit", steps=6), []
    subject.pipeline.to("cuda")
    for text in (f"{stack}+compile", f"{stack}+compile+cudagraph"):
        parsed = Stack.parse(text.removeprefix("none+"))
        with torch.inference_mode(), parsed.attached(subject.pipeline) as attached:
            for which in ([0, 1], [1, 2], [0, 1]):
                attached.start(6, 2)
                made.append(subject.generate(subject.sampling, which).cpu())
    assert attached.counters()["cudagraph.replayed"] == 6
    assert (made[2] - made[5]).abs().max() <= 1e-4 * made[2].abs().max()
