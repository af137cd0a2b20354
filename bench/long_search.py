"""Moments in a corpus of long toy films: navigating what was found against one look at each film, at equal tokens.

Both agents search the same corpus with the project's own retrieval, a vector a film made from the words of its
captions, are shown the same films in the same order, and see everything that a frame shows. One look spreads its frames
over the film, is given for each frame the scene that it lies in, and how long moments are; so it never takes a wrong
one, and misses the right one where no frame falls on it, or none near its middle. The other reads captions, each made
from `CAPTION_FRAMES` frames: those of the first level of each film, and those it calls for under its budget.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.measure import device, dtype_name
from bench.navigators import find_moment
from vsr1.episode.environment import PolicyReply, Prompt, ReplyTo, run_episode
from vsr1.episode.moments import Span, temporal_iou
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, ToolResult
from vsr1.navigate.ranking import phrases
from vsr1.navigate.tree import LEVELS
from vsr1.retrieval.corpus import Catalogue
from vsr1.retrieval.index import RankTarget, Shard, ShardHits, ShardQueries
from vsr1.retrieval.replicas import ReplicaSet
from vsr1.retrieval.request import SearchRequest
from vsr1.retrieval.searcher import Searcher
from vsr1.search.environment import SearchSettings
from vsr1.search.record import moment_iou
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask, calls_of, judgements, visits
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig, EngineConfig, RetrievalConfig
from vsr1.toy.long_films import LongFilm, make_long_film
from vsr1.toy.long_seekers import Seeker
from vsr1.video.clips import Clip

CAPTION_FRAMES = 16  # that a captioner reads of a node, of any level
RIGHT_IOU = 0.5
ROOM, WORDS = 32, 96  # replies of a policy at one time, and tokens of one
_SMALL = re.compile(r"\b(a|is|where) ")


@dataclass(frozen=True)
class Moment:
    """A colour of the detail in the right scene of a film: what is searched, and where it is."""

    film: LongFilm
    colour: str
    span: Span

    @classmethod
    def of(cls, film: LongFilm) -> Moment:
        """Return the moment that the film's question is about."""
        task = film.task(SampleId(film.film))
        return cls(film, task.answer, task.clues[0])

    def shows(self, film: LongFilm, leaf: int) -> bool:
        """Tell whether a leaf of any film shows what is searched."""
        plan, node = self.film.plan, film.tree.leaf(leaf)
        if film.plan.scenes[node[0] - 1] != (plan.shape, plan.motion):
            return False
        return any(event.look[:2] == (self.colour, plan.detail) for event in film.events(node)[1:])


Player = Callable[[Moment], ReplyTo]


class Phrases:
    """Embeds a text as the phrases in it, without small words, each weighted by its rarity among the films."""

    fingerprint = "phrases"

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(phrase for text in texts for phrase in phrases(_SMALL.sub("", text)))
        self._places = {phrase: place for place, phrase in enumerate(sorted(counts))}
        self._weights = {phrase: math.log(1 + len(texts) / count) for phrase, count in counts.items()}
        self.dim = len(counts)

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        """Return unit vectors, float32 [n, dim]; soft tokens mean nothing here."""
        vectors = np.zeros((len(queries), self.dim), np.float32)
        for vector, query in zip(vectors, queries, strict=True):
            for phrase in phrases(_SMALL.sub("", query)) & self._places.keys():
                vector[self._places[phrase]] = self._weights[phrase]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class LocalShard:
    """A shard of the corpus in this process."""

    def __init__(self, name: str, vectors: np.ndarray) -> None:
        self.name = name
        self._shard = Shard(name, np.arange(len(vectors)), vectors)

    async def search(self, version: str, queries: ShardQueries) -> ShardHits:
        return self._shard.search(queries)

    async def count_above(self, version: str, targets: list[RankTarget]) -> list[int]:
        return self._shard.count_above(targets)

    async def recover(self) -> None:
        """Do nothing: it has not failed."""


def long_search(
    corpora: int, films: int, minutes: Sequence[float], seed: int, budget: int, turns: int, policy: Path | None = None
) -> dict[str, Any]:
    """Compare the two agents over corpora of films of each length.

    Args:
        films: of each corpus; a moment is searched in each of them whose moment no other film of it shows.
        budget: calls of an episode.
        turns: films that an episode may judge.
        policy: checkpoint that navigates, its likeliest words; None: an agent that knows what its prompts say does.

    Returns:
        By length: how often the right film is ranked first and within `turns`, and for each agent the share of moments
        found (IoU of at least 0.5), of right films that it judged, its frames an episode; and the ratio of the shares.
    """
    settings = {"corpora": corpora, "films": films, "seed": seed, "budget": budget, "turns": turns}
    worlds = {
        f"{length:g}": [
            [make_long_film(f"film-{length:g}-{corpus}-{number}", length, seed) for number in range(films)]
            for corpus in range(corpora)
        ]
        for length in minutes
    }
    return settings | {
        "policy": policy and str(policy),
        "minutes": asyncio.run(_figures(worlds, budget, turns, policy)),
    }


async def _figures(
    worlds: dict[str, list[list[LongFilm]]], budget: int, turns: int, policy: Path | None
) -> dict[str, dict[str, Any]]:
    figures = {}
    async with _player(policy) as player:
        for length, corpora in worlds.items():
            searches = await asyncio.gather(*(_searches(world, budget, turns, player) for world in corpora))
            figures[length] = _compared(list(chain.from_iterable(searches)), turns)
    return figures


