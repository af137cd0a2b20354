"""The toy world: films of moving shapes, sentences about two consecutive events, and confusers.

Everything follows from a seed. Films come in families: a base film, and confusers that show the same events but for one
attribute of one of the two events that the base's query names; larger families make a harder search. Every film has a
query of its own. Some looks and some sentence forms appear in no split that is trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from vsr1.formats.atomic import read_lines

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
MOTIONS = ("left", "right", "up", "down", "pulsing")
_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
MIN_SECONDS, MAX_SECONDS, MIN_EVENT_SECONDS = 16, 48, 5
FAMILY = 4  # films that differ from the first of them in one attribute each
HARD, HARD_FAMILY = "hard", 10  # the split with more confusers
UNSEEN_SPLITS = ("val", "test", HARD)  # these hold looks and sentence forms that no other split has
MOST_REFUSED = 10_000  # films in a row that may not join a corpus
Look = tuple[str, str, str]  # colour, shape, motion

DOING = {
    "left": "moving left", "right": "moving right", "up": "moving up", "down": "moving down",
    "pulsing": "growing and shrinking",
}  # fmt: skip
LONG_DOING = {
    "left": "that is moving to the left", "right": "that is moving to the right", "up": "that is moving up the screen",
    "down": "that is moving down the screen", "pulsing": "that keeps growing and shrinking",
}  # fmt: skip
_OPENINGS = ("", "first there is ", "we see ", "there is ", "on the screen is ", "it starts with ")
_FORWARD = (", and then ", ", followed by ", ", and right after that ", ", then comes ", " and next ", " before ")
_BACKWARD = (" right after ", " that comes after ", ", which follows ", " once we have seen ")
SENTENCES = [
    (f"{opening}a {first}{joint}a {second}", (i + j) % 4 == 0)  # and whether no training split has this form
    for i, opening in enumerate(_OPENINGS)
    for joints, first, second in ((_FORWARD, "{0}", "{1}"), (_BACKWARD, "{1}", "{0}"))
    for j, joint in enumerate(joints)
]


class ToyWorldError(ValueError):
    """A corpus that cannot be made; the message says which number to change."""


@dataclass(frozen=True)
class Event:
    """One shape that does one thing from `start` to `end`, whole seconds."""

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
    """Name an event in a few words, as in a trace."""
    return f"{event.colour} {event.shape} {DOING[event.motion]}"


def is_unseen(look: Look) -> bool:
    """Say whether no training split shows this look: one motion for each colour and shape, so a fifth of all looks."""
    colour, shape, motion = look
    return (COLOURS.index(colour) + SHAPES.index(shape) + MOTIONS.index(motion)) % len(MOTIONS) == 0


def make_corpus(split: str, videos: int, seed: int) -> list[Example]:
    """Make films with one query each, a base film and its confusers in turn.

    No two films show the same events, and no film but its own shows what a query names: every query has one answer.

    Raises:
        ToyWorldError: fewer than two videos, or more than there are different queries for.
    """
    if videos < 2:
        raise ToyWorldError(f"split {split!r} of {videos} video(s) has nothing to search; ask for at least 2")
    family = HARD_FAMILY if split == HARD else FAMILY
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    has_unseen = split in UNSEEN_SPLITS
    looks = [look for look in product(COLOURS, SHAPES, MOTIONS) if has_unseen or not is_unseen(look)]
    sentences = [sentence for sentence, is_new in SENTENCES if is_new == has_unseen]
    stories: set[tuple[Look, ...]] = set()  # of the films so far
    shown: set[tuple[Look, Look]] = set()  # by some film, one event after the other
    queried: set[tuple[Look, Look]] = set()
    examples: list[Example] = []
    refused = 0
    while len(examples) < videos:
        number = len(examples)
        base = examples[number - number % family] if number % family else None
        film = _film(looks, rng) if base is None else _confuser(base, rng)
        events = tuple(event.look for event in film.events)
        first = int(rng.integers(len(film.events) - 1)) if base is None else base.first
        pairs = list(pairwise(events))
        ambiguous = pairs[first] in shown or pairs.count(pairs[first]) > 1 or queried.intersection(pairs)
        if events in stories or ambiguous or any(a == b for a, b in pairs) or not set(events) <= set(looks):
            refused += 1
            if refused > MOST_REFUSED:
                raise ToyWorldError(f"no new film after {number} of {videos} in split {split!r}; ask for fewer videos")
            continue
        refused = 0
        stories.add(events)
        shown.update(pairs)
        queried.add(pairs[first])
        film = replace(film, video_id=f"{split}_{number:04d}")
        sentence = sentences[int(rng.integers(len(sentences)))]
        examples.append(Example(film, _sentence(film.events[first : first + 2], sentence), first))
    return examples


def sentences_about(pair: tuple[Event, Event]) -> list[str]:
    """Return every way in which a training split may name two consecutive events."""
    return [_sentence(pair, sentence) for sentence, is_new in SENTENCES if not is_new]


def further_queries(example: Example, count: int, seed: int) -> list[str]:
    """Return other sentences about the film's moment, of a training split's forms; the same seed gives the same.

    Raises:
        ToyWorldError: there are not so many.
    """
    others = [sentence for sentence in sentences_about(example.queried) if sentence != example.query]
    if count > len(others):
        raise ToyWorldError(f"a training film has {len(others)} further queries, not {count}; ask for fewer")
    rng = np.random.default_rng([seed, zlib.crc32(example.film.video_id.encode())])
    return [others[i] for i in rng.permutation(len(others))[:count]]


def reasoning(events: Sequence[Event], queried: tuple[Event, Event], matched: bool) -> str:
    """Write the text inside `<think>`.

    Args:
        events: of the shown film.
        queried: the two that the query names.
        matched: whether the film shows them in a row.
    """
    story = ", ".join(f"{event.start} {describe(event)}" for event in events)
    wanted = f"{describe(queried[0])} then {describe(queried[1])}"
    return f"{story}. wanted {wanted}. {'found' if matched else 'not found'}."


def find_queried(events: Sequence[Event], queried: tuple[Event, Event]) -> tuple[float, float] | None:
    """Return start and end in seconds of two consecutive events that look like the queried ones, None without any."""
    for first, second in pairwise(events):
        if (first.look, second.look) == (queried[0].look, queried[1].look):
            return float(first.start), float(second.end)
    return None


def load_events(path: Path) -> dict[str, tuple[list[Event], int]]:
    """Read for each video its events and which one its own query names first."""
    return {row["video"]: ([Event(**event) for event in row["events"]], row["first"]) for row in read_lines(path)}


def _film(looks: list[Look], rng: np.random.Generator) -> Film:
    count = int(rng.integers(2, 5))
    duration = int(rng.integers(max(MIN_SECONDS, count * MIN_EVENT_SECONDS), MAX_SECONDS + 1))
    chosen = [looks[int(rng.integers(len(looks)))] for _ in range(count)]
    spare = duration - count * MIN_EVENT_SECONDS
    cuts = np.sort(rng.integers(0, spare + 1, count - 1)) + MIN_EVENT_SECONDS * np.arange(1, count)
    bounds = [0, *[int(cut) for cut in cuts], duration]
    events = tuple(Event(bounds[i], bounds[i + 1], *chosen[i]) for i in range(count))
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


def _sentence(pair: tuple[Event, ...], sentence: str) -> str:
    named = [f"{event.colour} {event.shape} {LONG_DOING[event.motion]}" for event in pair]
    return sentence.format(*named)
