"""The dataset of navigation, where a stage finds none and `toy.create` asks for one."""

from __future__ import annotations

from vsr1.config import Config
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.files import questions_file
from vsr1.toy.long_corpus import write_long_corpus


def ensure_films(config: Config) -> bool:
    """Write the long toy world if there is none and `toy.create` says so; tell whether it was written."""
    folder, toy = DatasetFolder(config.data.root), config.toy
    sizes = {"train": toy.train, "test": toy.test} | ({"val": toy.val} if toy.val else {})
    if not toy.create or all(questions_file(folder, split).is_file() for split in sizes):
        return False
    write_long_corpus(folder, sizes, config.navigate, config.seed)
    return True
