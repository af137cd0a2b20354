"""Batches form, fill up and fail; every item gets its own outcome."""

import asyncio

import pytest

from vsr1.batching import Batcher


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
        batcher = Batcher(run, max_batch=100)
        assert await asyncio.gather(*(batcher.submit(i) for i in range(1, 6))) == [2, 4, 6, 8, 10]
        assert run.batches == [[1, 2, 3, 4, 5]]
        assert await batcher.submit(7) == 14  # the next batch starts afresh
        assert run.batches[1:] == [[7]]

    asyncio.run(story())


def test_a_batch_is_never_larger_than_allowed() -> None:
    async def story() -> None:
        run = Doubler()
        batcher = Batcher(run, max_batch=2)
        await asyncio.gather(*(batcher.submit(i) for i in range(1, 5)))
        assert run.batches == [[1, 2], [3, 4]]

    asyncio.run(story())


def test_the_next_batch_grows_while_two_run() -> None:
    async def story() -> None:
        run = Doubler()
        run.gate.clear()
        batcher = Batcher(run, max_batch=100)
        running = []
        for i in (1, 2):
            running.append(asyncio.create_task(batcher.submit(i)))
            await asyncio.sleep(0.02)
        rest = [asyncio.create_task(batcher.submit(i)) for i in (3, 4, 5)]
        await asyncio.sleep(0.02)
        assert run.batches == [[1], [2]]
        run.gate.set()
        assert await asyncio.gather(*running, *rest) == [2, 4, 6, 8, 10]
        assert run.batches == [[1], [2], [3, 4, 5]]

    asyncio.run(story())


def test_an_item_fails_alone_and_a_batch_fails_whole() -> None:
    async def story() -> None:
        batcher = Batcher(Doubler(), max_batch=3)
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
        batcher = Batcher(run, max_batch=1)
        running = [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
        await asyncio.sleep(0.02)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(3), 0.01)
        last = asyncio.create_task(batcher.submit(4))
        run.gate.set()
        assert await asyncio.gather(*running, last) == [2, 4, 8]
        assert run.batches == [[1], [2], [4]]

    asyncio.run(story())
