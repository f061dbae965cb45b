"""FPSAttention: eight-bit attention over windows of tiles, coarse and sparse at first, fine and dense
in the middle (Liu et al. 2025, arXiv:2506.04648), without its kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.attention import ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call
    from ditbench.method.prepare import Workroom
    from ditbench.models.table import Model

Phase = tuple[float, float]
"""Length of a tile, of the base tile's; window of each axis, as a share of it: 2 is all."""


@method(
    "fpsattention",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    paper="arXiv:2506.04648",
)
class FpsAttention:
    """Attention in E4M3 over windows of tiles; without its kernel quality alone, for numbers are
    rounded and computed as before, and times say nothing.

    Queries and keys are rounded with a scale for each tile, values for each channel, weights by the
    fixed scale of 448 before they are divided by their sum; products and output keep the model's
    format. A tile attends to tiles no further than half a window away. Tiles are twice as long early,
    half as long in the middle, where attention is dense, and as given late. Which steps are early and
    late, and the windows, are our choice: the authors print neither (they search them once, and train
    with them). The text is a tile that always attends and is attended to.

    With `trained` the model's weights are those that were finetuned under the very attention, by the
    flow's loss on samples of its world (`prepare` first). The authors' controls are
    `sparse=False`, `quantised=False`, neither knob, and `trained=True`; with both off and
    `trained=True` it is the same finetuning of the model without any of it.
    """

    quantised: bool = True
    """Round queries, keys, values and weights."""
    sparse: bool = True
    """Leave out tiles beyond the window."""
    tile: tuple[int, int, int] | None = None
    """Frames, rows and columns of the base tile in tokens; None: 6, 8 and 8, the authors', and where
    that leaves fewer than three tiles of an axis the longest that divides it and leaves three."""
    early: float = knob(0.25, low=0, high=1)
    """Share of the steps, at the beginning, that are coarse and sparse."""
    late: float = knob(0.25, low=0, high=1)
    """Share of the steps, at the end, that are in between."""
    early_window: float = knob(0.5, low=0)
    """Window of early steps, as a share of each axis; 2 and more is all."""
    late_window: float = knob(0.75, low=0)
    """Window of late steps, as a share of each axis; 2 and more is all."""
    kernel: Literal["auto", "dense", "triton"] = "auto"
    """What computes it. `triton`: a kernel of eight-bit products that leaves out blocks of 64 x 64
    tokens (compute capability 8.9 and newer, package triton); `dense`: numbers are rounded, and all
    products computed in the model's format; `auto`: the kernel where it runs."""
    trained: bool = False
    """Take the weights that were finetuned under it (`prepare` first)."""
    training: int = knob(0, low=0, high=15)
    """Which finetuning of this recipe: every number has samples and noise of its own."""
    off: ClassVar[dict[str, object]] = {"quantised": False, "sparse": False}
    tuned: ClassVar[str] = "alone"
    """Weights are finetuned on the plain model, whatever else a stack has."""

    def __post_init__(self) -> None:
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"fpsattention: a tile of {self.tile} tokens has none in it")
        if self.training and not self.trained:
            raise ValueError("fpsattention: nothing is trained, so that training has no meaning")

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens."""
        return ON_ATTENTION

    def phase(self, step: int, num_steps: int) -> Phase:
        """Tile and window of a step."""
        if step < int(self.early * num_steps):
            return 2.0, self.early_window
        if step >= num_steps - int(self.late * num_steps):
            return 1.0, self.late_window
        return 0.5, 2.0

    def check(self, pipeline: Any) -> str | None:
        """A kernel that is asked for has to run."""
        from ditbench.acceleration.attention.operator import no_triton

        if self.kernel != "triton" or not self.quantised:
            return None
        reason = no_triton(pipeline.transformer.device)
        return reason and f"kernel='triton' cannot run: {reason}"

    def recipe(self) -> dict[str, Any] | None:
        """What the finetuned weights depend on; None where the model's own are used."""
        if not self.trained:
            return None
        names = "quantised", "sparse", "tile", "early", "late", "early_window", "late_window"
        return {"version": 1} | {name: getattr(self, name) for name in names}

    def unpreparable_for(self, model: Model) -> str | None:
        """Samples to train on are there of worlds alone; and a guidance that was distilled would be
        unlearned."""
        if not model.world:
            return (
                f"weights are finetuned on samples, and there are none for {model.name} (FPSAttention "
                "is trained on filtered videos for a week)"
            )
        if model.family == "flux":
            return "the flow's loss has no guidance in it, and that of FLUX is distilled into its weights"
        return None

    def lacks(self, beside: Sequence[Any]) -> str | None:
        """Finetuned weights want the model's own weights in their places."""
        taken = {"weights", "linear-precision"}
        for other in beside if self.trained else ():
            if taken & other.traits.claims:
                return (
                    "its finetuned weights take the places of the model's own, which are others under "
                    f"{other.name}"
                )
        return None

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Finetune the weights; returns notes for the manifest."""
        from ditbench.acceleration.distillation.flow_finetuning import FlowRecipe, Place, finetune

        def install(at: Attachment, place: Place) -> None:
            self._install(at, lambda: (place.step, place.steps))

        def phase(step: int) -> Phase:
            return self.phase(step, room.calls)

        return finetune(room, install, phase, folder, FlowRecipe())

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put finetuned weights in place, and replace every attention of image tokens."""
        if self.trained:
            from ditbench.acceleration.distillation.flow_finetuning import put_weights

            if at.artifact is None:
                raise unprepared(self)
            put_weights(at.artifact, pipeline, at)
        self._install(at, lambda: (at.now.step, at.now.num_steps))

    def _install(self, at: Attachment, place: Callable[[], tuple[int, int]]) -> None:
        """Replace attention by that of the step and number of steps that `place()` says."""
        import torch

        from ditbench.acceleration.attention.operator import no_triton
        from ditbench.acceleration.attention.rounding import by_channel, by_tile
        from ditbench.acceleration.attention.sparse_attention import SparseAttention
        from ditbench.acceleration.attention.tiles import Tiles, near, tile_for

        if not (self.quantised or self.sparse):
            return

        def attend(call: Call) -> Tensor | None:
            length, share = self.phase(*place())
            base = self.tile or tile_for(at.now.grid, 3)
            frames, rows, columns = (max(1, int(n * length)) for n in base)
            tiles = Tiles(at.now.grid, (frames, rows, columns))
            layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
            lengths = [n * (share if self.sparse else 2.0) for n in at.now.grid]
            key = tiles.tile, tuple(lengths)
            mask = call.fixed(
                key, layout, lambda: near(tiles, (lengths[0], lengths[1], lengths[2]))
            )
            if not self.quantised:
                return None if mask is None else call.attend(layout, mask)
            if mask is None:
                mask = layout.everything()
            at.count("attentions_rounded")
            fused = self.kernel == "triton" or (
                self.kernel == "auto" and no_triton(call.q.device) is None
            )
            if fused and not torch.is_grad_enabled():
                at.notes["kernel"] = "triton"
                return call.attend(layout, mask, rounded=True, kernel="triton")
            at.notes["kernel"] = "dense"
            return call.attend(
                layout,
                mask,
                rounded=True,
                q=by_tile(call.q, call.queries(layout), layout.tiles),
                k=by_tile(call.k, layout.of_tokens[None], layout.tiles),
                v=by_channel(call.v),
            )

        SparseAttention(at, "dense" if self.quantised else "auto", attend).install()
