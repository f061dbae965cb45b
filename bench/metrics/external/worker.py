"""Runs in the environment of another package: `python worker.py JOB.json ANSWER.json`. Needs Python
3.10, numpy and that package.

A job has a `task`, the `package` and its `version`, the path of a `samples` file ([n, H, W, 3] or
[n, T, H, W, 3], uint8), `prompts` [n], paths of checked `files`, and `folder`, a place to work in.
The answer has `values` [n], or the path of a file with them, or `refused` with a sentence.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

CUSTOM = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality",
)  # fmt: skip
"""VBench's dimensions that take videos of any prompt."""


class RefusedError(Exception):
    """The job cannot be done, for a reason that is a sentence."""


def read_samples(path: str) -> np.ndarray:
    """The samples, mapped and not read; the file is a safetensors file."""
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length).decode())["samples"]
    return np.memmap(
        path, np.uint8, "r", 8 + length + header["data_offsets"][0], tuple(header["shape"])
    )


def pair(prompts: list[str], entries: list[dict[str, Any]]) -> list[int] | None:
    """The entry of VBench's list that each prompt is, or None where one is in none.

    Three prompts stand in the list twice, for other dimensions: their occurrences take turns, so
    that no two entries share a video.
    """
    places: dict[str, list[int]] = {}
    for i, entry in enumerate(entries):
        places.setdefault(entry["prompt_en"], []).append(i)
    met: dict[str, int] = {}
    videos = []
    for prompt in prompts:
        if prompt not in places:
            return None
        turn = met[prompt] = met.get(prompt, -1) + 1
        videos.append(places[prompt][turn % len(places[prompt])])
    return videos


def encode(video: np.ndarray, path: str, fps: float) -> None:
    """Write frames [T, H, W, 3] as H.264 in RGB without loss, which VBench's readers (decord,
    OpenCV) give back bit by bit."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        program = shutil.which("ffmpeg") or ""
    if not program:
        raise RefusedError(
            "VBench's environment has neither imageio-ffmpeg nor ffmpeg, and one of them has to "
            "write the videos"
        )
    size = f"{video.shape[2]}x{video.shape[1]}"
    raw = [
        program,
        "-y",
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        size,
        "-r",
        str(fps),
        "-i",
        "-",
    ]
    subprocess.run(
        raw + ["-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast", path],
        input=np.ascontiguousarray(video).tobytes(), check=True
    )  # fmt: skip


def check_lossless(video: np.ndarray, path: str) -> None:
    """Refuse where decord, VBench's reader, gives other frames than were written."""
    import decord

    try:
        read = decord.VideoReader(path, num_threads=1)
        frames = read.get_batch(range(len(read))).asnumpy()
    except decord.DECORDError:
        raise RefusedError(
            f"decord cannot read a video {video.shape[2]} pixels wide; 64 and its multiples it can"
        ) from None
    if frames.shape != video.shape or not np.array_equal(frames, video):
        raise RefusedError(
            "decord reads other frames than were written, so VBench would measure the codec"
        )


def vbench(job: dict[str, Any]) -> dict[str, Any]:
    """One dimension by the official package; only which video belongs to which prompt is told it,
    by entry instead of by file name."""
    import vbench as package

    dimension, prompts, samples = job["dimension"], job["prompts"], read_samples(job["samples"])
    listed = os.path.join(os.path.dirname(package.__file__), "VBench_full_info.json")
    with open(listed, encoding="utf-8") as f:
        entries = json.load(f)
    paired = pair(prompts, entries)
    if paired is None and dimension not in CUSTOM:
        raise RefusedError(
            f"VBench measures {dimension} on its own prompts only, and these are others"
        )
    infos: list[dict[str, Any]] = []
    for row, prompt in enumerate(prompts):
        entry = (
            {"prompt_en": prompt, "dimension": [dimension]}
            if paired is None
            else entries[paired[row]]
        )
        if dimension not in entry["dimension"]:
            continue
        folder = os.path.join(job["folder"], "videos", f"{row:05d}")
        os.makedirs(folder)
        # human_action reads what should be seen from the file's name
        path = os.path.join(folder, (prompt if dimension == "human_action" else "video") + "-0.mp4")
        encode(samples[row], path, job["fps"])
        if not infos:
            check_lossless(samples[row], path)
        infos.append(dict(entry, dimension=[dimension], video_list=[path]))
    if not infos:
        raise RefusedError(f"none of these prompts belongs to VBench's {dimension}")
    listing = os.path.join(job["folder"], "ditbench_full_info.json")
    with open(listing, "w", encoding="utf-8") as f:
        json.dump(infos, f)

    class Indexed(package.VBench):  # type: ignore[misc, name-defined]
        def build_full_info_json(self, *_: Any, **__: Any) -> str:
            return listing

    Indexed(device(), listed, job["folder"]).evaluate(
        os.path.join(job["folder"], "videos"), "ditbench", dimension_list=[dimension]
    )
    return {"results": "ditbench_eval_results.json"}


