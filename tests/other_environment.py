"""Packages of other environments as small stand-ins that keep the same files and calls; the process
between is real."""

import json
import stat
import sys
from pathlib import Path

VBENCH = """
import importlib, json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.output_path = output_path
    def build_full_info_json(self, *a, **k):
        raise AssertionError("it would look for videos by their prompts")
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, **kwargs):
        told, results = json.load(open(self.build_full_info_json(videos_path, name, dimension_list))), {}
        for dimension in dimension_list:
            found = []
            for entry in told:
                assert dimension in entry["dimension"]
                for path in entry["video_list"]:
                    value = (sum(open(path, "rb").read()) % 1000) / 1000
                    if dimension == "color" and value > 0.9:
                        continue  # no object was found in it
                    if dimension == "human_action":
                        value = path.split("/")[-1].lower().split("-")[0].split("person is ")[-1].split("_")[0] == "surfing"
                    found.append({"video_path": path, "video_results": value})
            results[dimension] = [sum(x["video_results"] for x in found) / len(found), found]
        json.dump(results, open(os.path.join(self.output_path, name + "_eval_results.json"), "w"))
"""
"""Writes the result file that vbench 0.1.5 writes; a video's score is a checksum of its file."""
FFMPEG = "#!{python}\nimport sys\nopen(sys.argv[-1], 'wb').write(sys.stdin.buffer.read())\n"
DECORD = """
import os
import numpy as np
class DECORDError(Exception): pass
class VideoReader:
    def __init__(self, path, num_threads):
        self.raw = np.fromfile(path, np.uint8)
        width = int(os.environ["STAND_IN_WIDTH"])
        if width % 64: raise DECORDError("the size must exactly match")
        self.raw = self.raw.reshape(-1, width, width, 3)
    def __len__(self): return len(self.raw)
    def get_batch(self, indices):
        frames = self.raw + np.uint8(os.environ.get("STAND_IN_LOSS", 0))
        return type("Batch", (), {"asnumpy": lambda self: frames})()
"""
TORCH = "class cuda:\n    is_available = staticmethod(lambda: False)\n"
IMAGEREWARD = """
import numpy as np
class Model:
    def score(self, prompt, image):
        return len(prompt) + float(np.asarray(image)[0, 0, 0])
def load(name, device, med_config):
    open(name).close(), open(med_config).close()
    return Model()
"""
HPSV2 = """
import numpy as np
def score(images, prompt, cp, hps_version):
    open(cp).close()
    assert hps_version == "v2.1"
    return [np.float32(len(prompt) + np.asarray(image)[0, 0, 0] / 256) for image in images]
"""
HPSV3 = """
import numpy as np
from PIL import Image
class HPSv3RewardInferencer:
    def __init__(self, checkpoint_path, device): open(checkpoint_path).close()
    def reward(self, image_paths, prompts):
        return np.array([[len(p) + np.asarray(Image.open(i))[0, 0, 0] / 256, 99] for i, p in zip(image_paths, prompts)])
"""
CDFVD = """
import numpy as np
class Stats:
    def __init__(self): self.all = []
    def get_all(self): return np.concatenate(self.all)
class cdfvd:
    def __init__(self, model, ckpt_path, n_fake, compute_feats, device):
        open(ckpt_path).close()
        assert model == "i3d" and n_fake == "full" and compute_feats
        self.fake_stats = Stats()
    def add_fake_stats(self, videos):
        self.fake_stats.all.append(videos.astype(np.float32).mean((1, 2))[:, :3].reshape(len(videos), -1))
"""
ENTRIES = [
    {"prompt_en": "a person is surfing", "dimension": ["human_action"]},
    {
        "prompt_en": "a red car",
        "dimension": ["color", "object_class"],
        "auxiliary_info": {"color": {"color": "red"}},
    },
    {"prompt_en": "a fantasy landscape", "dimension": ["overall_consistency"]},
    {
        "prompt_en": "a fantasy landscape",
        "dimension": ["scene", "imaging_quality"],
        "auxiliary_info": {"scene": {}},
    },
]
"""A list of prompts as VBench's is one, with a prompt that stands in it twice for different
dimensions."""


def site(folder: Path, width: int = 64) -> Path:
    """A folder of packages for PYTHONPATH."""
    program = folder / "ffmpeg"
    files = {
        "vbench/__init__.py": VBENCH, "vbench/VBench_full_info.json": json.dumps(ENTRIES),
        "decord.py": DECORD,
        "imageio_ffmpeg.py": f"def get_ffmpeg_exe(): return {str(program)!r}\n", "torch.py": TORCH,
        "ImageReward.py": IMAGEREWARD,
        "hpsv2/__init__.py": "", "hpsv2/img_score.py": HPSV2, "hpsv3.py": HPSV3,
        "cdfvd/__init__.py": "", "cdfvd/fvd.py": CDFVD,
    }  # fmt: skip
    versions = {
        "vbench": "0.1.5",
        "image_reward": "1.5",
        "hpsv2": "1.2.0",
        "hpsv3": "1.0.0",
        "cd_fvd": "0.1.1",
    }
    for package, version in versions.items():
        told = f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n"
        files[f"{package}-{version}.dist-info/METADATA"] = told
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    executable(program, FFMPEG.format(python=sys.executable))
    return folder


def executable(path: Path, text: str) -> Path:
    """A program."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
