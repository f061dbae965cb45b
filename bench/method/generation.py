"""Where a generation is: what the harness tells every method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class Now:
    """Where the generation is. Told, not guessed: a method never counts calls itself."""

    step: int = 0
    """Sampler step, from 0."""
    branch: int = 0
    """Which transformer call of this step: 0, and 1 for a separate guidance pass."""
    num_steps: int = 0
    """Sampler steps of this generation, as many as the scheduler set: Heun's makes 2 N - 1 of the N
    it is asked for."""
    samples: int = 0
    """Samples of this generation; 0 where nobody said."""
    passes: int = 1
    """Guidance passes that share a batch, one after the other: 2 for DiT and PixArt under
    guidance."""
    grid: tuple[int, int, int] = (0, 0, 0)
    """Frames, rows and columns of image tokens."""
    text_tokens: int = 0
