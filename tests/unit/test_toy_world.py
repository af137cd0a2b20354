"""The toy world: seeded, its films tiled by events, its queries with one answer, its confusers one attribute away."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1.toy import world
from vsr1.toy.teacher import find_queried, reasoning
from vsr1.toy.world import Example, ToyWorldError, make_corpus


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), videos=st.integers(2, 60))
def test_films_are_tiled_and_each_query_has_one_answer(seed: int, videos: int) -> None:
    corpus = make_corpus("train", videos, seed)
    assert len({example.film.video_id for example in corpus}) == videos
    assert len({example.query for example in corpus}) == videos
    for example in corpus:
        film = example.film
        assert world.MIN_SECONDS <= film.duration <= world.MAX_SECONDS
        assert 2 <= len(film.events) <= 4
        assert (film.events[0].start, film.events[-1].end) == (0, film.duration)
        assert all(before.end == after.start for before, after in pairwise(film.events))
        assert all(before.look != after.look for before, after in pairwise(film.events))
        assert all(event.end - event.start >= world.MIN_EVENT_SECONDS for event in film.events)
        answers = [other for other in corpus if find_queried(other.film.events, example.queried)]
        assert answers == [example]
        assert find_queried(film.events, example.queried) == example.moment


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_confuser_is_one_attribute_of_a_queried_event_away(seed: int) -> None:
    corpus = make_corpus("train", 20, seed)
    for base, confuser in zip(corpus[::2], corpus[1::2], strict=True):
        changed = [
            (number, name)
            for number, (a, b) in enumerate(zip(base.film.events, confuser.film.events, strict=True))
            for name, old, new in zip(("colour", "shape", "motion"), a.look, b.look, strict=True)
            if old != new
        ]
        assert len(changed) == 1
        assert changed[0][0] in (base.first, base.first + 1)
        assert base.film.seed != confuser.film.seed


def test_a_seed_and_a_split_decide_the_corpus() -> None:
    assert make_corpus("train", 12, 3) == make_corpus("train", 12, 3)
    assert make_corpus("train", 12, 3) != make_corpus("train", 12, 4)
    train = {looks(example) for example in make_corpus("train", 96, 0)}
    assert not train & {looks(example) for example in make_corpus("test", 48, 0)}


@pytest.mark.parametrize("videos", [-1, 0, 1])
def test_nothing_to_search_is_an_error(videos: int) -> None:
    with pytest.raises(ToyWorldError, match="'test'"):
        make_corpus("test", videos, 0)


def test_a_world_that_is_full_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "MOST_REFUSED", 200)
    monkeypatch.setattr(world, "COLOURS", ("red",))
    monkeypatch.setattr(world, "SHAPES", ("ring",))
    monkeypatch.setattr(world, "_ATTRIBUTES", {"motion": world.MOTIONS})
    with pytest.raises(ToyWorldError, match="ask for fewer"):
        make_corpus("train", 100, 0)


def test_the_trace_names_every_event_and_judges() -> None:
    example = make_corpus("train", 2, 0)[0]
    found = reasoning(example.film.events, example.queried, True)
    for event in example.film.events:
        assert f"{event.start} {world.describe(event)}" in found
    assert found != reasoning(example.film.events, example.queried, False)
    assert len(found.split()) < 60


def looks(example: Example) -> tuple[world.Look, ...]:
    return tuple(event.look for event in example.film.events)
