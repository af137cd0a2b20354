"""The toy world: films of moving shapes, sentences about two consecutive events, and confusers.

Everything follows from a seed. A confuser shows the same events as its base film but for one attribute of one of the
two events that the base's query names.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from vsr1.agent.prompts import SYSTEM_PROMPT, assistant_text, user_text

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
MOTIONS = ("left", "right", "up", "down", "circling", "pulsing")
_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
MIN_SECONDS, MAX_SECONDS, MIN_EVENT_SECONDS = 16, 60, 5
MOST_REFUSED = 10_000  # films in a row that may not join a corpus
Look = tuple[str, str, str]  # colour, shape, motion

_DOING = {
    "left": "moving left", "right": "moving right", "up": "moving up", "down": "moving down",
    "circling": "circling around", "pulsing": "growing and shrinking",
}  # fmt: skip
_TEMPLATES = (
    "a {0} and then a {1}",
    "first a {0}, followed by a {1}",
    "a {1} comes right after a {0}",
    "there is a {0} before a {1}",
    "we see a {0}; next comes a {1}",
    "after a {0} a {1} appears",
)


class ToyWorldError(ValueError):
    """A corpus that cannot be made; the message says which number to change."""


@dataclass(frozen=True)
class Event:
    """One shape doing one thing from `start` to `end`, whole seconds."""

    start: int
    end: int
    colour: str
    shape: str
    motion: str

    @property
    def look(self) -> Look:
        return self.colour, self.shape, self.motion


@dataclass(frozen=True)
class Film:
    """Events that follow each other from 0 to `duration` seconds; `seed` decides background and places."""

    video_id: str
    duration: int
    events: tuple[Event, ...]
    seed: int


@dataclass(frozen=True)
class Example:
    """A film with a query that names its events `first` and `first + 1`."""

    film: Film
    query: str
    first: int

    @property
    def queried(self) -> tuple[Event, Event]:
        return self.film.events[self.first], self.film.events[self.first + 1]

    @property
    def moment(self) -> tuple[int, int]:
        """Start and end in seconds: the union of the two named events."""
        return self.queried[0].start, self.queried[1].end


def describe(event: Event) -> str:
    return f"{event.colour} {event.shape} {_DOING[event.motion]}"


def make_corpus(split: str, videos: int, seed: int) -> list[Example]:
    """Films with one query each, base films and their confusers in turn.

    No two films show the same events, and no film but its own shows what a query names: every query has one answer.

    Raises:
        ToyWorldError: fewer than two videos, or more than there are different queries for.
    """
    if videos < 2:
        raise ToyWorldError(
            f"a corpus of {videos} video(s) has nothing to search; ask for at least 2 in split {split!r}"
        )
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    seen: set[tuple[Look, ...]] = set()
    shown: set[tuple[Look, Look]] = set()  # by some film, one event after the other
    queried: set[tuple[Look, Look]] = set()
    examples: list[Example] = []
    refused = 0
    while len(examples) < videos:
        number = len(examples)
        confuses = number % 2 == 1
        film = _confuser(examples[-1], rng) if confuses else _film(rng)
        looks = tuple(event.look for event in film.events)
        first = examples[-1].first if confuses else int(rng.integers(len(film.events) - 1))
        pairs = list(pairwise(looks))
        ambiguous = pairs[first] in shown or pairs.count(pairs[first]) > 1 or queried.intersection(pairs)
        if looks in seen or ambiguous or any(a == b for a, b in pairs):
            refused += 1
            if refused > MOST_REFUSED:
                raise ToyWorldError(f"no new film after {number} of {videos} in split {split!r}; ask for fewer videos")
            continue
        refused = 0
        seen.add(looks)
        shown.update(pairs)
        queried.add(pairs[first])
        film = replace(film, video_id=f"{split}_{number:04d}")
        examples.append(Example(film, _query(film.events[first : first + 2], rng), first))
    return examples


def vocabulary_texts(seed: int, count: int = 3000) -> Iterator[str]:
    """Texts in the language of the world, prompts and replies, to train a tokenizer on."""
    from vsr1.toy.teacher import reasoning

    for example in make_corpus("vocabulary", count, seed):
        events = list(example.film.events)
        yield user_text(example.query)
        yield assistant_text(reasoning(events, example.queried, True), True, (0.0, float(example.film.duration)))
        yield assistant_text(reasoning(events[:1], example.queried, False), False, None)
    yield from [SYSTEM_PROMPT] * 20


def _film(rng: np.random.Generator) -> Film:
    count = int(rng.integers(2, 5))
    duration = int(rng.integers(max(MIN_SECONDS, count * MIN_EVENT_SECONDS), MAX_SECONDS + 1))
    looks: list[Look] = []
    while len(looks) < count:
        look = (str(rng.choice(COLOURS)), str(rng.choice(SHAPES)), str(rng.choice(MOTIONS)))
        if not looks or look != looks[-1]:
            looks.append(look)
    spare = duration - count * MIN_EVENT_SECONDS
    cuts = np.sort(rng.integers(0, spare + 1, count - 1)) + MIN_EVENT_SECONDS * np.arange(1, count)
    bounds = [0, *[int(cut) for cut in cuts], duration]
    events = tuple(Event(bounds[i], bounds[i + 1], *looks[i]) for i in range(count))
    return Film("", duration, events, int(rng.integers(2**31)))


def _confuser(base: Example, rng: np.random.Generator) -> Film:
    at = base.first + int(rng.integers(2))
    name = str(rng.choice(list(_ATTRIBUTES)))
    event = base.film.events[at]
    other = str(rng.choice([value for value in _ATTRIBUTES[name] if value != getattr(event, name)]))
    events = list(base.film.events)
    change: dict[str, Any] = {name: other}
    events[at] = replace(event, **change)
    return Film("", base.film.duration, tuple(events), int(rng.integers(2**31)))


def _query(pair: tuple[Event, ...], rng: np.random.Generator) -> str:
    template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    return template.format(*[describe(event) for event in pair])
