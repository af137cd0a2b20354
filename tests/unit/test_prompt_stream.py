"""The prompts of Stage 2: their order, their identity, and going on from a position."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from search_episodes import search_trajectory, search_turn

from pipelines.stage.tasks import PromptStream, group_of
from vsr1.config import Config
from vsr1.episode.sample import SampleId
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.search.record import SearchTrajectory


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


def outcome(prompt: str, found: bool) -> SearchTrajectory:
    """Return a sample that ends with the right video, or with a wrong one, accepted."""
    one = search_trajectory(
        "q", [search_turn(1, "right" if found else "wrong", "matched", (1.0, 2.0), ranks=(1, None))]
    )
    return replace(one, task=replace(one.task, id=SampleId(prompt), gt_video="right"))


def drawn(stream: PromptStream, count: int, successes: int) -> list[str]:
    """Return prompts that are taken and learned one after another: query 0 has `successes` of 4, others half."""
    prompts = []
    for task in islice(stream, count):
        prompts.append(task.id.prompt)
        good = successes if "/0/" in task.id.prompt else 2
        stream.learned([outcome(task.id.prompt, sample < good) for sample in range(4)])
    return prompts


@pytest.mark.parametrize("successes", [0, 4])
def test_prompts_that_always_or_never_succeed_are_drawn_seldom(tmp_path: Path, successes: int) -> None:
    settings = many(tmp_path, 4, grpo=config(tmp_path, draw="success").grpo)
    prompts = drawn(PromptStream(settings), 400, successes)
    assert len(set(prompts)) == 400
    shares = [sum(f"/{row}/" in prompt for prompt in prompts) / 400 for row in range(4)]
    assert shares[0] < 0.15 and all(0.2 < share < 0.4 for share in shares[1:])


def test_drawn_prompts_go_on_from_a_state(tmp_path: Path) -> None:
    settings = many(tmp_path, 9, grpo=config(tmp_path, draw="success").grpo)
    whole = drawn(PromptStream(settings), 30, 0)
    stream = PromptStream(settings)
    assert drawn(stream, 12, 0) == whole[:12]
    again = PromptStream(settings, stream.position, success=json.loads(json.dumps(stream.success.counts)))
    assert drawn(again, 18, 0) == whole[12:]


def test_a_hopeless_prompt_is_shown_the_right_video_until_that_helps(tmp_path: Path) -> None:
    stream = PromptStream(many(tmp_path, 1, grpo=config(tmp_path, first_video="hopeless").grpo))
    first = next(stream)
    assert first.first_video is None
    stream.learned([outcome(first.id.prompt, False) for _ in range(4)])
    helped = next(stream)
    assert (helped.first_video, helped.query_id) == ("right", "0_fig:helped")
    assert stream.task(helped.id.prompt) == helped
    stream.learned([outcome(helped.id.prompt, True) for _ in range(4)])
    assert next(stream).first_video is None
