"""Attention whose products are of eight-bit floats (the formats of SageAttention2,
arXiv:2411.10958, and FPSAttention, arXiv:2506.04648); simulated."""

from __future__ import annotations

from typing import Any

from ditbench.method import Attachment, Stage, knob, method


@method(
    "fp8_attention",
    family="quantisation",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    paper="arXiv:2411.10958, arXiv:2506.04648",
)
class Fp8Attention:
    """Round queries, keys, values and attention weights to E4M3 before they are multiplied.

    Queries and keys have a scale for each token or block of tokens, values one for each channel;
    weights, before they are divided by their sum, lie in 0..1 and have the fixed scale 448. Keys
    are smoothed as in SageAttention: their mean over tokens is taken away first. SageAttention2
    itself has queries and keys in INT4 or INT8, and the weights' largest is that of a block of keys
    where it is a whole row's here. Attention with a mask (the text of PixArt) keeps its format. The
    format is simulated: quality is shown, and neither a speed-up nor a saving of memory is to be
    expected.
    """

    block: int = knob(1, low=1)
    """Tokens that share a scale of queries and of keys; 1: each has its own."""
    smooth: bool = True
    """Take away the keys' mean over tokens."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Exchange attention inside the transformer."""
        from ditbench.acceleration.fake_formats import CAUTION, AttentionInE4M3

        mode = AttentionInE4M3(at, block=self.block, smooth=self.smooth)

        def forward(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return run(*args, **kwargs)

        at.notes["caution"] = CAUTION
        run = at.patch(pipeline.transformer, "forward", forward)
