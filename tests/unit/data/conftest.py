"""A small toy corpus, not built and built."""

import shutil
from pathlib import Path

import pytest

from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus

from .builds import build


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six training videos and four test videos, before it is built; copy it."""
    root = tmp_path_factory.mktemp("corpus") / "toy"
    write_toy_corpus(root, 6, 4, 0)
    return root


@pytest.fixture(scope="session")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(corpus, tmp_path_factory.mktemp("built") / "toy"))
    build(root)
    return root


@pytest.fixture
def fresh(corpus: Path, tmp_path: Path) -> DatasetFolder:
    """A copy of the corpus."""
    return DatasetFolder(Path(shutil.copytree(corpus, tmp_path / "toy")))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> DatasetFolder:
    """A copy of the built corpus."""
    return DatasetFolder(Path(shutil.copytree(built, tmp_path / "toy")))
