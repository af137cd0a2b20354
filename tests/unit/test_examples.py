"""Training examples out of trajectories, with clips of a store on a real Ray."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value

from actors.clips import ClipStore
from pipelines.train.examples import trained_examples
from vsr1.config import Config
from vsr1.episode.trajectory import Segment, Trajectory
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.video.clips import Clip

pytestmark = pytest.mark.usefixtures("ray_cluster")
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file


def clip(video_id: str) -> Clip:
    return Clip.make(video_id, np.full((4, 8, 8, 3), ord(video_id), np.uint8), np.arange(4.0))


class Folder:
    def read(self, video_id: str) -> Clip:
        return clip(video_id)


@pytest.fixture(scope="module")
def clips(ray_cluster: None) -> Iterator[Any]:
    store = ClipStore.options(num_cpus=0).remote(Folder(), 100_000)
    yield store
    ray.kill(store)


def turn(number: int, video: str, *, finish: str = "stop", latents: float | None = None) -> Segment:
    """Latents, and their negative as noise, that are all one number."""
    values = None if latents is None else np.full((2, 3), latents, np.float32)
    return Segment(
        number, video, clip(video).content_hash, [1, number], [5, number], [-0.1, -0.2], "", finish, "not_matched",
        None, values, None if values is None else -values, [("a", 0.9), ("b", 0.8), ("c", 0.7)], 2, 1, "i", 0, 0.1,
    )  # fmt: skip


@pytest.fixture
def trajectories() -> list[Trajectory]:
    three = [turn(1, "a", latents=1.0), turn(2, "b", finish="length"), turn(3, "d", latents=3.0)]
    return [
        Trajectory("q1", "a red ring", "b", (0.0, 1.0), 2.0, 0, 0, three),
        Trajectory("q2", "a blue ring", "a", (0.0, 1.0), 2.0, 0, 0, [turn(1, "a", latents=4.0)]),
    ]


CREDITS = [[Credit(1.0, -1.0), Credit(2.0, -2.0), Credit(3.0, -3.0)], [Credit(4.0, -4.0)]]


def examples(trajectories: list[Trajectory], clips: Any, **sections: Any) -> list[Example]:
    return trained_examples(trajectories, CREDITS, clips, Config.model_validate(sections))


def test_a_turn_becomes_an_example_with_its_clip_and_credit(trajectories: list[Trajectory], clips: Any) -> None:
    found = examples(trajectories, clips)
    assert [e.clip.video_id for e in found] == ["a", "b", "d", "a"]
    assert [(e.query, e.positive) for e in found] == [("a red ring", "b")] * 3 + [("a blue ring", "a")]
    assert [(e.advantage, e.latent_advantage) for e in found] == [(n, -n) for n in (1.0, 2.0, 3.0, 4.0)]
    assert [e.refined for e in found] == [True, False, True, True]
    assert (found[2].prompt_ids, found[2].response_ids) == ([1, 3], [5, 3])
    assert found[2].behaviour_logprobs == [-0.1, -0.2]
    np.testing.assert_array_equal(found[2].latents, np.full((2, 3), 3.0))
    np.testing.assert_array_equal(found[2].noise, np.full((2, 3), -3.0))
    assert (found[1].latents, found[1].noise) == (None, None)


def test_negatives_are_the_wrong_video_shown_and_those_found_first(trajectories: list[Trajectory], clips: Any) -> None:
    assert [e.negatives for e in examples(trajectories, clips)] == [["a", "c"], ["a", "c"], ["d", "a", "c"], ["b", "c"]]


def test_replies_cut_at_the_limit_stay_out_if_told_so(trajectories: list[Trajectory], clips: Any) -> None:
    settings = {"objective": {"train_truncated": False}}
    found = examples(trajectories, clips, grpo=settings, agent={"latents_of_turns": "accumulate"})
    assert [(e.clip.video_id, e.advantage) for e in found] == [("a", 1.0), ("d", 3.0), ("a", 4.0)]
    np.testing.assert_array_equal(found[1].earlier_latents, np.full((2, 3), 1.0))


def test_latents_of_earlier_turns_come_along_where_they_stay_in_the_query(
    trajectories: list[Trajectory], clips: Any
) -> None:
    assert [e.earlier_latents for e in examples(trajectories, clips)] == [None] * 4
    trajectories[0].segments[1] = turn(2, "b", latents=2.0)
    first, second, third, other = examples(trajectories, clips, agent={"latents_of_turns": "accumulate"})
    assert (first.earlier_latents, other.earlier_latents) == (None, None)
    np.testing.assert_array_equal(second.earlier_latents, np.full((2, 3), 1.0))
    np.testing.assert_array_equal(third.earlier_latents, np.repeat([1.0, 2.0], 2)[:, None].repeat(3, axis=1))


def test_a_clip_that_changed_since_the_rollout_is_an_error(trajectories: list[Trajectory], clips: Any) -> None:
    trajectories[1].segments[0].clip_hash = "another"
    with pytest.raises(ValueError, match="clip a changed between rollout and learning"):
        examples(trajectories, clips)
