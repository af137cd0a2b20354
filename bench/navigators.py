"""Scripted agents that know no more than the captions say, to compare policies with.

`optimal` plays the moves of `bench.optimum`; `greedy` goes down the first branch that looks right and stays in it;
`uniform` looks at parts spread over the film, then into them; `finder` searches first and reads what is named;
`searcher` leaves a named part that is wrong, and goes on as `optimal` where the search has not helped. `oracle` knows
the leaf and makes detours. `reader` is that of `vsr1.toy.navigators`.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from bench.optimum import Scene, best_move
from vsr1.navigate.record import ABSTENTION
from vsr1.navigate.tree import Node
from vsr1.toy.navigators import Agent, Steps, View, call, read, reader
from vsr1.toy.world import COLOURS

DETOUR = 0.3  # chance of each wrong turn of the oracle
_NAMED = re.compile(r"^([0-9,]+) \[", re.MULTILINE)


def optimal(view: View) -> Steps:
    """Play the best move for what is known, until the detail is seen or the budget is spent."""
    yield from find_moment(view)
    yield last_words(view)


def searcher(view: View) -> Steps:
    """Search for the words of the question, and read the leaves that are named in order, or those of the first part.

    A scene that shows that it is wrong is left. What is left of the budget then goes as in `optimal`.
    """
    if view.left > 0:
        nodes = yield from _search(view)
        for leaf in [leaf for node in nodes[:1] for leaf in view.task.tree.children(node)] or nodes:
            if view.left > 0 and not view.answer and _not_wrong(view, [leaf[:1]]):
                yield from read(view, leaf)
    yield from find_moment(view)
    yield last_words(view)


def find_moment(view: View) -> Steps:
    """Play the best moves, without a last word, until the detail is seen, no scene is right or nothing is left."""
    branches, width = view.look_alikes, view.task.tree.width
    while view.left > 0 and not view.answer:
        branches = _not_wrong(view, branches)
        if not branches:
            break
        left = view.left
        states = {branch: _state(view, branch) for branch in branches}
        if len(branches) > 1:
            _, (kind, scene) = best_move(width, left, tuple(sorted(states.values())))
            if kind == "stop":
                break
            branch = next(branch for branch in branches if states[branch] == scene)
        else:
            branch = branches[0]
            kind = "leaf" if view.detailed(branch) else "part"
        nodes = _next_leaves(view, branch) if kind == "leaf" else view.unread(branch)
        if not nodes:
            break
        yield from read(view, nodes[0])


def greedy(view: View) -> Steps:
    """Go down the first branch with the shape, part by part, into the first with the detail; never leave it."""
    branch = view.look_alikes[0]
    for _ in range(int(view.task.budget)):
        detailed = view.detailed(branch)
        unread = [leaf for part in detailed for leaf in view.unread(part)] or view.unread(branch)
        if view.answer or not unread:
            break
        yield from read(view, unread[0])
    yield last_words(view)


def uniform(view: View) -> Steps:
    """Read parts of the second level spread over the film, half of the budget long, then leaves of those it has read.

    Parts whose scene is right come first among them, then those with the detail.
    """
    tree, budget = view.task.tree, int(view.task.budget)
    parts = [part for root in tree.roots for part in tree.children(root)]
    count = min(len(parts), (budget + 1) // 2)
    chosen = [parts[(2 * place + 1) * len(parts) // (2 * count)] for place in range(count)]
    for part in chosen:
        yield from read(view, part)
    chosen.sort(key=lambda part: (not view.is_right(part), view.detail not in view.captions[part]))
    leaves = [leaf for part in chosen for leaf in tree.children(part)]
    for leaf in leaves[: budget - count]:
        if view.answer:
            break
        yield from read(view, leaf)
    yield last_words(view)


def finder(view: View) -> Steps:
    """Search for the words of the question, then read the leaves of what was found."""
    if view.left > 0:
        nodes = yield from _search(view)
        for leaf in [leaf for node in nodes for leaf in view.task.tree.children(node) or [node]][: view.left]:
            if view.answer:
                break
            yield from read(view, leaf)
    yield last_words(view)


def _search(view: View) -> Generator[str, str, list[Node]]:
    """Search for the words of the question; return what is named, best first."""
    words = f"a {view.shape} {view.doing}, a {view.detail}"
    text = yield call(f"wanted {words}.", f"find({words})")
    view.calls += 1
    return [tuple(map(int, name.split(","))) for name in _NAMED.findall(text)]


def _not_wrong(view: View, branches: list[Node]) -> list[Node]:
    """Return the branches that may be right: one that shows it, else those that do not show the opposite."""
    verdicts = {branch: view.verdict(branch) for branch in branches}
    right = [branch for branch in branches if verdicts[branch]]
    return right or [branch for branch in branches if verdicts[branch] is None]


def _state(view: View, branch: Node) -> Scene:
    return view.task.tree.width - len(view.unread(branch)), bool(view.detailed(branch))


def _next_leaves(view: View, branch: Node) -> list[Node]:
    """Return the leaves of the part with the detail that were not read, else of all parts that were."""
    parts = view.detailed(branch) or [part for part in view.task.tree.children(branch) if part in view.captions]
    return [leaf for part in parts for leaf in view.unread(part)]


def oracle(view: View) -> Steps:
    """Go to the leaf with the answer, with wrong turns that are left again as far as the budget allows them."""
    tree = view.task.tree
    [goal] = [tree.leaf(number) for number in tree.covered(view.task.clues)]
    detours = _detours(view, goal)[: max(int(view.task.budget) - 2, 0)]
    for node in sorted([*detours, goal[:2], goal], key=lambda node: (node[:1] == goal[:1], len(node), node == goal)):
        if view.left > 0:
            yield from read(view, node)
    yield last_words(view, guesses=False)


def _detours(view: View, goal: Node) -> list[Node]:
    wrong = [view.unread(branch)[0] for branch in view.look_alikes if branch != goal[:1]]
    wrong += [part for part in view.unread(goal[:1]) if part != goal[:2]]
    wrong += [leaf for leaf in view.unread(goal[:2]) if leaf < goal]
    return [node for node in wrong if view.rng.random() < DETOUR]


def last_words(view: View, *, guesses: bool = True) -> str:
    """Return the reply that ends an episode: the answer if it was seen, else a guess or an abstention."""
    guess = view.rng.choice(COLOURS) if guesses else ABSTENTION
    seen = f"{view.answer} {view.detail}" if view.answer else f"no {view.detail}"
    return f"<think>{seen}.</think> <answer>{view.answer or guess}</answer>"


AGENTS: dict[str, Agent] = {
    "optimal": optimal, "greedy": greedy, "uniform": uniform, "finder": finder, "searcher": searcher,
    "reader": reader, "oracle": oracle,
}  # fmt: skip