@asynccontextmanager
async def _player(policy: Path | None) -> AsyncIterator[Player]:
    """Have what replies in the search of a moment, for a block."""
    if policy is None:
        yield lambda moment: Seeker(moment.film.query, find_moment).reply
        return
    from vsr1.engine.engine import PolicyEngine  # vLLM, which only this measurement needs

    config = EngineConfig(max_model_len=4096, max_num_seqs=ROOM)
    engine = await PolicyEngine.start(policy, config, device=device(), dtype=dtype_name())

    async def reply(prompt: Prompt, turn: int) -> PolicyReply:
        return await engine.generate(prompt, max_tokens=WORDS, latents=0, temperature=0.0, seed=0)

    try:
        yield lambda _: reply
    finally:
        engine.shutdown()


@dataclass(frozen=True)
class FilmSearch:
    """One search: its moment, where the right film is ranked, the first films, and the episode that navigates them."""

    moment: Moment
    rank: int
    films: list[LongFilm]
    episode: dict[str, Any]


async def _searches(world: list[LongFilm], budget: int, turns: int, player: Player) -> list[FilmSearch]:
    moments = [moment for moment in map(Moment.of, world) if _is_unique(moment, world)]
    texts = [", ".join(film.caption(node) for node in film.tree.level(2)) for film in world]
    embedder = Phrases(texts)
    searcher = Searcher(
        embedder, [ReplicaSet("films", [LocalShard("films", embedder.embed_queries(texts))], timeout_s=30)],
        RetrievalConfig(shards=1),
    )  # fmt: skip
    searcher.serve(Catalogue([film.film for film in world], embedder.dim, "toy"))
    by_name = {film.film: film for film in world}
    searches = []
    for moment in moments:
        ranking = await searcher.search(SearchRequest(query=moment.film.query, k=turns, rank_of=moment.film.film))
        episode = await _navigated(moment, by_name, searcher, budget, turns, player(moment))
        shown = [by_name[name] for name, _ in ranking.retrieved]
        searches.append(FilmSearch(moment, ranking.rank_of or 0, shown, episode))
    return searches


def _compared(searches: list[FilmSearch], turns: int) -> dict[str, Any]:
    navigating = [search.episode for search in searches]
    looking = _as_dear(searches, fmean(one["frames"] for one in navigating))
    share = fmean(one["right"] for one in looking)
    return {
        "moments": len(searches),
        "ranked_first": fmean(search.rank == 1 for search in searches),
        "ranked_within_turns": fmean(search.rank <= turns for search in searches),
        "search_then_navigate": _shares(navigating),
        "one_look": _shares(looking),
        "ratio": fmean(one["right"] for one in navigating) / share if share else None,
    }


def _shares(episodes: list[dict[str, Any]]) -> dict[str, float]:
    return {name: fmean(float(one[name]) for one in episodes) for name in episodes[0]}


def _is_unique(moment: Moment, world: Sequence[LongFilm]) -> bool:
    places = [(film.film, leaf) for film in world for leaf in range(film.width**LEVELS) if moment.shows(film, leaf)]
    return len(places) == 1


async def _navigated(
    moment: Moment, films: dict[str, LongFilm], searcher: Searcher, budget: int, turns: int, reply: ReplyTo
) -> dict[str, Any]:
    """Play one episode of the environment."""
    navigate = NavigateConfig.model_validate({"tools": ["caption"]})
    agent = AgentConfig(refinement="none", max_turns=turns)
    film = moment.film
    task = LongSearchTask(
        SampleId(film.film), film.film, moment.film.query, film.film, moment.span, film.seconds, budget=float(budget)
    )

    async def load(video_id: str) -> Clip:
        return replace(films[video_id].clip((), 2), video_id=video_id)

    async def use(call: ToolCall) -> ToolResult:
        return films[call.film].result(call)

    settings = SearchSettings.of(agent, turns)
    environment = SearchThenNavigateEnvironment(task, settings, navigate, searcher.search, load, use)
    trajectory = await run_episode(environment, reply)
    captions = len(calls_of(trajectory)) + sum(films[v.judgement.record.video_id].width for v in visits(trajectory))
    judged = [visit.judgement.record.video_id for visit in visits(trajectory)]
    return {
        "right": moment_iou(judgements(trajectory)) >= RIGHT_IOU,
        "right_film": film.film in judged,
        "films": len(judged),
        "frames": captions * CAPTION_FRAMES,
    }


def _as_dear(searches: list[FilmSearch], frames: float) -> list[dict[str, Any]]:
    """Return the episodes of one look with as many frames a film as cost on average what is given, or just more."""
    per_film = 1
    while True:
        episodes = [_looked(search.moment, search.films, per_film) for search in searches]
        if fmean(one["frames"] for one in episodes) >= frames:
            return episodes
        per_film += 1


def _looked(moment: Moment, films: list[LongFilm], frames: int) -> dict[str, Any]:
    """Look once at each film in turn, with frames spread over it; accept the first that shows the moment."""
    for number, film in enumerate(films, start=1):
        span = _seen(moment, frames) if film is moment.film else None  # no other film shows it
        if span is not None:
            right = temporal_iou(span, moment.span) >= RIGHT_IOU
            return {"right": right, "right_film": True, "films": number, "frames": number * frames}
    return {"right": False, "right_film": moment.film in films, "films": len(films), "frames": len(films) * frames}


def _seen(moment: Moment, frames: int) -> Span | None:
    """Return the moment as frames in the middle of equal parts of its film show it: as long as it is, around them."""
    times = (np.arange(frames) + 0.5) * moment.film.seconds / frames
    start, end = moment.span
    hits = times[(times >= start) & (times < end)]
    if not len(hits):
        return None
    middle, half = (hits[0] + hits[-1]) / 2, (end - start) / 2
    return float(middle - half), float(middle + half)
