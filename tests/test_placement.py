"""What trades time for memory: text encoded ahead, weights that wait in host memory, and decoders
that work in parts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from command import command
from narrow import NAMES, narrow

from ditbench.method.stack import Stack
from ditbench.models.blocks import blocks
from ditbench.models.deferred import DEFERRED
from ditbench.models.encoded_text import AHEAD, EncodedText
from ditbench.models.loading import load
from ditbench.models.placement import decode_in_parts, encodes_once, place, text_encoders
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.models.text_ahead import TextAhead
from ditbench.profiling.gpus import gpu_named
from ditbench.profiling.latency import Sampler
from ditbench.quiet import quiet
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.settings import CHOICES, DEFAULTS, changed_settings
from ditbench.runner.execute import execute
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec, from_table
from ditbench.simulation import estimate as estimating
from ditbench.simulation.device import simulated
from ditbench.simulation.rehearsal import DECODE, DENOISE, TEXT, Stand

WITH_TEXT = [name for name in NAMES if not name.startswith("dit")]


def narrow_pipe(name, **more):
    model, changes = narrow(name)
    with quiet():
        return model, load(
            model, weights="random", device="cpu", dtype="float32", changes=changes, **more
        )


def sampled(model, pipe, stack="none", once=False, encoded=None):
    """Samples of three requests in batches of two and one; `encoded` gets the calls of the text
    encoders that were made during calls for samples."""
    requests, sampling = make_requests(model, 3, 0), sampling_of(model)
    ahead = TextAhead(pipe, "cpu", lambda batch: call_arguments(model, sampling, batch), once=once)
    ahead.batches = [requests[:2], requests[2:]]
    with (
        torch.inference_mode(),
        ahead.attached() as text,
        Stack.parse(stack).attached(pipe) as attached,
    ):
        sampler = Sampler(pipe, model, sampling, attached, "cpu", text)
        text.encode(requests[:2])
        hooks = [
            part.register_forward_pre_hook(lambda *_: encoded.append(1))
            for part in text_encoders(pipe)
            if encoded is not None
        ]
        out = np.concatenate([sampler(batch)[0] for batch in ahead.batches])
        for hook in hooks:
            hook.remove()
    return out, ahead


@pytest.mark.parametrize("stack", ["none", "toca"])
@pytest.mark.parametrize("name", NAMES)
def test_text_encoded_ahead_gives_the_same_samples_and_no_call_runs_an_encoder(name, stack):
    model, pipe = narrow_pipe(name)
    in_every_call, ahead = [], []
    usual, _ = sampled(model, pipe, stack, encoded=in_every_call)
    once, text = sampled(model, pipe, stack, once=True, encoded=ahead)
    assert np.array_equal(usual, once) and ahead == []
    if name in WITH_TEXT:
        assert in_every_call and text.requests == 3 and text.seconds > 0
        assert text.as_dict()["text_encoding"] == "once"
    else:
        assert text.as_dict() == {}  # classes
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("name", ["pixart-tiny", "flux-tiny", "wan-tiny"])
def test_a_trained_model_samples_the_same_with_its_text_encoded_ahead(name):
    model = select(name)[0]
    model = replace(model, steps=2)
    with quiet():
        pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    assert np.array_equal(sampled(model, pipe)[0], sampled(model, pipe, once=True)[0])


def test_text_is_encoded_again_where_its_operations_are_counted_and_for_a_batch_nobody_announced():
    model, pipe = narrow_pipe("pixart-alpha-256")
    requests, sampling, runs = make_requests(model, 2, 0), sampling_of(model), []
    ahead = TextAhead(pipe, "cpu", lambda batch: call_arguments(model, sampling, batch), once=True)
    pipe.text_encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    with torch.inference_mode(), ahead.attached() as text:
        sampler = Sampler(
            pipe, model, sampling, SimpleNamespace(start=lambda *_: None, grid=None), "cpu", text
        )
        sampler(requests[:1])  # none was announced
        first = len(runs)
        sampler(requests[:1])
        assert len(runs) == first > 0
        with text.every_call():
            sampler(requests[:1])
        assert len(runs) == 2 * first


def test_what_an_earlier_cell_encoded_is_not_encoded_again_and_the_encoders_stay_where_they_are():
    model, pipe = narrow_pipe("flux-1-dev")
    requests, sampling, moves, runs = make_requests(model, 3, 0), sampling_of(model), [], []
    for encoder in text_encoders(pipe):
        encoder.to = lambda device: moves.append(str(device))
        encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    encoded, samples, took = EncodedText(), [], []
    for batches in ([requests[:2], requests[2:]], [requests[:2], requests[2:]], [requests[1:2]]):
        ahead = TextAhead(
            pipe, "cpu", lambda batch: call_arguments(model, sampling, batch), once=True,
            encoded=encoded, waiting=True,
        )  # fmt: skip
        ahead.batches = batches
        with torch.inference_mode(), ahead.attached() as text, Stack().attached(pipe) as attached:
            before, moved = len(runs), len(moves)
            text.encode(batches[0])
            # brought and put away once for all calls that are new
            assert len(moves) - moved == (0 if took and batches != [requests[1:2]] else 4)
            assert (len(runs) - before == 0) == (len(took) == 1)
            took.append(text.seconds)
            sampler = Sampler(pipe, model, sampling, attached, "cpu", text)
            samples.append(np.concatenate([sampler(batch)[0] for batch in batches]))
    assert np.array_equal(samples[0], samples[1]) and took[0] == took[1] > took[2] > 0


def test_above_its_limit_encoded_text_that_no_coming_call_wants_is_let_go_of():
    encoded = EncodedText()
    for key, size in (("a", AHEAD - 10), ("b", 10)):
        encoded.add(key, key, size, wanted={"a"})
    assert set(encoded.outputs) == {"a", "b"}
    encoded.add("c", "c", 5, wanted={"b", "c"})
    assert set(encoded.outputs) == {"b", "c"}
    encoded.add("d", "d", AHEAD, wanted={"b", "c", "d"})  # a call that does not fit is still made
    assert set(encoded.outputs) == {"b", "c", "d"}


def test_cells_of_a_process_have_the_same_operations_and_seconds_of_text(tmp_path):
    settings = {
        "models": ["pixart-tiny"], "methods": ["fora"], "text_encoding": "once", "num_samples": 2,
        "rounds": 1, "process": "round", "steps": "2",
    }  # fmt: skip
    spec = from_table(settings, Spec(out=str(tmp_path)))
    execute(plan(spec), "tests")
    records = read_run(tmp_path).records
    assert [r["status"] for r in records] == ["ok", "ok"]
    assert len({r["flops"]["text_flops"] for r in records}) == 1
    assert records[0]["flops"]["text_flops"] > 0
    assert len({r["memory"]["text_encoding_s"] for r in records}) == 1


def test_encoders_wait_on_the_host_and_with_text_offloading_are_alone_while_they_run():
    _, pipe = narrow_pipe("flux-1-dev")
    moves = []
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        getattr(pipe, name).to = lambda device, name=name: moves.append((name, device))
    for offload, wanted in {
        "none": ["encoders cpu", "encoders gpu", "encoders cpu", "encoders gpu"],
        "text": ["encoders cpu", "rest cpu", "encoders gpu", "encoders cpu", "rest gpu", "encoders cpu"],
        "model": [],
        "sequential": [],
    }.items():  # fmt: skip
        moves.clear()
        ahead = TextAhead(pipe, "gpu", lambda batch: {}, once=True, offload=offload)
        with ahead.attached(), ahead._there():
            pass
        spoken = [
            f"{'encoders' if name.startswith('text') else 'rest'} {device}"
            for name, device in moves[::2]
        ]
        assert spoken == wanted, offload


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_own_offloading_of_models_changes_no_sample(name):
    usual, _ = sampled(*narrow_pipe(name), "toca")
    model, pipe = narrow_pipe(name, offload="model")
    assert hasattr(pipe.transformer, "_hf_hook")
    for once in (False, True):
        assert np.array_equal(sampled(model, pipe, "toca", once=once)[0], usual)


@pytest.mark.parametrize("name", ["pixart-alpha-256", "wan-2.1-1.3b", "flux-1-dev"])
def test_blocks_whose_weights_come_for_each_call_run_on_pending_tensors(name):
    """Sequential offloading puts a hook round blocks with parameters of their own (PixArt, Wan)."""
    stack = "fora(interval=2,gates='kept')"
    usual, _ = sampled(*narrow_pipe(name), stack)
    model, pipe = narrow_pipe(name)
    cpu_offload(pipe.transformer, torch.device("cpu"))
    listed = [block.module for block in blocks(pipe.transformer)]
    hooked = [block for block in listed if "_hf_hook" in vars(block)]
    assert bool(hooked) == (model.family != "flux")
    before = [vars(block)["_old_forward"] for block in hooked]
    with Stack.parse(stack).attached(pipe):
        places = [(vars(b).get("forward"), vars(b).get("_old_forward")) for b in listed]
        assert all(any(f is not None and f in DEFERRED for f in place) for place in places)
    assert [vars(block)["_old_forward"] for block in hooked] == before
    assert np.array_equal(sampled(model, pipe, stack)[0], usual)


def test_a_pipeline_is_placed_by_diffusers_own_functions():
    calls = []
    pipe = SimpleNamespace(
        to=lambda device: calls.append(("to", device)),
        enable_model_cpu_offload=lambda device: calls.append(("model", device)),
        enable_sequential_cpu_offload=lambda device: calls.append(("sequential", device)),
    )
    for offload in ("none", "model", "sequential"):
        place(pipe, "cuda:1", offload)
    assert calls == [("to", "cuda:1"), ("model", "cuda:1"), ("sequential", "cuda:1")]


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_works_a_sample_at_a_time_or_in_tiles_where_it_is_told_to(name):
    model, pipe = narrow_pipe(name)
    usual, _ = sampled(model, pipe)
    assert not (pipe.vae.use_slicing or pipe.vae.use_tiling)
    model, pipe = narrow_pipe(name, vae="slicing+tiling")
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    # these samples are smaller than a tile
    close = np.abs(sampled(model, pipe)[0].astype(int) - usual.astype(int))
    assert close.max() <= 1
    with pytest.raises(ValueError, match="vae: SimpleNamespace has no tiling"):
        decode_in_parts(SimpleNamespace(vae=SimpleNamespace()), "tiling")


def test_keys_and_folders_of_earlier_runs_stay_and_another_choice_has_its_own():
    table = {"models": ["pixart-tiny"], "device": "cuda"}
    usual = from_table(table, Spec())
    (key,) = [cell.key for cell in plan(usual)]
    in_keys = CHOICES.keys() - {"process"}
    assert not in_keys & usual.of_key().keys() and in_keys < usual.settings().keys()
    for name, choices in CHOICES.items():
        assert choices[0] == DEFAULTS[name]
        others = [from_table(table | {name: choice}, Spec()) for choice in choices[1:]]
        keys = {key, *(plan(spec)[0].key for spec in others)}
        assert len(keys) == (len(choices) if name in in_keys else 1)
        assert len({usual.folder, *(spec.folder for spec in others)}) == len(choices)
    assert changed_settings({}) == changed_settings(usual.requested()) == []
    assert changed_settings({"offload": "model", "vae": "tiling"}) == [
        "offload model",
        "decoding tiling",
    ]


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ValueError, match="vae: 'tiles' is none of whole, slicing, tiling"):
        Spec(vae="tiles")
    with pytest.raises(
        ValueError, match=r"offload: 'model' moves weights .* and the device is cpu"
    ):
        Spec(offload="model")
    table = {"models": ["dit-tiny"], "methods": ["int8", "distill", "fora"], "device": "cuda"}
    refusals = {
        offload: [c.refusal for c in plan(from_table(table | {"offload": offload}, Spec()))]
        for offload in CHOICES["offload"]
    }
    sentence = (
        "{}: it changes the transformer's weights on the GPU, where --offload {} does not leave "
        "them; use --offload text"
    )
    _, int8, distill, fora = refusals["model"]
    assert int8 == sentence.format("int8", "model")
    assert "--offload" not in distill + fora
    _, int8, distill, fora = refusals["sequential"]
    assert (int8, distill) == tuple(sentence.format(m, "sequential") for m in ("int8", "distill"))
    assert not any("--offload" in text for name in ("none", "text") for text in refusals[name])


def test_text_is_encoded_once_at_full_size_unless_told_otherwise():
    full, tiny = select("flux-1-dev")[0], select("flux-tiny")[0]
    assert [encodes_once("auto", m) for m in (full, tiny)] == [True, False]
    assert [encodes_once(w, full) for w in ("once", "call")] == [True, False]
    assert encodes_once("once", tiny)


def test_a_run_says_when_text_was_encoded_and_has_the_same_samples(tmp_path):
    records = {}
    for when in ("call", "once"):
        table = {
            "models": ["pixart-tiny"], "num_samples": 6, "batch_size": 2, "rounds": 2, "threads": 1,
            "text_encoding": when, "out": str(tmp_path / when),
        }  # fmt: skip
        run = read_run(execute(plan(from_table(table, Spec())), "a command"))
        (records[when],) = run.records
    call, once = records["call"], records["once"]
    assert call["status"] == once["status"] == "ok" and call["key"] != once["key"]
    assert (call["run"]["text_encoding"], once["run"]["text_encoding"]) == ("call", "once")
    assert "text_encoding_s" not in call["memory"] and once["memory"]["text_encoding_s"] > 0
    assert once["memory"]["text_encoding_requests"] == 6
    made = [
        RunFolder(tmp_path / when).samples(record["key"]).read_bytes()
        for when, record in records.items()
    ]
    assert made[0] == made[1]
    assert once["flops"] == call["flops"]  # the encoder's among them


@pytest.mark.parametrize("name", ["flux-1-dev", "wan-2.1-1.3b"])
def test_the_simulated_device_shows_what_waits_on_the_host(name):
    row, changes = narrow(name)
    peaks = {}
    for offload, once in (("none", False), ("none", True), ("text", True), ("model", False)):
        with simulated() as device, quiet():
            stand = Stand(device, row, "bfloat16", changes, once=once, offload=offload)
            stages, again = (
                stand.rehearse(Stack(), sampling_of(row), make_requests(row, 1, 0)).stages
                for _ in range(2)
            )
            weights = {"transformer", "text encoder", "decoder"}
            peaks[offload, once] = {n: weights & s.at_peak.keys() for n, s in stages.items()}
            for stage, there in peaks[offload, once].items():  # all were brought back
                assert all(
                    again[stage].at_peak[part] == stages[stage].at_peak[part] for part in there
                )
    everything = {"transformer", "text encoder", "decoder"}
    assert peaks["none", False] == {TEXT: everything, DENOISE: everything, DECODE: everything}
    rest = {"transformer", "decoder"}
    assert peaks["none", True] == {TEXT: everything, DENOISE: rest, DECODE: rest}
    assert peaks["text", True] == {TEXT: {"text encoder"}, DENOISE: rest, DECODE: rest}
    assert peaks["model", False] == {
        TEXT: {"text encoder"}, DENOISE: {"transformer"}, DECODE: {"decoder"},
    }  # fmt: skip


def test_estimate_takes_the_settings_and_refuses_what_it_does_not_simulate():
    row, changes = narrow("flux-1-dev")
    options = {"steps": 2, "changes": changes}
    stacks = [Stack.parse("none"), Stack.parse("int8")]
    gpu = gpu_named("h100")
    usual, _ = estimating.estimate([row], stacks, gpu, **options)
    away, refused = estimating.estimate([row], stacks, gpu, offload="model", **options)
    assert away["peak_gb"] < usual["peak_gb"] and refused["status"] == "refused"
    call = next(estimating.estimate([row], stacks, gpu, text_encoding="call", **options))
    assert call["weights_gb"] > usual["weights_gb"]
    done = command("estimate", "--models", "flux-tiny", "--offload", "sequential")
    assert done.returncode == 2 and "sequential is not simulated" in done.stderr
