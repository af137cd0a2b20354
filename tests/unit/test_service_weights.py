"""Weights change between searches only."""

import asyncio

from pipelines.serve.agents.weights import Turnstile


def test_a_change_waits_for_those_inside_and_newcomers_wait_for_it() -> None:
    async def play() -> list[str]:
        gate, told = Turnstile(), list[str]()
        finish = asyncio.Event()

        async def search(name: str) -> None:
            async with gate.search():
                told.append(f"{name} in")
                await finish.wait()
                told.append(f"{name} out")

        async def change() -> None:
            async with gate.change():
                assert gate.inside == 0
                told.append("change")

        first = asyncio.create_task(search("first"))
        await asyncio.sleep(0)
        changing = asyncio.create_task(change())
        await asyncio.sleep(0)
        late = asyncio.create_task(search("late"))
        gone = asyncio.create_task(search("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        finish.set()
        await asyncio.gather(first, changing, late)
        assert gate.inside == 0
        return told

    assert asyncio.run(play()) == ["first in", "first out", "change", "late in", "late out"]
