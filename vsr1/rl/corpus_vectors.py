"""The corpus vectors that a learner compares refined queries with, where its environment has a corpus."""

from __future__ import annotations

import torch

from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.rl.refined import VideoVectors, load_vectors


def vectors_of(config: Config) -> VideoVectors:
    """Return the corpus vectors of the training split; navigation has no corpus, and none of them."""
    if config.environment == "navigate":
        return VideoVectors(torch.zeros(0, 1), {})
    return load_vectors(DatasetFolder(config.data.root), "train")
