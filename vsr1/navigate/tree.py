"""The clip tree of a film: K parts, each of K parts, each of K leaves, named by numbers from 1.

    (2,)         the second part             seconds  T/K .. 2T/K
    (2, 1)       its first part              seconds  T/K .. T/K + T/K^2
    (2, 1, 3)    the third leaf of that one  K^3 leaves in all

Borders are uniform in time, or moved to scene boundaries nearby; a node's span is that of its leaves. A film that is
shorter than a leaf has no parts: its tree is the whole film, `()`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vsr1.episode.moments import Span

Node = tuple[int, ...]
LEVELS = 3
LEAF_SECONDS = 16.0  # that a leaf is about, between the narrowest tree and the widest
NARROWEST, WIDEST = 4, 8
REACH = 0.25  # of a leaf, within which a border moves to a scene boundary: no leaf gets shorter than half of one


def tree_width(seconds: float) -> int:
    """Return K = clamp(round((T / 16 s)^(1/3)), 4, 8), the parts of a node (longvideo.md §1.2).

    Raises:
        ValueError: a duration that is not positive and finite.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"tree_width: duration {seconds} s must be positive and finite; check the film")
    return min(WIDEST, max(NARROWEST, round((seconds / LEAF_SECONDS) ** (1 / 3))))


@dataclass(frozen=True)
class ClipTree:
    """Borders of the leaves in seconds, K^3 + 1 of them, rising; two of a film without parts."""

    width: int
    borders: tuple[float, ...]

    @classmethod
    def of(cls, seconds: float, scenes: Sequence[float] = ()) -> ClipTree:
        """Return the tree of a film of so many seconds.

        Args:
            scenes: seconds of scene boundaries, to which borders move that are within a quarter of a leaf.

        Raises:
            ValueError: a duration that is not positive and finite.
        """
        return _tree(float(seconds), tuple(map(float, scenes)))  # 2000 and 2000.0 are one key, and one tree

    @property
    def has_parts(self) -> bool:
        """Tell whether the film is long enough for parts."""
        return len(self.borders) > 2

    @property
    def roots(self) -> list[Node]:
        """Return the nodes of the first level, or the whole film where it has no parts."""
        return self.children(()) if self.has_parts else [()]

    def children(self, node: Node) -> list[Node]:
        """Return the parts of a node in order."""
        return [(*node, number) for number in range(1, self.width + 1)] if len(node) < LEVELS else []

    def level(self, number: int) -> list[Node]:
        """Return the nodes of a level in order, or the whole film where it has no parts."""
        nodes = self.roots
        for _ in range(1, number if self.has_parts else 1):
            nodes = [part for node in nodes for part in self.children(node)]
        return nodes

    def __contains__(self, node: Node) -> bool:
        if not self.has_parts:
            return node == ()
        return 1 <= len(node) <= LEVELS and all(1 <= number <= self.width for number in node)

    def leaves(self, node: Node) -> range:
        """Return the numbers of a node's leaves, from 0; 0 is the whole film where it has no parts."""
        if not self.has_parts:
            return range(1)
        size = self.width ** (LEVELS - len(node))
        first = size * sum((number - 1) * self.width**place for place, number in enumerate(reversed(node)))
        return range(first, first + size)

    def span(self, node: Node) -> Span:
        """Return start and end of a node in seconds."""
        leaves = self.leaves(node)
        return self.borders[leaves.start], self.borders[leaves.stop]

    def leaf(self, number: int) -> Node:
        """Return the leaf with this number, from 0."""
        if not self.has_parts:
            return ()
        k = self.width
        return number // k**2 + 1, number // k % k + 1, number % k + 1

    def covered(self, spans: Iterable[Span]) -> set[int]:
        """Return the numbers of the leaves that spans touch: spans snapped outward to whole leaves.

        An end at a border does not touch the leaf after it; a span without length touches the leaf it lies in.
        """
        last, numbers = len(self.borders) - 2, set[int]()
        for start, end in spans:
            first = min(max(bisect_right(self.borders, start) - 1, 0), last)
            numbers.update(range(first, max(first, min(bisect_left(self.borders, end) - 1, last)) + 1))
        return numbers

    def frontier(self, nodes: Iterable[Node]) -> set[int]:
        """Return the numbers of the leaves of nodes that were looked into, without nodes of which a part was."""
        looked = set(nodes)
        above = {node[:length] for node in looked for length in range(len(node))}
        return {leaf for node in looked - above for leaf in self.leaves(node)}

    def seen_part(self, span: Span, leaves: set[int]) -> Span | None:
        """Return the part of a span that lies within leaves, the longest where they lie apart; None without any."""
        start, end = span
        parts, last = list[Span](), -2
        for leaf in sorted(leaves):
            first, until = max(start, self.borders[leaf]), min(end, self.borders[leaf + 1])
            if first < until:
                joins = parts and last == leaf - 1
                parts.append((parts.pop()[0] if joins else first, until))
                last = leaf
        return max(parts, key=lambda part: part[1] - part[0], default=None)


@lru_cache(maxsize=1024)
def _tree(seconds: float, scenes: tuple[float, ...]) -> ClipTree:
    width = tree_width(seconds)
    if seconds < LEAF_SECONDS:
        return ClipTree(width, (0.0, seconds))
    leaves = width**LEVELS
    leaf, rising = seconds / leaves, sorted(scenes)
    inner = [_moved(number * leaf, rising, REACH * leaf) for number in range(1, leaves)]
    return ClipTree(width, (0.0, *inner, seconds))


def _moved(border: float, scenes: list[float], reach: float) -> float:
    place = bisect_left(scenes, border)
    near = [scene for scene in scenes[max(place - 1, 0) : place + 1] if abs(scene - border) <= reach]
    return min(near, key=lambda scene: abs(scene - border), default=border)
