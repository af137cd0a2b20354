"""One Ray and one corpus for all tests of this folder; each test leaves the corpus as it was.

It is served with scripted agents, to everybody or to those with keys: what an engine answers is tested in `../service`.
"""

import runpy
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import pytest
from ray import serve

from pipelines.data.build import build_dataset
from vsr1.config import load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus

from .scripted import LATE
from .served import NEW, REPOSITORY, VIDEOS, WHOLE, Served, Stage

Here = runpy.run_path(str(REPOSITORY / "tests" / "unit" / "data" / "builds.py"))["Here"]


@pytest.fixture(scope="package")
def stage(
    tmp_path_factory: pytest.TempPathFactory, own_ray: Callable[[], AbstractContextManager[None]]
) -> Iterator[Stage]:
    with own_ray():
        folder = tmp_path_factory.mktemp("library")
        (folder / "inbox").mkdir()
        settings = [
            f"run_dir={folder / 'run'}", f"data.root={folder / 'data'}", f"serve.corpora.toy.root={folder / 'data'}",
            "data.splits=[test,whole]", "data.search_only=true", "cluster.rollout.memory_gib=1",
            f"agent.max_turns={VIDEOS}", f"serve.upload.path_root={folder / 'inbox'}",
            "serve.upload.urls=true", "serve.upload.max_mib=1", "serve.upload.max_seconds=60",
            "serve.upload.max_frames=400", "serve.upload.max_pixels=16384", "serve.upload.waiting=2",
            "serve.longest_clip_s=20",
        ]  # fmt: skip
        config = load_config(REPOSITORY / "configs" / "toy.yaml", settings)
        data = DatasetFolder(folder / "data")
        write_toy_corpus(data.root, 2, VIDEOS, 0)
        shutil.copytree(data.raw_videos("test"), data.raw_videos(WHOLE))
        (data.raw_videos("test") / f"{NEW}.mp4").unlink()
        build_dataset(config, workers=Here())
        films = {path.stem: path for path in sorted(data.raw_videos(WHOLE).iterdir())}
        with closing(Stage(config, data, films, folder)) as stage:
            yield stage
        serve.shutdown()


@pytest.fixture(scope="module")
def served(stage: Stage) -> Served:
    """Served to everybody."""
    return stage.show("to_everybody")


@pytest.fixture(scope="module")
def keyed(stage: Stage) -> Served:
    """Served to those who have a key."""
    return stage.show("with_keys")


@pytest.fixture(scope="module")
def late(served: Served) -> str:
    """The video that answers the query `LATE`."""
    [moment] = served.search(query=LATE)[1]["moments"]
    return moment["video_id"]
