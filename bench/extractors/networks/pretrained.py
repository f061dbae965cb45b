"""Classes of transformers with sizes from our table and weights from a verified file: no
configuration is read from beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ditbench.extractors.networks.tensors import read_tensors
from ditbench.quiet import quiet


def assembled(kind: Any, config: Any, path: Path) -> nn.Module:
    """A model of class `kind` and `config` with the weights of `path`; ValueError when one is
    missing or of another shape.

    What the file holds beyond the model (CLIP's text half, where only its pictures are read) is
    left out.
    """
    tensors = read_tensors(path)
    try:
        with quiet():
            model, report = kind.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True
            )
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {kind.__name__} ({str(error).splitlines()[0]})"
        ) from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} does not fit {kind.__name__} (it lacks {lacking[0]} and {len(lacking) - 1} "
            "more)"
        )
    network: nn.Module = model.float()
    return network
