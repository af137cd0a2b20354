"""The toy world: seeded, films tiled by events, one answer a query, confusers one attribute away, unseen splits."""

import re
from collections.abc import Iterable
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr1.toy import world
from vsr1.toy.world import (
    COLOURS,
    FAMILY,
    MOTIONS,
    SHAPES,
    Example,
    Look,
    ToyWorldError,
    find_queried,
    is_unseen,
    make_corpus,
    reasoning,
)

NAMED = re.compile(
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) that "
    r"(is moving (to the left|to the right|up the screen|down the screen)|keeps growing and shrinking)"
)


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
    for number, confuser in enumerate(corpus):
        if number % FAMILY == 0:
            continue
        base = corpus[number - number % FAMILY]
        changed = [
            (event, name)
            for event, (a, b) in enumerate(zip(base.film.events, confuser.film.events, strict=True))
            for name, old, new in zip(("colour", "shape", "motion"), a.look, b.look, strict=True)
            if old != new
        ]
        assert len(changed) == 1
        assert changed[0][0] in (base.first, base.first + 1)
        assert (base.film.seed, base.query) != (confuser.film.seed, confuser.query)
        assert [event.start for event in base.film.events] == [event.start for event in confuser.film.events]


def test_the_hard_split_has_more_confusers_of_one_base() -> None:
    corpus = make_corpus(world.HARD, 2 * world.HARD_FAMILY, 3)
    for start in (0, world.HARD_FAMILY):
        base, *confusers = corpus[start : start + world.HARD_FAMILY]
        for other in confusers:
            pairs = zip(base.film.events, other.film.events, strict=True)
            changed = [(a.look, b.look) for a, b in pairs if a.look != b.look]
            assert len(changed) == 1 and sum(a != b for a, b in zip(*changed[0], strict=True)) == 1
    assert world.HARD in world.UNSEEN_SPLITS


def test_a_seed_and_a_split_decide_the_corpus() -> None:
    assert make_corpus("train", 12, 3) == make_corpus("train", 12, 3)
    assert make_corpus("train", 12, 3) != make_corpus("train", 12, 4)
    train = {films_looks(example) for example in make_corpus("train", 96, 0)}
    assert not train & {films_looks(example) for example in make_corpus("test", 48, 0)}


def test_a_fifth_of_all_looks_is_unseen() -> None:
    unseen = [look for look in product(COLOURS, SHAPES, MOTIONS) if is_unseen(look)]
    assert len({(colour, shape) for colour, shape, _ in unseen}) == len(unseen) == 30  # of 150, one motion a pair
    assert is_unseen(("red", "circle", "left")) and not is_unseen(("red", "circle", "right"))
    assert is_unseen(("green", "circle", "pulsing")) and not is_unseen(("green", "circle", "left"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_for_evaluation_shows_what_no_other_does(split: str) -> None:
    """Looks of both kinds, so that what was never seen is told apart by the unseen ones; new sentence forms only."""
    corpus, others = make_corpus(split, 1500, 0), [*make_corpus("train", 1500, 0), *make_corpus("vocabulary", 1500, 0)]
    everything = set(product(COLOURS, SHAPES, MOTIONS))
    assert all_looks(corpus) == everything
    assert all_looks(others) == {look for look in everything if not is_unseen(look)}
    assert (len(forms(corpus)), len(forms(others))) == (15, 45)  # of the 60 forms
    assert not forms(corpus) & forms(others)


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


def films_looks(example: Example) -> tuple[Look, ...]:
    return tuple(event.look for event in example.film.events)


def all_looks(corpus: Iterable[Example]) -> set[Look]:
    return {look for example in corpus for look in films_looks(example)}


def forms(corpus: Iterable[Example]) -> set[str]:
    """Queries with their events blanked out."""
    found = {NAMED.subn("EVENT", example.query) for example in corpus}
    assert {count for _, count in found} == {2}
    return {form for form, _ in found}
