"""Who a sample is, from the prompt stream to the log, and the seeds that follow from it.

A sample is (prompt id, sample, attempt). A prompt id names one issue of a prompt: the same query in a later epoch has
another. Every random choice hashes what it is for, so no seed of what is learned repeats, within a run or between runs
of other seeds. An attempt has the seeds of the first: what was lost was not learned, and a run with losses ends as one
without.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SEED_BITS = 56  # a latent's noise takes eight seeds for each of a request's, and a generator takes 63 bits


@dataclass(frozen=True, order=True)
class SampleId:
    """One sample of one prompt; an attempt is a repetition after the infrastructure lost the one before it."""

    prompt: str
    sample: int = 0
    attempt: int = 0

    def seed(self, run_seed: int, turn: int) -> int:
        """Return the seed of the request of a turn (from 1): of its tokens and of the noise on its latents."""
        return hashed_seed(run_seed, self.prompt, self.sample, 0, turn)  # 0: as a first attempt always had it


def hashed_seed(*parts: int | str) -> int:
    """Return a number in [0, 2**56) that follows from the parts, each with its type and its place."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - SEED_BITS)


@dataclass(frozen=True)
class FailedSample:
    """A sample without a score: never an answer of the policy, and never trained on."""

    id: SampleId
    reason: str  # class of the error
    message: str
