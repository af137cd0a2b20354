"""Which steps of a build run again, that a killed build goes on to the same files, and what a full disk leaves."""

import errno
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pipelines.data.build import BuildError, BuildReport, build_dataset
from vsr1.config import Config
from vsr1.formats import atomic
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")
TRAIN = 6  # videos of `corpus`
STAND_IN = Path(__file__).parent / "stand_in_embedder.py"
stand_in = runpy.run_path(str(STAND_IN))["stand_in"]

# A build that is slow enough to be killed in the middle, in a process of its own.
SLOW_BUILD = """
import runpy, sys, time
from pathlib import Path
import ray
from pipelines.data import build as data
from pipelines.data import clips as data_clips
from vsr1.config import Config

root, stand_in, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
data_clips.VIDEOS_A_TASK, made = 1, data_clips._made

def slowly(*args):
    for row in made(*args):
        yield row
        time.sleep(0.3)

class Slow(runpy.run_path(stand_in)["stand_in"]()):
    def embed_clips(self, clips):
        time.sleep(0.6)
        return super().embed_clips(clips)

data_clips._made = slowly
data.build_dataset(Config.model_validate({"data": {"root": root, "embed_batch": 2}}), embedder_class=Slow)
"""


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(corpus, tmp_path_factory.mktemp("built") / "toy"))
    build(root)
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> DatasetFolder:
    return DatasetFolder(Path(shutil.copytree(built, tmp_path / "toy")))


def build(root: Path, sections: dict[str, Any] | None = None, **data: Any) -> BuildReport:
    config = {"data": {"root": root, "embed_batch": 2} | data} | (sections or {})
    return build_dataset(Config.model_validate(config), embedder_class=stand_in())


def built_steps(report: BuildReport) -> set[str]:
    return {f"{step.split}.{step.name}" for step in report.steps if step.status == "built"}


def contents(root: Path) -> dict[str, Any]:
    """Every file of a dataset, times of extraction and the records of the build aside."""
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(".vsr1"):
            found[name] = path.read_bytes()
            if path.parent.name == "video_npy_with_meta" and path.suffix == ".jsonl":
                found[name] = [row | {"extract_utc": ""} for row in read_lines(path)]
    return found


