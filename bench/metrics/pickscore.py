"""`pickscore.v1`: PickScore (Kirstain et al. 2023), CLIP ViT-H/14 trained further on people's
choices. n pictures, d numbers an embedding.

exp(logit scale) times the cosine of picture and prompt, as its authors report it: about 20. Weights
and tokenizer come from the folder `pickscore_v1` in that of DITBENCH_EXTRACTORS; pictures are
prepared here as CLIP's own processor does.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.pinned_files import Published, located
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric

VERSION = "pickscore 1"
WEIGHTS = Published(
    extractor="pickscore_v1",
    name="model.safetensors",
    sha256="",
    where="https://huggingface.co/yuvalkirstain/PickScore_v1, tokenizer from laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)
LONGEST = 77
"""Tokens of a prompt; the rest is cut."""
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no PickScore, or ""."""
    return cell.unpaired or missing(metric)


def missing(metric: Metric) -> str:
    """Which file or environment is not there, whatever the cell; "" when all are."""
    try:
        located(WEIGHTS)
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the weights and the prompts."""
    return hashlib.sha256(f"{VERSION} {WEIGHTS.sha256} {cell.prompts}".encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`pickscore.v1` [n], and its part `cut` [n]: whether the prompt was longer than CLIP reads."""
    import torch
    from torch.nn.functional import normalize
    from transformers import CLIPModel, CLIPTokenizer

    assert cell.prompts is not None
    folder = located(WEIGHTS).parent
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: Any = (
            CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            .eval()
            .to(device)
        )
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{folder} cannot be loaded as CLIP ({str(error).splitlines()[0]})"
        ) from error
    values, cut, start = [], [len(ids) > LONGEST for ids in tokenizer(cell.prompts)["input_ids"]], 0
    with torch.inference_mode():
        for chunk in cell.samples.chunks():
            prompts = cell.prompts[start : start + len(chunk)]
            tokens = tokenizer(
                prompts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            ).to(device)
            pixels = torch.from_numpy(prepared(chunk, model.config.vision_config.image_size)).to(
                device
            )
            # [n, d]
            image = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
            text = normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
            values.append((model.logit_scale.exp() * (image * text).sum(-1)).double().cpu().numpy())
            start += len(chunk)
    return {metric.name: np.concatenate(values), f"{metric.name}.cut": np.array(cut, np.float64)}


def prepared(chunk: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """uint8 [n, H, W, 3] -> [n, 3, size, size]: shorter side to `size` (bicubic, antialiased), the
    middle, CLIP's mean and deviation."""
    from PIL import Image

    images = []
    for picture in chunk:
        height, width = picture.shape[:2]
        shape = (int(size * width / min(height, width)), int(size * height / min(height, width)))
        resized = Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC)
        left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
        square = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
        images.append(((square - MEAN) / DEVIATION).transpose(2, 0, 1))
    return np.stack(images).astype(np.float32)
