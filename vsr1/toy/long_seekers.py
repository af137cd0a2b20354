"""Scripted agents that search moments among long toy films, and the records of one to begin a training with.

They know what their prompts say. The oracle is told which film is the right one, and makes detours in it; half of its
episodes begin with another film, into which it looks a little, or not at all, before it rejects it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vsr1.episode.environment import Prompt, run_episode
from vsr1.episode.moments import Span
from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.navigate.files import Record, search_records_file, write_rows
from vsr1.navigate.record import NavigateTask, drawn_budget
from vsr1.navigate.tree import Node
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.search.environment import SearchSettings
from vsr1.search.prompts import assistant_text
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig
from vsr1.toy.long_corpus import LongFilms
from vsr1.toy.long_films import LongFilm
from vsr1.toy.navigators import DETOUR, SHOWN, Agent, Spoken, Steps, View, oracle, read
from vsr1.video.clips import Clip

OTHER_FIRST = 0.5  # share of the oracle's episodes that are shown another film first
_LENGTH = re.compile(r"The video has (\d+) seconds\.")
_LEFT = re.compile(r"Left: (\d+)")
_ROOT = re.compile(r"^([0-9]) \[", re.MULTILINE)
AgentOf = Callable[[int], tuple[Agent, list[Span]]]  # of the film with this number, from 0; and the clues it knows


class Seeker:
    """Plays one search: an agent in each film, whose calls it makes, then the judgement of what that has seen.

    Args:
        query: as `LongFilm.query` says it.
        name: what the agents' random choices follow from.
    """

    def __init__(self, query: str, name: str, agent_of: AgentOf) -> None:
        self._colour, _, rest = query.removeprefix("a ").partition(" ")
        self._question, self._rng, self._agent_of = f"what colour is the {rest}?", random.Random(name), agent_of
        self.shown: list[list[str]] = []  # by film, what was shown and replied in turn
        self.replies: list[tuple[list[str], str]] = []  # each with what was said of its film before it

    async def reply(self, prompt: Prompt, turn: int) -> Spoken:
        """Return the next reply."""
        text = str(prompt.parts[-1])
        if "<|im_start|>system" in text:
            agent, clues = self._agent_of(len(self.shown))
            self.shown.append([])
            self._view = self._first_view(text, clues)
            self._steps = agent(self._view)
            words = next(self._steps, "")
        else:
            try:
                words = self._steps.send(text)
            except StopIteration:
                words = ""
        words = words if "<tool>" in words else self._judgement()
        history = self.shown[-1]
        history.append(text)
        self.replies.append((list(history), words))
        history.append(words)
        return Spoken(words)

    def _first_view(self, text: str, clues: list[Span]) -> View:
        seconds, left = (float(pattern.findall(text)[-1]) for pattern in (_LENGTH, _LEFT))
        task = NavigateTask(SampleId(""), "", "", seconds, self._question, left, clues=clues)
        nodes: list[Node] = [(int(name),) for name in _ROOT.findall(text)]
        return View(task, dict(zip(nodes, SHOWN.findall(text), strict=True)), self._rng)

    def _judgement(self) -> str:
        view = self._view
        if view.answer != self._colour:
            return assistant_text(f"no {self._colour} {view.detail}.", False, None)
        start = re.findall(rf"(\d+) {view.answer} {view.detail}\b", view.captions[view.place])
        span = float(start[0]), view.task.tree.span(view.place)[1]
        return assistant_text(f"{view.answer} {view.detail}.", True, span)


def write_search_records(folder: DatasetFolder, settings: NavigateConfig, seed: int) -> None:
    """Write the oracle's replies in searches for the moments of the training split's films."""
    films = list(LongFilms.of_split(folder, TRAIN, settings.pools.frames).films.values())
    records = []
    for place, film in enumerate(films):
        rng = random.Random(hashed_seed(seed, "searches", film.film))
        others = [films[place - 1]] if rng.random() < OTHER_FIRST else []
        budget = drawn_budget(settings.budgets, hashed_seed(seed, "search records"), film.film)
        seeker = oracle_search([*others, film], budget, settings)
        records += [Record(question_id=film.film, history=history, reply=reply) for history, reply in seeker.replies]
    write_rows(search_records_file(folder), records)


def oracle_search(films: Sequence[LongFilm], budget: float, settings: NavigateConfig) -> Seeker:
    """Play the oracle's search for the moment of the last of these films, which come in their order."""
    *others, right = films
    clues = right.task(SampleId(right.film)).clues

    def agent_of(number: int) -> tuple[Agent, list[Span]]:
        return (_glance, []) if number < len(others) else (oracle, clues)

    seeker, by_name = Seeker(right.query, right.film, agent_of), {film.film: film for film in films}

    async def search(request: SearchRequest) -> SearchResult:
        left = [(film.film, 1.0) for film in films if film.film not in request.exclude]
        return SearchResult(left, len(films), dict.fromkeys(request.scores_of, 1.0), "toy", np.ones(1, np.float32))

    async def load(video_id: str) -> Clip:
        return replace(by_name[video_id].clip((), 2), video_id=video_id)

    async def use(call: ToolCall) -> ToolResult:
        return by_name[call.film].result(call, find_level=settings.find_level)

    task = LongSearchTask(
        SampleId(right.film), right.film, right.query, right.film, clues[0], right.seconds, budget=budget
    )
    agent = SearchSettings.of(AgentConfig(refinement="none", max_turns=len(films)), len(films))
    asyncio.run(run_episode(SearchThenNavigateEnvironment(task, agent, settings, search, load, use), seeker.reply))
    return seeker


def _glance(view: View) -> Steps:
    """Look into some of the scenes with the right shape, as long as more is left than the right film needs."""
    for branch in view.look_alikes:
        if view.left > 2 and view.rng.random() < DETOUR:
            yield from read(view, view.unread(branch)[0])
