"""Weights from a file whose sha256 has been verified: safetensors, or a file of tensors that torch
saved."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor. `path` comes from `ditbench.extractors.table.verified` or
    `ditbench.extractors.pinned_files.located`; ValueError when it holds anything but tensors.

    The published Inception, CLIP-336 and AlexNet weights exist only as files of torch.save. They
    are read with `weights_only`, which builds tensors and runs nothing, and after their sha256 was
    found right: the one place where the house reads such a file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]})") from error
    except (
        Exception
    ) as error:  # the restricted reader's refusal has a class of its own in a private module
        raise ValueError(
            f"{path} holds something else than tensors ({type(error).__name__})"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(t, torch.Tensor) for t in tensors.values()
    ):
        raise ValueError(f"{path} holds something else than named tensors")
    return tensors
