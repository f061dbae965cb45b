"""Where a generation is: what the harness tells every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def conditional_rows(guidance: str, batch: int, passes: int) -> slice:
    """The rows of a batch of `passes` guidance passes that are the conditional one."""
    count = batch // passes
    return slice(0, count) if guidance.endswith("first") else slice(batch - count, batch)


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
    """Guidance passes that share a batch, one after the other: 2 for DiT and PixArt under guidance,
    1 where one is left out."""
    batch: int = 0
    """Rows of the batch of the transformer call under way, or of the last one."""
    guidance: str = ""
    """How the pipeline computes guidance (`Family.guidance`); "" before the first call."""
    unguided: bool = False
    """Whether a method leaves the unconditional pass out at this step."""
    grid: tuple[int, int, int] = (0, 0, 0)
    """Frames, rows and columns of image tokens."""
    text_tokens: int = 0

    @property
    def conditional(self) -> slice:
        """The rows of the batch that are the conditional pass in the transformer call under way: all
        of them without guidance, none of a call for the unconditional pass.

        Raises ValueError where both passes share a batch and nobody said how many samples are made.
        """
        if self.guidance == "two calls":
            return slice(0, 0 if self.branch else self.batch)
        if not self.guidance.startswith("batched"):
            return slice(0, self.batch)
        self.known_samples()
        return conditional_rows(self.guidance, self.batch, self.passes)

    def known_samples(self) -> int:
        """`samples`; ValueError where nobody said how many there are."""
        if not self.samples:
            raise ValueError(
                "which rows of a batch are whose is not known of a generation begun without "
                "start(steps, samples)"
            )
        return self.samples

    def rows_of(self, samples: Any) -> list[int]:
        """The rows of the batch that belong to samples, given by number from 0, in all guidance
        passes of the call under way: those of the first pass, then those of the second. ValueError
        for a number that no sample has."""
        chosen = [int(sample) for sample in samples]
        count = self.batch if self.passes == 1 else self.known_samples()
        if strangers := [sample for sample in chosen if not 0 <= sample < count]:
            raise ValueError(f"sample {strangers[0]} is none of 0 to {count - 1}")
        return [p * count + sample for p in range(self.passes) for sample in chosen]
