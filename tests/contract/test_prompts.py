"""The prompts of Stage 2, streamed by Ray Data from GRPO records."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipelines.stage.tasks import group_of, prompt_stream
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder

pytestmark = pytest.mark.usefixtures("ray_cluster")


def record(qid: str, retrieved: str, augmented: bool = False) -> dict[str, Any]:
    return {
        "qid": qid,
        "query": f"text of {qid}",
        "gt_video": "right",
        "gt_time": [1, 3],
        "gt_duration": 8,
        "hard_negative_ids": ["n1", "n2", "n3"],
        "retrieved_video": retrieved,
        "is_augmented": augmented,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = DatasetFolder(tmp_path).grpo_records()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [record("1_fig", "wrong"), record("1_fig", "right", True), record("2_fig", "right")])
    return tmp_path


def config(root: Path, **grpo: Any) -> Config:
    return Config.model_validate({"data": {"root": root}, "grpo": {"negatives": 2, **grpo}})


def test_the_live_search_decides_what_turn_1_shows(root: Path) -> None:
    epochs = list(islice(prompt_stream(config(root)), 6))
    for first, second in zip(epochs[::2], epochs[1::2], strict=True):
        assert {first.query_id, second.query_id} == {"1_fig", "2_fig"}
    task = next(task for task in epochs if task.query_id == "1_fig")
    assert (task.query, task.gt_video, task.gt_span, task.gt_duration) == ("text of 1_fig", "right", (1.0, 3.0), 8.0)
    assert task.negatives == ["n1", "n2"]
    assert {task.first_video for task in epochs} == {None}


def test_balanced_first_videos_are_those_of_the_augmented_records(root: Path) -> None:
    epoch = list(islice(prompt_stream(config(root, first_video="balanced")), 3))
    assert {(task.query_id, task.first_video) for task in epoch} == {
        ("1_fig", None),
        ("1_fig:augmented", "right"),
        ("2_fig", None),
    }


def test_recorded_first_videos_bring_the_augmented_records(root: Path) -> None:
    epoch = list(islice(prompt_stream(config(root, first_video="recorded")), 3))
    assert {(task.query_id, task.first_video) for task in epoch} == {
        ("1_fig", "wrong"),
        ("1_fig:augmented", "right"),  # a group of its own
        ("2_fig", "right"),
    }
    samples = group_of(epoch[0], 3, 5)
    assert {sample.first_video for sample in samples} == {epoch[0].first_video}
    assert len({sample.seed for sample in samples}) == 3


def test_missing_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vsr1 data build"):
        next(prompt_stream(config(tmp_path)))
