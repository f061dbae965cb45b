"""How papers count: a published table is reproduced by counting as its authors did. No torch.

Ours is `flops`: 2 MAC, linear, attention and convolution, every step and guidance pass. Numbers of
different conventions are never compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.method.stack import Stack
    from ditbench.models.table import Model

Row = Mapping[str, Any]
"""A row of `counting.count_model`."""


def toca_flops(row: Row) -> float | None:
    """As the code of ToCa, DuCa and TaylorSeer adds up blocks on DiT, PixArt and FLUX, from the
    shares of tokens computed.

    DiT: softmax, GELU and modulation are counted, the last as multiply-accumulates. PixArt: the
    same, modulation of every block included, and cross-attention, whose keys and values are
    projected at every step; as the authors leave padding out of the text, a row is theirs where
    `--text-tokens` is a prompt's own length. FLUX: products alone; of a joint attention that is
    reused the output projection still runs, unless the method says that its authors keep what that
    gives (`keeps_projected`, TaylorSeer), and the fresh rows of a single-stream block run its MLP
    and output projection. None for other families, and for stacks that do not say what they
    compute.
    """
    if (work := row["work"]) is None or work["family"] not in _BLOCKS:
        return None
    work = {"projected": _keeps_projected(row["stack"]), **work}
    cost, kinds = _BLOCKS[work["family"]], [name.partition(".")[2] for name in work["sublayers"]]
    # as DuCa skips blocks: they cost nothing
    skipped = {(step, i) for step, i in work.get("skipped", [])}
    shares = (
        (kind, keep)
        for t, step in enumerate(work["keep"])
        for i, (kind, keep) in enumerate(zip(kinds, step, strict=True))
        if (t, i) not in skipped
    )
    return float(work["passes"] * sum(cost(kind, keep, work) for kind, keep in shares))


def _keeps_projected(stack: str) -> bool:
    """Whether a method of the stack keeps what attention gives after its output projection, in its
    authors' code for FLUX."""
    from ditbench.method.stack import Stack

    return any(getattr(m, "keeps_projected", False) for m in Stack.parse(stack).methods)


def _dit(kind: str, keep: float, work: Mapping[str, float]) -> float:
    n, d = work["image"], work["width"]
    if kind == "mlp":
        k = round(keep * n)
        # the block's modulation, once a block
        return d + 6 * d**2 + 2 * n * d + 16 * k * d**2 + 24 * k * d
    return 8 * n * d**2 + 4 * n**2 * d + n * d + 5 * work["heads"] * n**2 if keep else 0.0


def _pixart(kind: str, keep: float, work: Mapping[str, float]) -> float:
    if kind != "cross":
        return _dit(kind, keep, work)
    d, text, k = work["width"], work["text"], round(keep * work["image"])
    # 6: mask and softmax
    return 4 * k * d**2 + 4 * text * d**2 + 4 * k * text * d + k * d + 6 * work["heads"] * k * text


def _flux(kind: str, keep: float, work: Mapping[str, float]) -> float:
    n, d = work["image"] + work["text"], work["width"]
    if kind in ("mlp", "context_mlp"):
        return 16 * round(keep * (work["image"] if kind == "mlp" else work["text"])) * d**2
    if kind == "joint":
        reused = 0 if work["projected"] else 2 * n * d**2
        return 8 * n * d**2 + 4 * n**2 * d if keep else reused
    return 24 * n * d**2 + 4 * n**2 * d if keep == 1 else 18 * round(keep * n) * d**2


_BLOCKS: dict[str, Callable[[str, float, Mapping[str, Any]], float]] = {
    "dit": _dit,
    "pixart": _pixart,
    "flux": _flux,
}

CONVENTIONS: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "flops": ("FLOP = 2 MAC, attention included, all guidance passes", lambda row: row["flops"]),
    "macs": (
        "multiply-accumulates, attention included, all guidance passes",
        lambda row: row["flops"] / 2,
    ),
    "linear-macs": (
        "multiply-accumulates of linear layers and convolutions, without attention products, all "
        "guidance passes (DiffSparse on Wan)",
        lambda row: row["macs_linear"] + row["macs_conv"],
    ),
    "linear-macs-one-pass": (
        "the same, of one guidance pass a step (DiffSparse on PixArt and FLUX, Learning-to-Cache)",
        lambda row: (row["macs_linear"] + row["macs_conv"]) * row["steps"] / row["passes"],
    ),
    "toca": (
        "FLOPs of DiT's, PixArt's and FLUX's blocks as ToCa's, DuCa's and TaylorSeer's code adds "
        "them up",
        toca_flops,
    ),
}
"""Name -> (what it counts, how it follows from a row)."""


def counted(row: Row, convention: str) -> int | None:
    """The row's cost in a convention; None for a row without numbers. KeyError for an unknown
    convention."""
    _, cost = CONVENTIONS[convention]
    value = None if row["flops"] is None else cost(row)
    return None if value is None else round(value)


def count_in(
    convention: str,
    models: Sequence[Model],
    stacks: Sequence[Stack],
    progress: Callable[[str, int, int], None] | None = None,
    **sizes: Any,
) -> tuple[list[dict[str, Any]], str]:
    """Rows of `counting.count_table` with a column for the convention, and what the columns mean;
    ValueError for an unknown one."""
    from ditbench.profiling.counting import count_table
    from ditbench.suggest import suggest

    if convention not in CONVENTIONS:
        raise ValueError(
            f"--convention: no convention {convention!r}; {suggest(convention, CONVENTIONS)}"
        )
    rows = count_table(models, stacks, progress, **sizes)
    caption = "FLOP = 2 MAC; one sample, all steps and guidance passes; macs_per_pass: one of those passes"
    if convention != "flops":
        rows = [row | {convention.replace("-", "_"): counted(row, convention)} for row in rows]
        caption += f"; {convention}: {CONVENTIONS[convention][0]}"
    left_out = ", ".join(dict.fromkeys(row["not_counted"] for row in rows if row["not_counted"]))
    reasons = [
        f"{row['model']} {row['stack']} {row['status']}: {row['note']}"
        for row in rows
        if row["note"]
    ]
    return rows, "\n".join([f"{caption}; not counted: {left_out}", *reasons])
