"""Imported once by the process every cell's process is forked from, so that a fresh process costs
milliseconds."""

from ditbench.models.family import families
from ditbench.quiet import quiet

with quiet():
    import diffusers
    import numpy
    import torch
    import torch.utils.flop_counter
    import torchao.quantization
    import transformers

    PIPELINES = tuple(getattr(diffusers, family.pipeline, None) for family in families().values())
    ENCODERS = (
        transformers.T5EncoderModel,
        transformers.UMT5EncoderModel,
        transformers.CLIPTextModel,
    )
    LOADED = (torch.__version__, numpy.__version__, torchao.__version__)
