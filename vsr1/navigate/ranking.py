"""Which nodes of a film fit some words, by the words of their captions: a search that needs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from vsr1.navigate.tree import Node

_WORD = re.compile(r"\w+")


def ranked_nodes(captions: Mapping[Node, str], words: str, count: int) -> list[Node]:
    """Return at most `count` nodes, best first; of equal ones the earlier; none that shares no word.

    The score is the cosine of words weighted by their rarity among the captions, log(1 + N / n).
    """
    bags = {node: set(_WORD.findall(text.lower())) for node, text in captions.items()}
    spread = Counter(word for bag in bags.values() for word in bag)
    weights = {word: math.log(1 + len(bags) / number) ** 2 for word, number in spread.items()}
    wanted = {word for word in _WORD.findall(words.lower()) if word in weights}

    def score(node: Node) -> float:
        shared = sum(weights[word] for word in wanted & bags[node])
        return shared / math.sqrt(sum(weights[word] for word in bags[node])) if shared else 0.0

    fitting = sorted((node for node in bags if wanted & bags[node]), key=lambda node: (-score(node), node))
    return fitting[:count]
