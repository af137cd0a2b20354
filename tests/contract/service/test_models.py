"""Several served models, new weights while searches run, and parts that are killed under load."""

import asyncio
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import ray
from ray import serve

from bench.load import load, trace
from pipelines.serve.library.library import node_id
from pipelines.serve.running import ServiceError, replica_pids
from pipelines.serve.swap import swap_weights
from vsr1.model.checkpoint import CheckpointError

from .served import AT_ONCE, CORPUS, Answer, Served

pytestmark = pytest.mark.timeout(500)


def test_a_search_names_its_model(served: Served) -> None:
    differs = [query for query in served.queries if served.traces["first"][query] != served.traces["second"][query]]
    assert len(differs) > len(served.queries) // 2
    query = differs[0]
    for model, expected in ((None, "first"), ("first", "first"), ("second", "second")):
        status, answer = served.search(query, model=model)
        assert (status, answer["model"], answer["weight_version"]) == (200, expected, 0)
        assert trace(answer) == served.traces[expected][query]
    status, answer = served.search(query, model="third")
    assert (status, answer["error"]["code"]) == (404, "unknown_model")
    assert "first, second" in answer["error"]["message"]
    assert httpx2.get(f"{served.url}/readyz", timeout=60).json()["models"] == {"first": 1, "second": 1}


def test_what_does_not_fit_is_refused_and_the_old_weights_stay(served: Served, policy_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot replace.*tokenizer\.json differs"):
        swap_weights("second", policy_folder)
    with pytest.raises(CheckpointError, match="does not fit the policy"):
        swap_weights("second", served.config.model.embedder)
    with pytest.raises(CheckpointError, match="does not exist"):
        swap_weights("second", served.other / "nowhere")
    with pytest.raises(ServiceError, match="'third' is not served; there are first, second"):
        swap_weights("third", served.other)
    query = served.queries[0]
    _, answer = served.search(query, model="second")
    assert (answer["weight_version"], trace(answer)) == (0, served.traces["second"][query])


def test_new_weights_come_under_load_and_no_search_is_dropped_or_mixed(served: Served) -> None:
    versions: list[int] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked: list[tuple[str, Future[Answer]]] = []

        def ask(count: int) -> None:
            for _ in range(count):
                query = served.queries[len(asked) % len(served.queries)]
                asked.append((query, pool.submit(served.search, query, model="first")))

        ask(2 * AT_ONCE)
        time.sleep(0.5)
        assert swap_weights("first", served.other) == 1
        ask(AT_ONCE)
        for query, coming in asked:
            status, answer = coming.result()
            assert status == 200, answer
            versions.append(answer["weight_version"])
            own = served.traces[("first", "second")[answer["weight_version"]]][query]
            assert_same(trace(answer), own)
    assert versions[0] == 0 and set(versions[-AT_ONCE:]) == {1}
    served.traces["first"] = served.traces["second"]


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    for turn, other in zip(answer["turns"], expected["turns"], strict=False):
        assert (turn["video_id"], turn["reasoning"]) == (other["video_id"], other["reasoning"]), answer["query"]
    assert answer == expected


def under_load(served: Served, kill: Any) -> list[Answer]:
    """Answers of searches of which the first half ran when `kill` was called; afterwards the service must recover."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(served.search, query) for query in (served.queries * AT_ONCE)[: 2 * AT_ONCE]]
        time.sleep(0.7)
        kill()
        answers = [coming.result() for coming in asked]
    for status, answer in answers:
        assert status == 200 or answer["error"]["code"] in ("agent_failed", "busy"), answer
        if status == 200:
            assert_same(trace(answer), served.traces["first"][answer["query"]])
    deadline = time.monotonic() + 90
    while not (served.ready() and served.search(served.queries[0])[0] == 200):
        assert time.monotonic() < deadline, "the service did not recover"
        time.sleep(0.5)
    return answers


def test_more_than_it_takes_is_told_to_come_again(served: Served) -> None:
    """With 8 that run and 8 that wait; 24 clients get their answers in the end, and some of them another one.

    All 24 may come between two looks of Ray Serve at its queue and be let in; it is full when the first comes again.
    """
    bodies = [
        {"query": query, "model": "second", "corpus": CORPUS} for query in (served.queries * AT_ONCE)[: 4 * AT_ONCE]
    ]
    tally = asyncio.run(load(served.url, bodies, 3 * AT_ONCE, served.traces["second"]))
    assert tally.refused > 0
    assert (len(tally.seconds), dict(tally.errors), tally.wrong) == (len(bodies), {}, 0)


def test_a_reader_that_goes_away_frees_the_place_of_its_search(served: Served) -> None:
    """Twice as many streams as an agent plays at one time are left after their first event; the next search runs."""
    body = {"query": served.queries[0], "model": "second", "corpus": CORPUS, "stream": True}
    for _ in range(2 * served.config.serve.searches_a_replica):
        with httpx2.stream("POST", f"{served.url}/v1/search", json=body, timeout=120) as stream:
            assert next(iter(httpx2.EventSource(stream))).id == "1"
    status, answer = served.search(served.queries[0], model="second")
    assert status == 200 and trace(answer) == served.traces["second"][served.queries[0]]
    swap_weights("second", served.other)  # which waits until no search is inside


@pytest.mark.chaos
def test_a_killed_shard_costs_no_search(served: Served) -> None:
    handle = serve.get_deployment_handle("library", "vsr1")
    retrieval, _ = handle.parts.remote(node_id()).result()[CORPUS]
    [first, *_] = ray.get(retrieval.shards.remote()).values()
    answers = under_load(served, lambda: ray.kill(first, no_restart=False))
    assert [status for status, _ in answers] == [200] * len(answers)


@pytest.mark.chaos
def test_a_killed_retrieval_service_comes_back(served: Served) -> None:
    handle = serve.get_deployment_handle("library", "vsr1")
    retrieval, _ = handle.parts.remote(node_id()).result()[CORPUS]
    under_load(served, lambda: ray.kill(retrieval, no_restart=False))


@pytest.fixture
def swapped(served: Served) -> Served:
    """The service after a swap of the first model's weights, which an earlier test may have made."""
    if served.search(served.queries[0], model="first")[1]["weight_version"] == 0:
        assert swap_weights("first", served.other) == 1
        served.traces["first"] = served.traces["second"]
    return served


@pytest.mark.chaos
@pytest.mark.parametrize("part", ["agent-first", "library"])
def test_a_killed_replica_comes_back_with_the_newest_weights(swapped: Served, part: str) -> None:
    served = swapped
    [pid] = replica_pids("vsr1")[part]
    under_load(served, lambda: os.kill(pid, signal.SIGKILL))
    status, answer = served.search(served.queries[0])
    assert (status, answer["weight_version"]) == (200, 1)
    assert replica_pids("vsr1")[part] != [pid]