def imagereward(job: dict[str, Any]) -> dict[str, Any]:
    """ImageReward of each picture and its prompt."""
    import ImageReward as package

    model = package.load(
        job["files"]["ImageReward.pt"], device=device(), med_config=job["files"]["med_config.json"]
    )
    return {"values": [float(model.score(prompt, image)) for prompt, image in pictures(job)]}


def hpsv2(job: dict[str, Any]) -> dict[str, Any]:
    """Human preference score, version 2.1; the pictures of one prompt in one call, for every call
    reads the weights again."""
    from hpsv2.img_score import score

    values = [0.0] * len(job["prompts"])
    together: dict[str, list[tuple[int, Any]]] = {}
    for i, (prompt, image) in enumerate(pictures(job)):
        together.setdefault(prompt, []).append((i, image))
    for prompt, images in together.items():
        scores = score(
            [image for _, image in images],
            prompt,
            cp=job["files"]["HPS_v2.1_compressed.pt"],
            hps_version="v2.1",
        )
        for (i, _), value in zip(images, scores, strict=True):
            values[i] = float(value)
    return {"values": values}


def hpsv3(job: dict[str, Any]) -> dict[str, Any]:
    """Human preference score, version 3: the mean, not the spread, that the model gives."""
    from hpsv3 import HPSv3RewardInferencer

    model = HPSv3RewardInferencer(
        checkpoint_path=job["files"]["HPSv3.safetensors"], device=device()
    )
    values = []
    for i, (prompt, image) in enumerate(pictures(job)):
        path = os.path.join(job["folder"], f"{i:05d}.png")
        image.save(path)
        values.append(float(model.reward(image_paths=[path], prompts=[prompt])[0][0]))
        os.remove(path)
    return {"values": values}


def cdfvd(job: dict[str, Any]) -> dict[str, Any]:
    """I3D's 400 logits of each video, as cd-fvd prepares it; the distance is taken elsewhere."""
    from cdfvd import fvd

    samples, path = read_samples(job["samples"]), next(iter(job["files"].values()))
    net = fvd.cdfvd("i3d", ckpt_path=path, n_fake="full", compute_feats=True, device=device())
    for start in range(0, len(samples), 4):
        net.add_fake_stats(np.ascontiguousarray(samples[start : start + 4]))
    np.save(os.path.join(job["folder"], "features.npy"), net.fake_stats.get_all())
    return {"features": "features.npy"}


def pictures(job: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(prompt, picture) of every sample."""
    from PIL import Image

    for prompt, sample in zip(job["prompts"], read_samples(job["samples"]), strict=True):
        yield prompt, Image.fromarray(np.ascontiguousarray(sample))


def device() -> str:
    """The GPU where this environment's torch has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_version(job: dict[str, Any]) -> None:
    """Refuse another version of the package than the one whose results go by the metric's name."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version(job["package"])
    except PackageNotFoundError:
        raise RefusedError(f"{job['package']} is not installed in {sys.executable}") from None
    if installed != job["version"]:
        raise RefusedError(
            f"{job['package']} {installed} is installed there, and {job['version']} is the one whose "
            "results go by this name"
        )


TASKS = {
    "vbench": vbench,
    "imagereward": imagereward,
    "hpsv2": hpsv2,
    "hpsv3": hpsv3,
    "cdfvd": cdfvd,
}


def end_with_parent() -> None:
    """End this process when the one that started it ends, killed or not: its pipe to here, which it
    writes nothing to, is closed then."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def main(job_path: str, answer_path: str) -> None:
    """Do the job and leave the answer, whole or not at all."""
    end_with_parent()
    with open(job_path, encoding="utf-8") as f:
        job = json.load(f)
    try:
        check_version(job)
        answer = TASKS[job["task"]](job)
    except RefusedError as reason:
        answer = {"refused": str(reason)}
    with open(answer_path + ".partial", "w", encoding="utf-8") as f:
        json.dump(answer, f)
    os.replace(answer_path + ".partial", answer_path)


if __name__ == "__main__":
    own = os.path.dirname(os.path.abspath(__file__))
    # it has a vbench.py too
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != own]
    main(*sys.argv[1:])
