"""One service over a corpus that grows for all tests of this folder; each leaves the corpus as it was."""

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from ray import serve

from pipelines.data.build import build_dataset
from pipelines.serve.deploy import start_agent
from vsr1.config import load_config
from vsr1.formats.annotations import read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus

from .served import NEW, REPOSITORY, VIDEOS, WHOLE, Served


@pytest.fixture(scope="package")
def served(
    tmp_path_factory: pytest.TempPathFactory, own_ray: Callable[[], AbstractContextManager[None]]
) -> Iterator[Served]:
    with own_ray():
        folder = tmp_path_factory.mktemp("library")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "inbox").mkdir()
        settings = [
            f"run_dir={folder / 'run'}", f"data.root={folder / 'data'}",
            "data.splits=[test,whole]", "data.search_only=true",
            "cluster.rollout.memory_gib=1", f"serve.corpora.toy.root={folder / 'data'}",
            f"serve.upload.path_root={folder / 'inbox'}",
            "serve.upload.urls=true", "serve.upload.max_mib=1", "serve.upload.max_seconds=60",
            "serve.upload.max_frames=400", "serve.upload.max_pixels=16384", "serve.upload.waiting=2",
            "serve.longest_clip_s=20",
        ]  # fmt: skip
        config = load_config(REPOSITORY / "configs" / "toy.yaml", settings)
        data = DatasetFolder(folder / "data")
        write_toy_corpus(data.root, 2, VIDEOS, 0)
        shutil.copytree(data.raw_videos("test"), data.raw_videos(WHOLE))
        (data.raw_videos("test") / f"{NEW}.mp4").unlink()
        build_dataset(config)
        films = {path.stem: path for path in sorted(data.raw_videos(WHOLE).iterdir())}
        queries = {row.video: row.fig_desc for row in reversed(read_annotations(data.annotations("test")))}
        start_agent(config, "127.0.0.1", port)
        yield Served(f"http://127.0.0.1:{port}", config, data, films, queries)
        serve.shutdown()
