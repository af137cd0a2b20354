"""Which nodes of a film fit some words, by words and phrases of their captions: a search that needs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from vsr1.navigate.tree import Node

LONGEST = 3  # words of a phrase: "cross moving left" is not "ring moving left" beside "cross moving up"
_CLAUSE, _WORD = re.compile(r"[^,.;:!?\n]+"), re.compile(r"\w+")


def ranked_nodes(captions: Mapping[Node, str], words: str, count: int) -> list[Node]:
    """Return at most `count` nodes, best first; none that shares no word.

    The score is how much of the search a caption says: its phrases in the caption, weighted by their rarity among the
    captions, log(1 + N / n) squared. Of equal ones the caption that says least besides is better, then the earlier one.
    """
    bags = {node: phrases(text) for node, text in captions.items()}
    spread = Counter(phrase for bag in bags.values() for phrase in bag)
    weights = {phrase: math.log(1 + len(bags) / number) ** 2 for phrase, number in spread.items()}
    wanted = phrases(words) & weights.keys()
    shared = {node: wanted & bag for node, bag in bags.items()}
    scores = {node: sum(weights[phrase] for phrase in sorted(common)) for node, common in shared.items() if common}
    return sorted(scores, key=lambda node: (-scores[node], len(bags[node]), node))[:count]


def phrases(text: str) -> set[str]:
    """Return the words of a text and what up to three of them say together, within clauses, in small letters."""
    clauses = (_WORD.findall(clause) for clause in _CLAUSE.findall(text.lower()))
    return {
        " ".join(words[start : start + length])
        for words in clauses
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    }
