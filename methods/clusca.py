"""ClusCa: between computed steps compute one token of each cluster, and let the others follow (Zheng et
al. 2025, arXiv:2509.10312)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ditbench.acceleration.caching.passes import follows_interval
from ditbench.acceleration.caching.token_settings import TOCA, without_settings
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import RunBlock, Streams
    from ditbench.models.sublayers import Route, Run, Sublayer

STREAM = {"mlp": 0, "context_mlp": 1}
"""Kinds of sub-layers whose tokens are computed by cluster, and which of a block's streams they are
of."""


class Settings(NamedTuple):
    """The authors' numbers for a family."""

    interval: int
    order: int
    first: int
    clusters: int
    propagation: float


AUTHORS = {
    "dit": Settings(4, 4, 2, 16, 0.0),
    "flux": Settings(5, 1, 3, 16, 0.005),
    "wan": Settings(5, 1, 1, 32, 0.01),
    "pixart": Settings(4, 1, 1, 16, 0.005),
    "sd3": Settings(5, 1, 3, 16, 0.005),
}
"""By family; DiT's and FLUX's are the authors', Wan's those they run HunyuanVideo with. PixArt's and
SD3's are ours: TaylorSeer's here with FLUX's clusters, and FLUX's."""


@method(
    "clusca",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2509.10312",
)
class ClusCa:
    """Compute every `interval` steps; in between extrapolate every sub-layer as TaylorSeer does, but
    MLPs after one token of each cluster was computed and has stood in for the others a little.

    At a computed step the image tokens that leave the last block with an MLP of the image are
    clustered by k-means under the mean absolute distance (`clusters.k_means`), begun from the
    centroids of the computed step before, and the text tokens of FLUX likewise. At the others each MLP
    computes one random token of each cluster and changes D0, its last output: first to the new output
    at these tokens, then to propagation c + (1 - propagation) D0, c the new output of the token's
    cluster (of text tokens the first alone). The output is sum of D(i) k^i / i!, k steps after the
    computed step. D0 stays changed, and the term of D1 is added to new outputs too, both as in the
    authors' code; the k-means of a fixed number of iterations from tokens spread evenly, and random
    numbers that are the same for every sample, are ours. FLUX's single blocks have no MLP of their own and are extrapolated.
    """

    interval: int | float | None = knob(None, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing, None is the authors'
    for the family."""
    clusters: int | None = knob(None, low=1)
    """Clusters, of each stream; as many as there are tokens at most. None is the authors'."""
    propagation: float | None = knob(None, low=0, high=1)
    """How much of the new output of a cluster's token the others take; None is the authors'."""
    order: int | None = knob(None, low=0, high=6)
    """Highest difference used; None is the authors' for the family."""
    first: int | None = knob(None, low=1)
    """Steps computed at the beginning; None is the authors' for the family."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)
    keeps_projected: ClassVar[bool] = True
    """As TaylorSeer, whose code theirs extends."""

    def check(self, pipeline: Any) -> str | None:
        """There must be settings for the family."""
        return without_settings("clusca", AUTHORS, pipeline)

    def settings(self, family: str) -> Settings:
        """The authors' numbers with those of the knobs."""
        chosen = {name: getattr(self, name) for name in Settings._fields}
        return AUTHORS[family]._replace(**{k: v for k, v in chosen.items() if v is not None})

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer, and the block whose tokens are clustered."""
        from ditbench.acceleration.caching.clusters import k_means, one_of_each
        from ditbench.acceleration.caching.forecasts import taylor_terms
        from ditbench.acceleration.caching.selectors import Shuffle
        from ditbench.acceleration.caching.sublayer_differences import SublayerDifferences
        from ditbench.models.family import family_of
        from ditbench.models.sublayers import put, take

        family = family_of(pipeline.transformer).name
        rules = self.settings(family)
        if rules.interval == 1:
            return
        random = Shuffle(at.now, TOCA[family])  # which looks at no rules
        random.attach(at)
        kept = SublayerDifferences(at, rules.order, rules.first)
        labels: dict[tuple[int, int], Tensor] = {}  # by stream and guidance pass
        centroids: dict[tuple[int, int], Tensor] = {}
        for store in (labels, centroids):
            at.keeps(store)

        def computes() -> bool:
            return follows_interval(at.now.step, rules.interval, rules.first)

        def refresh(sublayer: Sublayer, run: Run, hidden: Tensor) -> int:
            """Change D0, and return how many tokens were computed."""
            stream = STREAM[sublayer.kind]
            of, key = labels[stream, at.now.branch], kept.key(sublayer)
            count = min(rules.clusters, of.shape[1])
            rows = one_of_each(of, count, random.score(sublayer, hidden, hidden))
            new = run(rows)
            newest, *others = kept.factors[key][0]
            newest = put(newest, rows, new)
            if rules.propagation and stream == 0:
                share = rules.propagation
                newest = share * take(new, of) + (1 - share) * newest
            kept.factors[key] = ([newest, *others],)
            at.count("tokens_recomputed", rows.numel())
            at.count("tokens_extrapolated", len(hidden) * hidden.shape[1] - rows.numel(), idle=True)
            return count

        def dense(sublayer: Sublayer) -> bool:
            return sublayer not in kept or computes()

        def route_of(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                if dense(sublayer):
                    return kept.compute(sublayer, run)
                count = refresh(sublayer, run, hidden) if sublayer.kind in STREAM else 0
                out = kept.forecast(sublayer, taylor_terms)
                if count:
                    at.computes(sublayer, count / hidden.shape[1])
                return out

            return route

        def cluster(run: RunBlock, streams: Streams) -> Streams:
            out = run(streams)
            for stream, tokens in enumerate(out):
                key = stream, at.now.branch
                if key not in labels or computes():
                    count = min(rules.clusters, tokens.shape[1])
                    labels[key], centroids[key] = k_means(tokens, count, centroids.get(key))
            return out

        for sublayer in at.sublayers:
            at.reroute_deferred(
                sublayer,
                route_of(sublayer),
                partial(dense, sublayer),
                outputs_only=lambda: True,
            )
        last = max(sublayer.block for sublayer in at.sublayers if sublayer.kind == "mlp")
        at.reroute(at.blocks[last], cluster)
