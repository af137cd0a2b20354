"""Episodes of a rollout worker that look at one clip share it, as they do searches that are under way."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.rollout import RolloutWorkerActor
from vsr1.config import Config
from vsr1.retrieval.request import SearchRequest
from vsr1.video.clips import Clip, ClipError

FRAMES = np.zeros((2, 32, 32, 3), np.uint8)


class Method:
    """What a handle has for a method of its actor."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.remote = answer

    def options(self, **options: Any) -> Method:
        return self


class Store:
    """Counts what it sends; `gone` cannot be read."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.get = Method(self._get)

    async def _get(self, video_id: str) -> Clip:
        self.sent.append(video_id)
        await asyncio.sleep(0.01)
        if video_id == "gone":
            raise ClipError("clip 'gone' is missing")
        return Clip.make(video_id, FRAMES, np.arange(2.0))


def worker(store: Store) -> RolloutWorkerActor:
    actor = RolloutWorkerActor(Config(), {})
    actor._clips = {"train": store}
    return actor


def test_a_group_gets_one_copy_for_as_long_as_one_of_them_looks_at_it() -> None:
    async def play() -> None:
        store = Store()
        actor = worker(store)
        clips: list[Any] = await asyncio.gather(*(actor._clip("train", "a") for _ in range(8)))
        clips.append(await actor._clip("train", "a"))
        assert len({id(clip) for clip in clips}) == 1
        assert store.sent == ["a"]
        clips.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert not actor._shown
        await actor._clip("train", "a")
        assert store.sent == ["a", "a"]

    asyncio.run(play())


def test_an_episode_that_is_cancelled_leaves_the_clip_to_the_others() -> None:
    async def play() -> None:
        store = Store()
        actor = worker(store)
        first, second = (asyncio.ensure_future(actor._clip("train", "a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).video_id == "a"
        assert store.sent == ["a"]

    asyncio.run(play())


def test_a_clip_that_cannot_be_read_is_asked_for_again() -> None:
    async def play() -> None:
        store = Store()
        actor = worker(store)
        for _ in range(2):
            with pytest.raises(ClipError, match="gone"):
                await actor._clip("train", "gone")
        assert store.sent == ["gone", "gone"]

    asyncio.run(play())


def test_samples_of_a_group_share_their_first_search_and_no_refined_one() -> None:
    asked: list[SearchRequest] = []

    async def search(request: SearchRequest) -> str:
        asked.append(request)
        await asyncio.sleep(0.01)
        return f"answer {len(asked)}"

    async def play() -> None:
        actor = RolloutWorkerActor(Config(), {"train": SimpleNamespace(search=Method(search))})
        same = [SearchRequest(query="a dog", exclude=["x"]) for _ in range(4)]
        soft = [SearchRequest(query="a dog", soft_tokens=np.zeros((1, 4), np.float32)) for _ in range(2)]
        other = SearchRequest(query="a dog")
        answers = await asyncio.gather(*(actor._search("train", request) for request in [*same, *soft, other]))
        assert len(set(answers[:4])) == 1
        assert len(asked) == 4

    asyncio.run(play())
