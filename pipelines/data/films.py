"""The dataset of navigation in the toy world."""

from __future__ import annotations

from vsr1.config import Config
from vsr1.environments.navigation import toy_splits
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.long_corpus import write_long_corpus


def write_films(config: Config) -> None:
    """Write the long toy world in `data.root`."""
    write_long_corpus(DatasetFolder(config.data.root), toy_splits(config), config.navigate, config.seed)
