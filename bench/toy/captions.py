"""Captions of toy films, as search engines are trained on: coarser than queries, always in the order of the film."""

from __future__ import annotations

import numpy as np

from vsr1.toy.world import DOING, LONG_DOING, SENTENCES, Event, Example

COARSENESS = 0.1  # how often an attribute is left out
IN_ORDER = [text for text, is_new in SENTENCES if not is_new and text.index("{0}") < text.index("{1}")]


def caption(example: Example, rng: np.random.Generator) -> str:
    """Return a caption of the queried events and perhaps others, always in their order.

    Now and then an attribute is left out. No caption names a later event first, as many queries do.
    """
    first = int(rng.integers(example.first + 1))
    end = int(rng.integers(example.first + 2, len(example.film.events) + 1))
    named = [_coarsely(event, rng) for event in example.film.events[first:end]]
    if len(named) == 2 and rng.random() < 0.5:
        return IN_ORDER[int(rng.integers(len(IN_ORDER)))].format(*named)
    return ", ".join(named)


def _coarsely(event: Event, rng: np.random.Generator) -> str:
    named = rng.random(3) >= COARSENESS
    doing = DOING if rng.random() < 0.5 else LONG_DOING
    words = np.where(named, (event.colour, event.shape, doing[event.motion]), ("", "shape", ""))
    return " ".join(word for word in words if word)
