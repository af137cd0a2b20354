"""Batches form, fill up and fail; every item gets its own outcome."""

import asyncio

import pytest

from vsr1.retrieval.batching import Batcher


class Doubler:
    """Doubles numbers, notes its batches; a negative number fails alone, zero fails its whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: list[int]) -> list[int | BaseException]:
        self.batches.append(items)
        await self.gate.wait()
        if 0 in items:
            raise KeyError("whole batch")
        return [ValueError(f"item {item}") if item < 0 else 2 * item for item in items]


def test_items_that_arrive_together_share_a_call() -> None:
    async def story() -> None:
        run = Doubler()
        batcher = Batcher(run, max_batch=100, wait_s=0.02)
        assert await asyncio.gather(*(batcher.submit(i) for i in range(1, 6))) == [2, 4, 6, 8, 10]
        assert run.batches == [[1, 2, 3, 4, 5]]
        assert await batcher.submit(7) == 14  # the next batch starts afresh
        assert run.batches[1:] == [[7]]

    asyncio.run(story())


def test_a_full_batch_does_not_wait() -> None:
    async def story() -> None:
        run = Doubler()
        batcher = Batcher(run, max_batch=2, wait_s=60.0)
        async with asyncio.timeout(5):
            await asyncio.gather(*(batcher.submit(i) for i in range(1, 5)))
        assert run.batches == [[1, 2], [3, 4]]

    asyncio.run(story())


def test_a_batch_grows_while_the_one_before_runs() -> None:
    async def story() -> None:
        run = Doubler()
        run.gate.clear()
        batcher = Batcher(run, max_batch=100, wait_s=0.0)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher.submit(i)) for i in (2, 3, 4)]
        await asyncio.sleep(0.02)
        run.gate.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
        assert run.batches == [[1], [2, 3, 4]]

    asyncio.run(story())


def test_an_item_fails_alone_and_a_batch_fails_whole() -> None:
    async def story() -> None:
        batcher = Batcher(Doubler(), max_batch=3, wait_s=0.02)
        one, bad, three = await asyncio.gather(*(batcher.submit(i) for i in (1, -2, 3)), return_exceptions=True)
        assert (one, three) == (2, 6)
        assert isinstance(bad, ValueError)
        outcomes = await asyncio.gather(*(batcher.submit(i) for i in (1, 0)), return_exceptions=True)
        assert all(isinstance(outcome, KeyError) for outcome in outcomes)
        assert await batcher.submit(4) == 8  # it goes on

    asyncio.run(story())


def test_a_caller_that_gave_up_is_not_run() -> None:
    async def story() -> None:
        run = Doubler()
        run.gate.clear()
        batcher = Batcher(run, max_batch=100, wait_s=0.0)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(2), 0.01)
        third = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.02)
        run.gate.set()
        assert await asyncio.gather(first, third) == [2, 6]
        assert run.batches == [[1], [3]]

    asyncio.run(story())
