"""Scripted agents that search moments among long toy films, and the records of one to begin a training with.

They know what their prompts say and nothing else, so that a policy can find their moves in what it has read.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vsr1.episode.environment import Prompt, run_episode
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
from vsr1.toy.long_corpus import LongFilms, told_later
from vsr1.toy.long_films import LongFilm, make_long_film
from vsr1.toy.navigators import SHOWN, Agent, Known, Spoken, Steps, View, as_shown, in_order
from vsr1.toy.world import COLOURS
from vsr1.video.clips import Clip

OTHER_FIRST = 0.25  # share of the recorded searches that are shown another film first
OTHER_COLOUR = 0.5  # share of the others that ask for a colour that the film has not
_LENGTH = re.compile(r"The video has (\d+) seconds\.")
_LEFT = re.compile(r"Left: (\d+)")
_ROOT = re.compile(r"^([0-9]) \[", re.MULTILINE)


class Seeker:
    """Plays one search: an agent in each film, whose calls it makes, then the judgement of what that has seen.

    What the agent yields without a call, if anything, is the thought of the judgement.

    Args:
        query: as `LongFilm.query` says it.
    """

    def __init__(self, query: str, agent: Agent) -> None:
        self._colour, _, rest = query.removeprefix("a ").partition(" ")
        self._question, self._agent = f"what colour is the {rest}?", agent
        self.films: list[list[str]] = []  # by film, what was shown and replied in turn

    async def reply(self, prompt: Prompt, turn: int) -> Spoken:
        """Return the next reply."""
        text = str(prompt.parts[-1])
        if "<|im_start|>system" in text:
            self.films.append([])
            self._view = self._first_view(text)
            self._steps = self._agent(self._view)
            words = next(self._steps, "")
        else:
            try:
                words = self._steps.send(text)
            except StopIteration:
                words = ""
        words = words if "<tool>" in words else self._judgement(words)
        self.films[-1] += [text, words]
        return Spoken(words)

    def _first_view(self, text: str) -> View:
        seconds, left = (float(pattern.findall(text)[-1]) for pattern in (_LENGTH, _LEFT))
        task = NavigateTask(SampleId(""), "", "", seconds, self._question, left)
        nodes: list[Node] = [(int(name),) for name in _ROOT.findall(text)]
        captions = dict(zip(nodes, SHOWN.findall(text), strict=True))
        return View(task, captions, random.Random(self._question), wanted=self._colour)

    def _judgement(self, thought: str) -> str:
        view = self._view
        if view.answer != self._colour:
            return assistant_text(thought or f"no {self._colour} {view.detail}.", False, None)
        start = re.findall(rf"(\d+) {view.answer} {view.detail}\b", view.captions[view.place])
        span = float(start[0]), view.task.tree.span(view.place)[1]
        return assistant_text(thought or f"{view.answer} {view.detail}.", True, span)


def seek(view: View) -> Steps:
    """Read as `reader` does, but of what no caption shows believe nothing: the film may be a wrong one.

    The last leaf shows the detail, in the wanted colour or not; with neither, no scene is the right one.

    wanted triangle moving up, blue ring. 2,1,1 [30-42] triangle moving up, ring at 35, blue, wanted blue, yes. 2 seen.
    wanted triangle moving up, blue ring. 2,1,1 [30-42] triangle moving up, ring at 35, red, wanted blue, no. 2 no.
    wanted triangle moving up, blue ring. 2,1 triangle moving left, no. 1 no, 2 no, 3 no, 4 no.
    """
    yield (yield from in_order(view, _as_wanted))


def _as_wanted(view: View) -> Known:
    """Return what `as_shown` does, and that no branch is right where the detail has another colour."""
    known = as_shown(view)
    return known if view.answer in ("", view.wanted) else dict.fromkeys(known, False)


def write_search_records(folder: DatasetFolder, settings: NavigateConfig, seed: int) -> None:
    """Write what `seek` says in searches for the moments of films, a record for each film shown.

    The films are `settings.toy_record_films` of their own, of which nothing else is written, else those of the training
    split. A quarter of the searches are shown another film first, three eighths the film alone, and three eighths ask
    for its detail in a colour that it has not. Seconds are told as in the records of navigation.
    """
    minutes = settings.toy_minutes
    numbers = range(settings.toy_record_films)
    films = [make_long_film(f"record-{number}", minutes[number % len(minutes)], seed) for number in numbers]
    films = films or list(LongFilms.of_split(folder, TRAIN, settings.pools.frames).films.values())
    records = []
    for place, film in enumerate(films):
        rng = np.random.default_rng(hashed_seed(seed, "searches", film.film))
        shown, query = ([films[place - 1], film] if rng.random() < OTHER_FIRST else [film]), film.query
        if len(shown) == 1 and rng.random() < OTHER_COLOUR:
            answer = film.task(SampleId(film.film)).answer
            query = film.query_for(rng.choice([colour for colour in COLOURS if colour != answer]))
        budget = drawn_budget(settings.budgets, hashed_seed(seed, "search records"), film.film)
        for own, texts in zip(shown, scripted_search(shown, query, budget, settings).films, strict=False):
            *history, reply = told_later(texts, own.seconds, rng)
            records.append(Record(question_id=film.film, history=history, reply=reply, whole=True))
    write_rows(search_records_file(folder), records)


def scripted_search(films: Sequence[LongFilm], query: str, budget: float, settings: NavigateConfig) -> Seeker:
    """Play a search for a moment of the last of these films, which come in their order."""
    right = films[-1]
    seeker, by_name = Seeker(query, seek), {film.film: film for film in films}

    async def search(request: SearchRequest) -> SearchResult:
        left = [(film.film, 1.0) for film in films if film.film not in request.exclude]
        return SearchResult(left, len(films), dict.fromkeys(request.scores_of, 1.0), "toy", np.ones(1, np.float32))

    async def load(video_id: str) -> Clip:
        return replace(by_name[video_id].clip((), 2), video_id=video_id)

    async def use(call: ToolCall) -> ToolResult:
        return by_name[call.film].result(call, find_level=settings.find_level)

    [clue] = right.task(SampleId(right.film)).clues
    task = LongSearchTask(SampleId(right.film), right.film, query, right.film, clue, right.seconds, budget=budget)
    agent = SearchSettings.of(AgentConfig(refinement="none", max_turns=len(films)), len(films))
    asyncio.run(run_episode(SearchThenNavigateEnvironment(task, agent, settings, search, load, use), seeker.reply))
    return seeker
