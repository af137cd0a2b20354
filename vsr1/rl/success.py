"""How often the samples of each prompt succeed lately, and which prompt that makes worth drawing.

A group teaches most where half of it succeeds: its rewards differ with a variance of p(1 - p). What was observed
before weighs half as much with every further group, because the policy changes; a prompt that was never played counts
as p = 1/2, so new ones come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

KEPT = 0.5  # weight of what was observed before, at each new observation
PRIOR = 1.0  # samples, of which half succeeded, that are always counted
LEAST = 0.02  # is added to p(1 - p): no prompt is left out for good
HOPELESS = 0.15  # below this a prompt is helped


class SuccessEstimates:
    """Belongs to one thread.

    Args:
        counts: successes and samples by prompt, as `counts` gave them.
    """

    def __init__(self, counts: Mapping[str, Sequence[float]] | None = None) -> None:
        self._counts = {prompt: (values[0], values[1]) for prompt, values in (counts or {}).items()}

    @property
    def counts(self) -> dict[str, list[float]]:
        """Return what a run goes on from, a JSON value."""
        return {prompt: list(values) for prompt, values in self._counts.items()}

    def observe(self, prompt: str, successes: int, samples: int) -> None:
        """Take what became of the samples of a group."""
        before = self._counts.get(prompt, (0.0, 0.0))
        self._counts[prompt] = (KEPT * before[0] + successes, KEPT * before[1] + samples)

    def of(self, prompt: str) -> float:
        """Return the estimate p of a prompt, in 0..1."""
        successes, samples = self._counts.get(prompt, (0.0, 0.0))
        return (successes + PRIOR / 2) / (samples + PRIOR)

    def is_hopeless(self, prompt: str) -> bool:
        """Tell whether hardly any sample of a prompt succeeds."""
        return self.of(prompt) < HOPELESS

    def draw(self, prompts: Sequence[str], uniform: float) -> int:
        """Return the place of a prompt, drawn in proportion to p(1 - p).

        Args:
            uniform: a number in [0, 1) that decides.
        """
        chances = np.array([self.of(prompt) for prompt in prompts])
        ends = np.cumsum(chances * (1 - chances) + LEAST)
        return int(np.searchsorted(ends, uniform * ends[-1], side="right"))
