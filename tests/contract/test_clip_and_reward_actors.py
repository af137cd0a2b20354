"""The clip store and the reward worker on a real Ray."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from search_episodes import search_trajectory, search_turn

from actors.clips import ClipStore
from actors.rewards import RewardWorker
from vsr1.episode.rewards import scored
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.search.rewards import SearchRewards
from vsr1.settings.training import RewardConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

FRAMES = (4, 8, 8, 3)
CLIP_BYTES = 4 * 8 * 8 * 3 + 4 * 8


@dataclass
class StandInClip:
    video_id: str
    frames: np.ndarray  # uint8 [T, H, W, 3]
    timestamps: np.ndarray  # float64 [T]


class StandInFolder:
    def read(self, video_id: str) -> StandInClip:
        if not video_id.startswith("v"):
            raise FileNotFoundError(f"clip {video_id!r} is not in the folder")
        return StandInClip(video_id, np.full(FRAMES, int(video_id[1:]), np.uint8), np.arange(4.0))


def test_a_clip_is_read_once() -> None:
    store = ClipStore.options(num_cpus=0).remote(StandInFolder(), 10 * CLIP_BYTES)
    clips = ray.get([store.get.remote(video) for video in ("v1", "v2", "v1", "v1")])
    assert [clip.video_id for clip in clips] == ["v1", "v2", "v1", "v1"]
    assert clips[1].frames.max() == 2
    assert ray.get(store.stats.remote()) == {
        "loads": 2,
        "hits": 2,
        "evictions": 0,
        "clips": 2,
        "held_bytes": 2 * CLIP_BYTES,
        "budget_bytes": 10 * CLIP_BYTES,
    }
    ray.kill(store)


def test_the_budget_evicts_but_a_clip_at_hand_stays_readable() -> None:
    store = ClipStore.options(num_cpus=0).remote(StandInFolder(), 2 * CLIP_BYTES)
    held = ray.get(store.get.remote("v1"))
    ray.get([store.get.remote(video) for video in ("v2", "v3", "v2", "v3")])
    assert held.frames.max() == 1
    ray.get(store.get.remote("v1"))
    stats = ray.get(store.stats.remote())
    assert (stats["loads"], stats["hits"], stats["evictions"], stats["clips"]) == (4, 2, 2, 2)
    ray.kill(store)


def test_a_missing_clip_is_named_and_the_store_goes_on() -> None:
    store = ClipStore.options(num_cpus=0).remote(StandInFolder(), CLIP_BYTES)
    with pytest.raises(FileNotFoundError, match="clip 'nope' is not in the folder"):
        ray.get(store.get.remote("nope"))
    assert ray.get(store.get.remote("v5")).video_id == "v5"
    small = ClipStore.options(num_cpus=0).remote(StandInFolder(), CLIP_BYTES - 1)
    with pytest.raises(ValueError, match="more than the clip store's whole budget"):
        ray.get(small.get.remote("v5"))
    ray.kill(store)
    ray.kill(small)


def test_the_reward_worker_scores_as_the_library_does() -> None:
    text = "<think>seen</think><answer>not_matched</answer>"
    turn = search_turn(
        1, "w", "not_matched", text=text, latents=np.ones((8, 4), np.float32), gt_score_before=0.5,
        gt_score_after=0.6, negative_scores_before=[0.4], negative_scores_after=[0.4],
    )  # fmt: skip
    whole = search_trajectory("q1", [turn])
    empty = search_trajectory("q2", [], sample=1)
    worker = RewardWorker.options(num_cpus=0).remote(SearchRewards(RewardConfig()))
    [result] = ray.get(worker.score.remote([whole]))
    expected = scored(whole, SearchRewards(RewardConfig()))
    assert (result.terms, result.reward) == (expected.terms, expected.reward)
    assert (result.turn_rewards, result.turn_latent_rewards) == (expected.turn_rewards, expected.turn_latent_rewards)
    assert result.id.prompt == "q1" and result.last.latents["query"].shape == (8, 4)
    failure, again = ray.get(worker.score.remote([empty, whole]))
    assert isinstance(failure, FailedSample)
    assert (failure.id, failure.reason) == (SampleId("q2", 1), "RewardError")
    assert "has no turns" in failure.message
    assert again.reward == expected.reward
    ray.kill(worker)