RECORDS = {"train.grpo_records", "train.sft_records"}
FROM_QUERIES = RECORDS | {"train.recall", "train.top1_pool", "train.hard_negatives", "train.reasoning"}
FROM_VIDEOS = FROM_QUERIES | {"all.embedding", "train.video_embedding", "train.index"}
TEST_FROM_VIDEOS = {"test.video_embedding", "test.index", "test.recall"}
EVERY_VIDEO = FROM_VIDEOS | TEST_FROM_VIDEOS
QUERIES = {"train.query_embedding", "test.query_embedding"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decode_workers": 1, "embed_workers": 2}, set()),
        ({"grpo_negatives": 2}, {"train.grpo_records"}),
        ({"hard_negatives": 2}, {"train.hard_negatives"}),
        ({"embed_batch": 3}, {"all.embedding", "train.video_embedding", "test.video_embedding"} | QUERIES),
        ({"timestamps": "legacy_index"}, EVERY_VIDEO),
        ({"max_frames": 8}, EVERY_VIDEO | {"train.clips", "test.clips"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_option_rebuilds_what_depends_on_it(
    copy: DatasetFolder, options: dict[str, Any], expected: set[str]
) -> None:
    assert built_steps(build(copy.root, **options)) == expected


def change_query(folder: DatasetFolder) -> None:
    rows = read_lines(folder.annotations("train"))
    rows[2]["fig_desc"] = "another text"
    atomic.write_lines(folder.annotations("train"), rows)


def replace_video(folder: DatasetFolder) -> None:
    raw = folder.raw_videos("train")
    shutil.copyfile(raw / "train_0002.mp4", raw / "train_0001.mp4")


def damage_index(folder: DatasetFolder) -> None:
    folder.index("test").write_bytes(folder.index("test").read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("change", "expected", "decoded"),
    [
        (lambda folder: os.utime(folder.raw_videos("train") / "train_0001.mp4"), {"train.clips"}, 0),
        (replace_video, FROM_VIDEOS | {"train.clips"}, 1),
        (lambda folder: (folder.clips("train") / "train_0001.npy").unlink(), {"train.clips"}, 1),
        (change_query, FROM_QUERIES | {"all.embedding", "train.query_embedding"}, 0),
        (damage_index, {"test.index"}, 0),
        (lambda folder: folder.sft_records().unlink(), {"train.sft_records"}, 0),
    ],
    ids=["touched", "replaced", "lost clip", "query", "damaged index", "lost records"],
)
def test_a_changed_file_rebuilds_what_depends_on_it(
    copy: DatasetFolder, change: Callable[[DatasetFolder], Any], expected: set[str], decoded: int
) -> None:
    parts = copy.root / ".vsr1" / "build" / "parts" / "train.video"
    before = {path.name for path in parts.iterdir()}
    change(copy)
    report = build(copy.root)
    assert built_steps(report) == expected
    assert report.splits[0].decoded == decoded
    replaced = len(before - {path.name for path in parts.iterdir()})
    assert replaced == (1 if change is replace_video else 0)
    assert len(list(parts.iterdir())) == len(before)
    assert built_steps(build(copy.root)) == set()


def test_prompts_and_checkpoints_count_by_content(copy: DatasetFolder, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Judge the video.")
    agent = {"agent": {"system_prompt": prompt}}
    assert built_steps(build(copy.root, agent)) == RECORDS
    embedder = Path(shutil.copytree(Config().model.embedder, tmp_path / "embedder"))
    elsewhere = agent | {"model": {"embedder": embedder}}
    assert built_steps(build(copy.root, elsewhere)) == set()
    with (embedder / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    assert built_steps(build(copy.root, elsewhere)) == EVERY_VIDEO | QUERIES


def test_rows_of_a_removed_annotation_vanish(copy: DatasetFolder) -> None:
    rows = read_lines(copy.annotations("train"))
    atomic.write_lines(copy.annotations("train"), rows[:-1])
    gone = rows[-1]["video"]
    build(copy.root)
    assert not (copy.clips("train") / f"{gone}.npy").exists()
    assert len(read_lines(copy.clips("train") / "meta.jsonl")) == TRAIN - 1
    assert len(np.load(copy.video_embeddings("train"))) == len(np.load(copy.query_embeddings("train"))) == TRAIN - 1
    made = [copy.root / "train", copy.root / "sft_data", copy.root / "grpo_data"]
    named = [path for folder in made for path in folder.rglob("*.json*") if gone in path.read_text(encoding="utf-8")]
    assert not named


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("not in 60 s")


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

    report = build(root)
    assert [split.decoded for split in report.splits] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in embedded} == embedded
    assert contents(root) == contents(built)


def test_a_full_disk_leaves_the_old_files_and_says_so(copy: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before, move = contents(copy.root), os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target) == copy.grpo_records():
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        move(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(BuildError, match=r"'grpo_records' of split 'train'.*No space left.*GiB are free.*goes on"):
        build(copy.root, grpo_negatives=2)
    assert contents(copy.root) == before
    monkeypatch.undo()
    assert built_steps(build(copy.root, grpo_negatives=2)) == {"train.grpo_records"}


def test_two_builds_do_not_share_a_folder(copy: DatasetFolder) -> None:
    with pytest.raises(BuildError, match=r"another build of .* is running"):
        build_dataset(
            Config.model_validate({"data": {"root": copy.root, "embed_batch": 2, "grpo_negatives": 3}}),
            progress=lambda text: build(copy.root),
            embedder_class=stand_in(),
        )
