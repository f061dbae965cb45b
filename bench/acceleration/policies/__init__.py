"""Policies that decide for each sample and step what is computed, and their training by
reinforcement (GRPO). Here: what their methods declare without torch."""

SKIP, CACHE, ATTENTION, RATIO = "skip", "cache", "attention", "ratio"
"""Heads: how far the next step is away, whether this one reuses, how sparse its attention is; and which
share of the tokens is computed."""
HEADS = (SKIP, CACHE, ATTENTION)
"""RAPID3's."""
MASSES = (1.0, 0.95, 0.9, 0.8)
"""Share of a tile's attention that the tiles it attends to hold, by level; 0 is dense. RAPID3's are
not known but for being mild and three; these are ours."""
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Share of the tokens that is computed, by level: DiffSparse's."""
