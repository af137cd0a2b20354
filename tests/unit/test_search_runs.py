"""Searches that readers leave and come back to, without a server: what is kept, for how long, and for whom."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from pipelines.serve.gateway.events import Event, EventLog
from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.runs import SearchRun, SearchRuns
from vsr1.settings.serving import ServeConfig

RESULT = {
    "status": "not_found",
    "turns": [],
    "usage": dict.fromkeys(["prompt_tokens", "text_tokens", "latent_tokens"], 1),
}
RESULT["usage"]["seconds"] = 0.1
DONE = {"type": "done", "result": RESULT}


class Stub:
    """Events that come when the test says so."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.closed = False

    def put(self, *events: Event | Exception) -> None:
        for event in events:
            self.queue.put_nowait(event)

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            while True:
                event = await self.queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True


def deltas(*numbers: int) -> list[Event]:
    return [{"type": "delta", "turn": number} for number in numbers]


async def begin(runs: SearchRuns, stub: Stub, name: str = "a", **more: Any) -> SearchRun:
    return await runs.begin(name, "tests", stub.events(), **{"resumable": True} | more)


def settings(**values: Any) -> ServeConfig:
    return ServeConfig(**{"resume_grace_s": 0.05} | values)


def test_a_reader_that_comes_back_gets_the_rest_once() -> None:
    async def play() -> None:
        runs, stub = SearchRuns(settings(resume_grace_s=10)), Stub()
        stub.put(*deltas(1, 2))
        run = await begin(runs, stub)
        reader = run.read()
        assert [(await anext(reader))[0] for _ in range(2)] == [1, 2]
        await reader.aclose()
        stub.put(*deltas(3, 4), DONE)
        rest = [(number, event["type"]) async for number, event in runs.get("a", "tests").read(2)]
        assert rest == [(3, "delta"), (4, "delta"), (5, "done")]
        assert [number async for number, _ in runs.get("a", "tests").read()] == [1, 2, 3, 4, 5]
        assert stub.closed and not run.cancelled

    asyncio.run(play())


@pytest.mark.parametrize("read_first", [True, False])
def test_a_search_without_a_reader_ends_after_the_grace_time(read_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serve.gateway.runs.LEAST_GRACE_S", 0.05)

    async def play() -> None:
        runs, stub = SearchRuns(settings()), Stub()
        stub.put(*deltas(1))
        run = await begin(runs, stub)
        if read_first:
            reader = run.read()
            await anext(reader)
            await asyncio.sleep(0.1)
            assert not stub.closed
            await reader.aclose()
        await asyncio.sleep(0.15)
        assert stub.closed and run.events[-1]["code"] == "search_gone"
        with pytest.raises(ApiError) as gone:
            runs.get("a", "tests")
        assert (gone.value.status, gone.value.code) == (410, "search_gone")

    asyncio.run(play())


def test_a_search_belongs_to_its_key_and_is_kept_for_a_while() -> None:
    async def play() -> None:
        runs = SearchRuns(settings(resume_keep=2, resume_keep_s=0.2))
        for name in ("a", "b", "c"):
            stub = Stub()
            stub.put(*deltas(1), DONE)
            await (await begin(runs, stub, name)).result()
        for name, owner in (("a", "tests"), ("b", "others"), ("b", ""), ("nowhere", "tests")):
            with pytest.raises(ApiError) as unknown:
                runs.get(name, owner)
            assert (unknown.value.status, unknown.value.code) == (404, "unknown_search")
        assert runs.get("b", "tests").over and runs.get("c", "tests").over
        await asyncio.sleep(0.3)
        with pytest.raises(ApiError, match="search again"):
            runs.get("c", "tests")
        assert not runs._ended

    asyncio.run(play())


def test_a_refusal_keeps_its_status_and_a_fault_ends_the_stream() -> None:
    async def play() -> None:
        runs, refused, broken = SearchRuns(settings()), Stub(), Stub()
        refused.put(ApiError("busy", "later", 2))
        with pytest.raises(ApiError, match="later") as busy:
            await begin(runs, refused)
        assert busy.value.retry_after_s == 2 and not (runs._running or runs._ended)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # it is logged there
        broken.put(*deltas(1), KeyError("a fault of ours"))
        run = await begin(runs, broken, "b")
        assert [event["type"] async for _, event in run.read()] == ["delta", "error"]
        assert run.events[-1]["code"] == "internal_error" and "fault of ours" not in str(run.events)

    asyncio.run(play())


def test_an_answer_in_one_piece_is_cancelled_with_its_caller() -> None:
    async def play() -> None:
        runs, stub = SearchRuns(settings(resume_grace_s=10)), Stub()
        stub.put(*deltas(1))
        run = await begin(runs, stub, resumable=False)
        caller = asyncio.create_task(run.result())
        await asyncio.sleep(0.05)
        caller.cancel()
        await asyncio.wait([caller])
        await asyncio.sleep(0.05)
        assert stub.closed and not (runs._running or runs._ended)

    asyncio.run(play())


def test_a_server_that_stops_takes_nothing_new_and_waits_for_what_it_has() -> None:
    async def play() -> None:
        runs, stub = SearchRuns(settings(resume_grace_s=10)), Stub()
        stub.put(*deltas(1))
        run = await begin(runs, stub)
        draining = asyncio.create_task(runs.drain())
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await begin(runs, Stub(), "b")
        assert (refused.value.status, refused.value.code) == (503, "stopping") and refused.value.retry_after_s == 60
        await asyncio.sleep(0.15)
        assert not draining.done()
        stub.put(DONE)
        await draining
        assert run.over and not run.failure

    asyncio.run(play())


def test_every_reader_gets_every_event_at_its_own_pace() -> None:
    async def play() -> None:
        log = EventLog()
        early = log.read()
        coming = asyncio.create_task(anext(early))
        await asyncio.sleep(0)
        for event in deltas(1, 2, 3):
            log.add(event)
        assert await coming == (1, deltas(1)[0])
        log.close()
        assert [number async for number, _ in early] == [2, 3]
        assert [number async for number, _ in log.read(1)] == [2, 3]
        assert [number async for number, _ in log.read(3)] == []

    asyncio.run(play())
