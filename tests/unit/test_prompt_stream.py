"""The prompts of Stage 2: their order, their identity, and going on from a position."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipelines.stage.tasks import PromptStream, group_of
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder


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
    epochs = list(islice(PromptStream(config(root)), 6))
    for first, second in zip(epochs[::2], epochs[1::2], strict=True):
        assert {first.query_id, second.query_id} == {"1_fig", "2_fig"}
    task = next(task for task in epochs if task.query_id == "1_fig")
    assert (task.query, task.gt_video, task.gt_span, task.gt_duration) == ("text of 1_fig", "right", (1.0, 3.0), 8.0)
    assert task.negatives == ["n1", "n2"]
    assert {task.first_video for task in epochs} == {None}


def test_balanced_first_videos_are_those_of_the_augmented_records(root: Path) -> None:
    epoch = list(islice(PromptStream(config(root, first_video="balanced")), 3))
    assert {(task.query_id, task.first_video) for task in epoch} == {
        ("1_fig", None),
        ("1_fig:augmented", "right"),
        ("2_fig", None),
    }


def test_recorded_first_videos_bring_the_augmented_records(root: Path) -> None:
    epoch = list(islice(PromptStream(config(root, first_video="recorded")), 3))
    assert {(task.query_id, task.first_video) for task in epoch} == {
        ("1_fig", "wrong"),
        ("1_fig:augmented", "right"),  # a group of its own
        ("2_fig", "right"),
    }
    samples = group_of(epoch[0], 3)
    assert {sample.first_video for sample in samples} == {epoch[0].first_video}
    assert [(sample.id.prompt, sample.id.sample) for sample in samples] == [(epoch[0].id.prompt, n) for n in range(3)]


def test_missing_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="vsr1 data build"):
        PromptStream(config(tmp_path))


def many(tmp_path: Path, count: int, **changes: Any) -> Config:
    path = DatasetFolder(tmp_path).grpo_records()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [record(f"{number}_fig", "wrong") for number in range(count)])
    return config(tmp_path).model_copy(update=changes)


def test_a_prompt_id_never_comes_twice_and_names_its_epoch_and_row(tmp_path: Path) -> None:
    ids = [task.id.prompt for task in islice(PromptStream(many(tmp_path, 5)), 15)]
    assert len(set(ids)) == 15
    assert {prompt.split("/")[0] for prompt in ids[5:10]} == {"1"}
    assert sorted(prompt.split("/", 1)[1] for prompt in ids[:5]) == [f"{row}/{row}_fig" for row in range(5)]


def test_one_query_twice_in_the_records_is_two_prompts(tmp_path: Path) -> None:
    path = DatasetFolder(tmp_path).grpo_records()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [record("1_fig", "wrong"), record("1_fig", "wrong")])
    first, second = islice(PromptStream(config(tmp_path)), 2)
    assert first.query_id == second.query_id
    assert first.id.prompt != second.id.prompt


def test_epochs_have_orders_of_their_own_that_follow_from_the_seed(tmp_path: Path) -> None:
    settings = many(tmp_path, 20)
    queries = [task.query_id for task in islice(PromptStream(settings), 40)]
    assert sorted(queries[:20]) == sorted(queries[20:]) and queries[:20] != queries[20:]
    assert queries == [task.query_id for task in islice(PromptStream(settings), 40)]
    other = PromptStream(settings.model_copy(update={"seed": 1}))
    assert queries != [task.query_id for task in islice(other, 40)]


@pytest.mark.parametrize("position", [0, 1, 6, 7, 20, 23])
def test_a_stream_goes_on_from_its_position(tmp_path: Path, position: int) -> None:
    settings = many(tmp_path, 7)
    whole = list(islice(PromptStream(settings), 30))
    stream = PromptStream(settings)
    for _ in range(position):
        next(stream)
    assert stream.position == position
    assert list(islice(PromptStream(settings, stream.position), 30 - position)) == whole[position:]
