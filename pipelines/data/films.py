"""The datasets of navigation in the toy world."""

from __future__ import annotations

from vsr1.config import Config
from vsr1.environments.navigation import toy_splits
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.long_corpus import write_long_corpus, write_long_videos
from vsr1.toy.long_seekers import write_search_records


def write_films(config: Config) -> None:
    """Write the long toy world in `data.root`, also as videos where they are to be searched."""
    folder, splits = DatasetFolder(config.data.root), toy_splits(config)
    write_long_corpus(folder, splits, config.navigate, config.seed)
    if environment_of(config).has_corpus:
        for split in splits:
            write_long_videos(folder, split)
        write_search_records(folder, config.navigate, config.seed)
