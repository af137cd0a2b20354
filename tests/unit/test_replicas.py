"""One answer a call from replicas that die, hang and come back."""

import asyncio

import pytest

from vsr1.retrieval.replicas import HEDGE_SAMPLES, ReplicaSet, ShardUnavailableError


class Replica:
    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.dead = False
        self.asked = self.cancelled = 0

    async def answer(self) -> str:
        self.asked += 1
        if self.dead:
            raise ShardUnavailableError(self.name, "dead")
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.name

    async def recover(self) -> None:
        while self.dead or self.seconds > 1:
            await asyncio.sleep(0.01)


def trio(timeout_s: float = 5.0) -> tuple[ReplicaSet[Replica], list[Replica]]:
    replicas = [Replica(f"r{i}") for i in range(3)]
    return ReplicaSet("shard 0", replicas, timeout_s=timeout_s), replicas


async def call(shard: ReplicaSet[Replica]) -> str:
    return await shard.call(lambda replica: replica.answer())


def test_calls_are_spread() -> None:
    async def story() -> None:
        shard, replicas = trio()
        for replica in replicas:
            replica.seconds = 0.02
        await asyncio.gather(*(call(shard) for _ in range(9)))
        assert [replica.asked for replica in replicas] == [3, 3, 3]

    asyncio.run(story())


def test_a_dead_replica_is_passed_over_until_it_recovers() -> None:
    async def story() -> None:
        shard, replicas = trio()
        replicas[0].dead = True
        assert await call(shard) == "r1"
        assert shard.down == ["r0"]
        for _ in range(5):
            await call(shard)
        assert replicas[0].asked == 1
        replicas[0].dead = False
        while shard.down:
            await asyncio.sleep(0.01)
        assert await call(shard) == "r0"

    asyncio.run(story())


def test_with_no_replica_up_it_fails_at_once_and_says_when_one_is_back() -> None:
    async def story() -> None:
        shard, replicas = trio()
        for replica in replicas:
            replica.dead = True
        with pytest.raises(ShardUnavailableError, match=r"shard 0 is not available \(r0 .*; r1 .*; r2 ") as caught:
            await call(shard)
        assert caught.value.shard == "shard 0"
        assert not shard.recovered.is_set()
        with pytest.raises(ShardUnavailableError):
            await call(shard)
        assert [replica.asked for replica in replicas] == [1, 1, 1]
        replicas[2].dead = False
        await asyncio.wait_for(shard.recovered.wait(), 60)
        assert await call(shard) == "r2"

    asyncio.run(story())


def test_a_late_replica_is_hedged_and_the_first_answer_counts() -> None:
    async def story() -> None:
        shard, replicas = trio()
        for _ in range(HEDGE_SAMPLES):
            await call(shard)
        replicas[0].seconds = 60
        assert await call(shard) == "r1"
        await asyncio.sleep(0)
        assert (shard.hedged, replicas[0].cancelled) == (1, 1)
        assert shard.down == []  # late is not down

    asyncio.run(story())


def test_a_replica_that_hangs_counts_as_down() -> None:
    async def story() -> None:
        shard, replicas = trio(timeout_s=0.05)
        for replica in replicas:
            replica.seconds = 60
        with pytest.raises(ShardUnavailableError, match=r"r0 gave no answer within 0\.05 s"):
            await call(shard)
        replicas[1].seconds = 0
        await asyncio.wait_for(shard.recovered.wait(), 60)
        assert await call(shard) == "r1"

    asyncio.run(story())


def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    async def story() -> None:
        shard, replicas = trio()
        replicas[0].seconds = 0.5
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(shard), 0.02)
        await asyncio.sleep(0)
        assert replicas[0].cancelled == 1
        replicas[0].seconds = 0
        assert await call(shard) == "r0"

    asyncio.run(story())
