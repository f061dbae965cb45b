"""A complete method that merges tokens: queries of all, keys and values of means of neighbours."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ditbench.method import Attachment, Stage, knob, method
from ditbench.models.sublayers import Route, Sublayer, sublayers


@method(
    "token_merging",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator", "attended-tokens"},
    paper="arXiv:2303.17604",
)
class TokenMerging:
    """Let every image token attend to the means of `size` tokens that follow each other."""

    size: int = knob(2, low=1)
    """Tokens for each key and value; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"size": 1}

    def check(self, pipeline: Any) -> str | None:
        """Not where no attention takes other tokens."""
        if any(s.takes_context for s in sublayers(pipeline.transformer)):
            return None
        return f"no attention of {type(pipeline.transformer).__name__} takes merged tokens"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute self-, joint and single-stream attention; text is not merged."""
        if self.size == 1:
            return

        def route_of(sublayer: Sublayer) -> Route:
            def route(run: Any, hidden: Tensor) -> Any:
                # FLUX's single blocks have the text in front of the image
                text = at.now.text_tokens if sublayer.kind == "single" else 0
                groups = hidden[:, text:].split(self.size, dim=1)
                means = [group.mean(1, keepdim=True) for group in groups]
                count = hidden.shape[1]
                place = [*range(text), *range(text, count, self.size)]
                places = torch.tensor(place, device=hidden.device).expand(len(hidden), -1)
                at.count("tokens_merged", len(hidden) * (count - len(place)))
                return run(context=torch.cat([hidden[:, :text], *means], 1), places=places)

            return route

        for sublayer in at.sublayers:
            if sublayer.takes_context:
                at.reroute(sublayer, route_of(sublayer))
