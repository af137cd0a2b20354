"""The check before a build names each kind of defect, and its exit code says that there is one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.data.check_videos import check_videos
from vsr1.config import Config, load_config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    write_toy_corpus(tmp_path / "toy", 3, 5, 0)
    return DatasetFolder(tmp_path / "toy")


def check(folder: DatasetFolder, *options: str) -> Any:
    return CliRunner().invoke(app, ["data", "check", f"data.root={folder.root}", *options])


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_check_and_all_its_processes_with_a_line(folder: DatasetFolder, signal_: int) -> None:
    film = next(folder.raw_videos("test").glob("*.mp4"))
    for number in range(400):
        (folder.raw_videos("test") / f"more {number}.mp4").symlink_to(film)
    command = [sys.executable, "-m", "pipelines", "data", "check", f"data.root={folder.root}", "data.search_only=true"]
    out = folder.root / "log"
    with out.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 60
    while "opening" not in out.read_text():
        assert process.poll() is None and time.monotonic() < deadline, out.read_text()
        time.sleep(0.05)
    group = os.getpgid(process.pid)
    if signal_ == signal.SIGINT:
        os.killpg(group, signal_)  # as a terminal sends it
    else:
        process.send_signal(signal_)
    assert process.wait(120) == 128 + signal_
    *_, last = (text := out.read_text()).splitlines()
    assert last == f"{signal.Signals(signal_).name}: stopping; nothing was written" and "Traceback" not in text
    while left := _of_group(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _of_group(group: int) -> list[int]:
    processes = []
    for one in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                processes.append(one.pid)
    return processes


@pytest.mark.parametrize("other", ["test_0001.mp4", "caf\u00e9"])
def test_a_film_under_two_ids_is_refused_with_both(folder: DatasetFolder, other: str) -> None:
    path = folder.annotations("test")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if other == "caf\u00e9":  # the same letters, taken apart
        (folder.raw_videos("test") / "test_0001.mp4").rename(folder.raw_videos("test") / "caf\u00e9.mp4")
        rows = [row | {"video": "cafe\u0301"} if row["video"] == "test_0001" else row for row in rows]
    [row] = [row for row in rows if row["video"] in ("test_0001", "cafe\u0301")]
    write_lines(path, [*rows, row | {"video": other, "desc_id": 999}])
    result = check(folder)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "1 video files under several ids" in result.output and ascii(other) in result.output


def test_each_defect_is_found(folder: DatasetFolder) -> None:
    raw = folder.raw_videos("test")
    (raw / "test_0000.mp4").unlink()
    (raw / "test_0001.mp4").write_bytes(b"not a video" * 100)
    shutil.copyfile(raw / "test_0002.mp4", raw / "test_0002.mkv")
    shutil.copyfile(raw / "test_0002.mp4", raw / "unused.mp4")
    rows = [json.loads(line) for line in folder.annotations("test").read_text().splitlines()]
    write_lines(
        folder.annotations("test"), [row | {"duration": row["duration"] + 2 * (i == 3)} for i, row in enumerate(rows)]
    )
    train, test = check_videos(Config.model_validate({"data": {"root": folder.root}}))
    assert (train.videos, train.wrong, train.unused) == (3, 0, 0)
    assert test.missing == ["test_0000"]
    assert list(test.undecodable) == ["test_0001"]
    assert "cannot be opened as a video" in test.undecodable["test_0001"]
    assert [Path(path).suffix for path in test.twice["test_0002"]] == [".mkv", ".mp4"]
    assert test.mismatched == {"test_0003": (rows[3]["duration"] + 2, pytest.approx(rows[3]["duration"], abs=0.5))}
    assert (test.videos, test.wrong, test.unused) == (5, 4, 1)

    result = check(folder)
    assert result.exit_code == 1
    assert "test: test_0000: no video file in" in result.stdout
    found = check(folder, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["test"]["missing"] == ["test_0000"]


def test_a_sound_corpus_passes(folder: DatasetFolder) -> None:
    assert check(folder).exit_code == 0
    assert check(folder, "data.search_only=true").exit_code == 0


def test_a_built_corpus_of_labels_is_told_which_stage_it_serves(folder: DatasetFolder) -> None:
    assert "serves" not in check(folder).output  # nothing is built yet
    write_lines(folder.grpo_records(), [{"qid": "a"}, {"qid": "b"}])
    labels = check(folder)
    assert labels.exit_code == 0
    assert "train: serves Stage 2 (2 records); sft_data/train_oneturn.json does not exist" in labels.output


def test_a_shared_folder_counts_what_no_split_names(folder: DatasetFolder) -> None:
    raw = folder.root / "raw_videos"
    shutil.copyfile(raw / "test" / "test_0000.mp4", raw / "spare.mp4")
    checks = check_videos(Config.model_validate({"data": {"root": folder.root, "videos": raw}}))
    assert [(found.wrong, found.unused) for found in checks] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("name", ["activitynet", "didemo", "charades"])
def test_published_corpora_have_a_configuration(name: str) -> None:
    config = load_config(Path(__file__).parents[3] / "configs" / f"{name}.yaml")
    assert set(config.data.annotations) == set(config.data.splits) >= {"train", "test"}
    assert all(f"{name}_fig_" in path.name for path in config.data.annotations.values())
    assert config.data.beyond_duration == "keep"
