"""The gate in front of weights: requests or one change, and nobody after a change that failed."""

import asyncio

import pytest

from vsr1.engine.gate import Gate, MixedWeightsError, PushError


class Play:
    """A gate, and what happened in front of it, in order."""

    def __init__(self) -> None:
        self.gate, self.events, self.finish = Gate(), list[str](), asyncio.Event()
        self.changes = 0  # inside

    async def request(self, name: str, until: asyncio.Event | None = None) -> None:
        async with self.gate.enter():
            self.events.append(f"{name} in")
            await (until or self.finish).wait()
            self.events.append(f"{name} out")

    async def change(self, name: str, error: Exception | None = None) -> None:
        async with self.gate.shut():
            assert self.gate.inside == self.changes == 0
            self.changes += 1
            self.events.append(name)
            await asyncio.sleep(0)
            self.changes -= 1
            if error is not None:
                raise error


async def steps() -> None:
    """Let every task come as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_change_waits_for_those_inside_and_newcomers_wait_for_it() -> None:
    async def scene() -> list[str]:
        play = Play()
        first = asyncio.create_task(play.request("first"))
        await steps()
        changing = asyncio.create_task(play.change("change"))
        await steps()
        late, cancelled = (asyncio.create_task(play.request(name)) for name in ("late", "cancelled"))
        await steps()
        assert play.events == ["first in"]
        cancelled.cancel()
        play.finish.set()
        await asyncio.gather(first, changing, late)
        assert play.gate.inside == 0
        return play.events

    assert asyncio.run(scene()) == ["first in", "first out", "change", "late in", "late out"]


def test_two_changes_are_never_inside_at_one_time() -> None:
    async def scene() -> list[str]:
        play = Play()
        first = asyncio.create_task(play.request("first"))
        await steps()
        changes = [asyncio.create_task(play.change(name)) for name in ("change 1", "change 2")]
        await steps()
        late = asyncio.create_task(play.request("late"))
        await steps()
        play.finish.set()
        await asyncio.gather(first, *changes, late)
        return play.events

    events = asyncio.run(scene())
    assert events[:3] == ["first in", "first out", "change 1"]
    assert sorted(events[3:]) == ["change 2", "late in", "late out"]  # whoever comes first


def test_after_a_failed_change_it_refuses_those_who_wait_and_those_who_come() -> None:
    async def scene() -> list[str]:
        play = Play()
        first = asyncio.create_task(play.request("first"))
        await steps()
        changing = asyncio.create_task(play.change("change", PushError("2 of 9 tensors did not arrive")))
        await steps()
        waits = asyncio.create_task(play.request("waits"))
        await steps()
        play.finish.set()
        with pytest.raises(PushError):
            await changing
        wanted = "mixture of weights.*push all weights again, or restart.*PushError: 2 of 9 tensors did not arrive"
        for late in (waits, asyncio.create_task(play.request("comes"))):
            with pytest.raises(MixedWeightsError, match=wanted):
                await late
        await first
        assert play.gate.inside == 0
        return play.events

    assert asyncio.run(scene()) == ["first in", "first out", "change"]


def test_a_later_change_that_succeeds_opens_it_again() -> None:
    async def scene() -> list[str]:
        play = Play()
        play.finish.set()
        for name in ("change 1", "change 2"):
            with pytest.raises(PushError):
                await play.change(name, PushError("again"))
        waits_for = asyncio.create_task(play.change("change 3"))
        await asyncio.sleep(0)
        await play.request("request")  # came while the third change ran
        await waits_for
        return play.events

    assert asyncio.run(scene()) == ["change 1", "change 2", "change 3", "request in", "request out"]


def test_a_change_that_is_cancelled_while_it_runs_leaves_it_shut() -> None:
    async def scene() -> None:
        play = Play()

        async def hang() -> None:
            async with play.gate.shut():
                await asyncio.Event().wait()

        changing = asyncio.create_task(hang())
        await steps()
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        with pytest.raises(MixedWeightsError):
            await play.request("late")

    asyncio.run(scene())


def test_a_change_that_is_cancelled_while_it_waits_has_changed_nothing() -> None:
    async def scene() -> list[str]:
        play = Play()
        first = asyncio.create_task(play.request("first"))
        await steps()
        changing = asyncio.create_task(play.change("change"))
        await steps()
        late = asyncio.create_task(play.request("late"))
        await steps()
        changing.cancel()
        await steps()
        assert play.events == ["first in", "late in"]
        play.finish.set()
        await asyncio.gather(first, late)
        return play.events

    assert asyncio.run(scene()) == ["first in", "late in", "first out", "late out"]


def test_a_request_that_is_cancelled_twice_leaves() -> None:
    async def scene() -> None:
        play = Play()
        request = asyncio.create_task(play.request("request"))
        await steps()
        request.cancel()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert play.gate.inside == 0
        await play.change("change")

    asyncio.run(scene())
