"""Dataset construction on a real Ray: the same files as without it, bad videos, and a build that is killed.

What a build does besides is in tests/unit/data, which builds in its own process.
"""

import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.data.build import BuildError, BuildReport, build_dataset
from vsr1.config import Config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")
TRAIN, TEST = 6, 4  # videos of `corpus`
STAND_IN = Path(__file__).parent / "stand_in_embedder.py"
stand_in = runpy.run_path(str(STAND_IN))["stand_in"]
build_here = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "data" / "builds.py"))["build"]

# A build that is slow enough to be killed in the middle, in a process of its own.
SLOW_BUILD = """
import runpy, sys, time
import ray
from pipelines.data import workers
from pipelines.data.build import build_dataset
from vsr1.config import Config

root, stand_in, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
workers.VIDEOS_A_TASK = 1

class SlowWorkers(workers.RayWorkers):
    def each(self, jobs, work):
        for result in super().each(jobs, work):
            yield result
            time.sleep(0.3)

class Slow(runpy.run_path(stand_in)["stand_in"]()):
    def embed_clips(self, clips):
        time.sleep(0.6)
        return super().embed_clips(clips)

config = Config.model_validate({"data": {"root": root, "embed_batch": 2}})
build_dataset(config, embedder_class=Slow, workers=SlowWorkers(config.data, "cpu"))
"""


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without Ray."""
    root = Path(shutil.copytree(corpus, tmp_path_factory.mktemp("built") / "toy"))
    build_here(root)
    return root


@pytest.fixture
def fresh(corpus: Path, tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(Path(shutil.copytree(corpus, tmp_path / "toy")))


def build(root: Path, **data: Any) -> BuildReport:
    config = Config.model_validate({"data": {"root": root, "embed_batch": 2} | data})
    return build_dataset(config, embedder_class=stand_in())


def contents(root: Path) -> dict[str, Any]:
    """Every file of a dataset, times of extraction and the records of the build aside."""
    files: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".vsr1"):
            files[name] = path.read_bytes()
            if path.parent.name == "video_npy_with_meta" and path.suffix == ".jsonl":
                files[name] = [row | {"extract_utc": ""} for row in read_lines(path)]
    return files


def test_a_build_on_ray_gives_the_same_files(fresh: DatasetFolder, built: Path) -> None:
    report = build(fresh.root, embed_workers=2)
    assert [split.decoded for split in report.splits] == [TRAIN, TEST]
    assert contents(fresh.root) == contents(built)


def test_bad_videos_are_named_and_stop_the_build(fresh: DatasetFolder) -> None:
    (fresh.raw_videos("test") / "test_0001.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(BuildError, match=r"1 of 4 videos of split 'test' gave no clip \(test_0001: cannot be opened"):
        build(fresh.root, splits=["test"])


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("not in 60 s")


@pytest.mark.chaos
def test_a_killed_build_goes_on_to_the_same_files(corpus: Path, built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(corpus, tmp_path / "toy"))
    state = root / ".vsr1" / "build"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(STAND_IN), address]

    def killed_when(reached: Callable[[], bool]) -> None:
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            wait_until(reached, process)
            process.send_signal(signal.SIGKILL)

    journal = state / "train.clips.rows.jsonl"
    killed_when(lambda: journal.is_file() and len(journal.read_bytes().splitlines()) >= 2)
    early = {row["video_id"]: row for row in read_lines(journal)}
    assert 2 <= len(early) < TRAIN
    assert not (state / "train.clips.json").exists()
    killed_when(lambda: len(list(state.glob("parts/*.video/*.npy"))) >= 1)
    assert {row["video_id"]: row for row in read_lines(journal)}.items() >= early.items()
    embedded = {path: path.stat().st_mtime_ns for path in state.glob("parts/*.video/[!.]*.npy")}
    assert not (state / "train.video_embedding.json").exists()

    report = build_here(root)
    assert [split.decoded for split in report.splits] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in embedded} == embedded
    assert contents(root) == contents(built)
