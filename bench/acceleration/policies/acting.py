"""What decisions do on a pipeline: RAPID3's three kinds, and a share of the tokens (zipr1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ditbench.acceleration.policies import ATTENTION, MASSES, RATIOS
from ditbench.acceleration.policies.per_sample import PerSample

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call
    from ditbench.acceleration.policies.deciding import Decider
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Run, Sublayer

LEAST = 0.1
"""Share of the tiles that each attends to at least, as in `top_tiles`."""
Act = Callable[[Any, "Attachment", "Decider"], PerSample]
"""f(pipeline, attachment, who decides): put in place what carries the decisions out."""


def act_by_steps(pipeline: Any, at: Attachment, decider: Decider) -> PerSample:
    """Steps taken, outputs reused, attention sparse: RAPID3's."""
    level = {"now": 0}

    @contextmanager
    def around(chosen: int, samples: Sequence[int]) -> Iterator[None]:
        level["now"] = chosen
        try:
            yield
        finally:
            level["now"] = 0

    if ATTENTION in decider.heads:
        _sparse_attention(at, lambda: level["now"])
    acts = PerSample(pipeline, at, decider, around)
    acts.install()
    return acts


def _sparse_attention(at: Attachment, level: Callable[[], int]) -> None:
    from ditbench.acceleration.attention.choosing import largest, mass, needed, with_text
    from ditbench.acceleration.attention.sparse_attention import Mask, SparseAttention
    from ditbench.acceleration.attention.tiles import Tiles, tile_for

    def attend(call: Call) -> Tensor | None:
        if not level():
            return None
        tiles = Tiles(at.now.grid, tile_for(at.now.grid, 3))
        layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
        shares = mass(call, layout)
        counts = needed(shares, MASSES[level()]).clamp(min=int(LEAST * tiles.count))
        return call.attend(layout, Mask(with_text(largest(shares, counts), layout)))

    SparseAttention(at, "auto", attend).install()


def act_by_tokens(selector: str) -> Act:
    """A share of the tokens of every sub-layer computed, the others' outputs kept, as DiffSparse does
    for a schedule; a sample's first step is whole. Tokens are ranked by `selector`."""

    def act(pipeline: Any, at: Attachment, decider: Decider) -> PerSample:
        from ditbench.acceleration.caching.budget import kept_rows
        from ditbench.acceleration.caching.token_cache import TokenCache
        from ditbench.acceleration.caching.token_settings import DIFFSPARSE
        from ditbench.models.calls import each_tensor, put_rows
        from ditbench.models.family import family_of

        cache = TokenCache(at, selector, DIFFSPARSE[family_of(pipeline.transformer).name])
        level = {"now": 0}
        acts: PerSample

        @contextmanager
        def around(chosen: int, samples: Sequence[int]) -> Iterator[None]:
            """The cache holds these samples alone while they run."""
            level["now"] = chosen
            rows, batch = at.now.rows_of(samples), at.now.batch
            cache.by_sample()
            before = cache.state()
            if len(rows) == batch:
                yield
            else:
                cache.restore(
                    tuple(
                        {k: each_tensor(lambda t: t[rows], v) for k, v in store.items()}
                        for store in before
                    )
                )
                yield
                cache.by_sample()
                cache.restore(
                    tuple(
                        {k: put_rows(old[k], rows, v) for k, v in store.items()}
                        for old, store in zip(before, cache.state(), strict=True)
                    )
                )
            level["now"] = 0

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                share = RATIOS[level["now"]]
                if share == 1 or sublayer not in cache:
                    out = cache.compute(sublayer, run, hidden)
                else:
                    out = cache.refresh(sublayer, run, hidden, kept_rows(share, hidden.shape[1]))
                at.computes(sublayer, acts.mean(RATIOS))
                return out

            return route

        for sublayer in at.sublayers:
            at.reroute_deferred(sublayer, at_sublayer(sublayer))
        acts = PerSample(pipeline, at, decider, around, first_level=0)
        acts.install()
        return acts

    return act
