"""A search in which a video that is too long for one look is navigated before it is judged.

    retrieve ── at most navigate.one_look_s long ──► one look ─────────────────────────► judgement
           └─── longer ──► captions of its first level ──► call, call, ... (budget) ──► judgement
                                                            rejection: refine, retrieve the next, with what is left

Videos of one look are those of `SearchEnvironment`, whose turns, ranks and ends these are. A long film has the tools,
statuses and prompts of `NavigateEnvironment`; all films of an episode share its budget. The frontier, the nodes that
were looked into, bounds what may be answered: a match is cut to it, and one outside it costs a free turn. A reply that
still calls when nothing is left, or has no free turn left, is the judgement of its film, and no match: without evidence
a film is rejected, and the query is refined with what that reply has for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vsr1.episode.environment import Observation, PolicyReply
from vsr1.episode.moments import Span
from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.navigate.calls import Action, Use
from vsr1.navigate.calls import parse_reply as parse_action
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.record import NavigateTask, NavigateTurn, visited
from vsr1.search.environment import LoadClip, Search, SearchEnvironment, SearchSettings
from vsr1.search.events import SearchEvent
from vsr1.search.parse import ACCEPTS, Judgement, parse_reply
from vsr1.search_then_navigate.prompts import film_turn, system_prompt
from vsr1.search_then_navigate.record import LongSearchTask, LongSearchTrajectory, is_call
from vsr1.settings.navigate import NavigateConfig
from vsr1.video.clips import Clip, ClipReference


@dataclass(frozen=True)
class Called:
    """What became of one reply that calls a tool, or tries to."""

    turn: int  # of the search, from 1
    film: str
    call: NavigateTurn
    span: Span | None  # seconds of its node, None without one that the film has


def _unobserved(event: SearchEvent | Called) -> None:
    """For episodes that nobody watches."""


class FilmNavigation(NavigateEnvironment):
    """The navigation of one film of a search, which ends with its judgement."""

    def __init__(self, task: NavigateTask, settings: NavigateConfig, use: Use, system: str) -> None:
        super().__init__(task, settings, use)
        self._system = system

    @property
    def left(self) -> float:
        """Return what is left of the budget."""
        return self._left

    @property
    def shown(self) -> list[ClipReference]:
        """Return the clips that looks have shown so far."""
        return [clip.reference for clip in self._clips]

    def called(self, call: NavigateTurn, turn: int) -> Called:
        """Return what is told of a call in a turn of the search."""
        span = None if call.node is None or call.node not in self._tree else self._tree.span(call.node)
        return Called(turn, self._task.film, call, span)

    def bounded(self, judgement: Judgement) -> Judgement:
        """Return a judgement whose match lies within the frontier; one that does not is none."""
        if judgement.span is None:
            seen = None
        else:
            seen = self._tree.seen_part(judgement.span, self._tree.frontier(visited(self._trajectory)))
        if judgement.verdict == "matched" and seen is None:
            return replace(judgement, verdict="unknown", span=None)
        return replace(judgement, span=seen)

    def _opening(self, captions: Sequence[str | None]) -> str:
        return film_turn(self._task, captions, self._system)

    def _answered(self, action: Action) -> NavigateTurn:
        """Return that an answer lies outside the frontier: only such a one comes here."""
        return NavigateTurn("unseen", words=action.words, left=self._left)


class SearchThenNavigateEnvironment:
    latents_unless = ACCEPTS

    def __init__(
        self,
        task: LongSearchTask,
        settings: SearchSettings,
        navigate: NavigateConfig,
        search: Search,
        load_clip: LoadClip,
        use: Use,
        observe: Callable[[SearchEvent | Called], None] = _unobserved,
        index_version: str | None = None,
    ) -> None:
        """
        Args:
            use: calls the tools of navigation.
            index_version: of the corpus, of an episode that goes on; None: the present one.
        """
        self._task, self._settings, self._load_clip = task, navigate, load_clip
        self._use, self._observe, self._left = use, observe, task.budget
        self._shown_at = time.monotonic()
        self._system = system_prompt(navigate, rewrites=settings.agent.refinement == "text")
        self._search = SearchEnvironment(
            task, settings, search, self._load, observe, index_version, judge=self._judgement
        )
        self._film: FilmNavigation | None = None  # None: a video of one look
        self._trajectory: LongSearchTrajectory = Trajectory(task)

    async def reset(self) -> Observation | None:
        return await self._begin(await self._search.reset())

    async def step(self, reply: PolicyReply) -> Observation | None:
        film, began = self._film, self._shown_at
        if film is not None and not self._judges(reply, film):
            observation = await film.step(reply)
            self._left, self._shown_at = film.left, time.monotonic()
            if observation is not None:
                turn = film.trajectory().last
                turn.record.index_version = self._search.index_version
                self._add(turn)
                self._observe(film.called(turn.record, self.number))
                return observation
        seconds = time.monotonic() - began
        observation = await self._search.step(reply)
        judgement = self._search.trajectory().last
        if film is not None:
            follows = bool(self._trajectory.turns) and is_call(self._trajectory.last)
            judgement = replace(judgement, clips=film.shown, continues=follows, seconds=seconds)
        self._add(judgement)
        return await self._begin(observation)

    def trajectory(self) -> LongSearchTrajectory:
        return self._trajectory

    @property
    def number(self) -> int:
        """Return the turn of the search that is being played, from 1; its calls are part of it."""
        return self._search.number

    async def _load(self, video_id: str) -> Clip:
        self._clip = await self._load_clip(video_id)
        return self._clip

    async def _begin(self, observation: Observation | None) -> Observation | None:
        """Return what a turn of the search shows: the video, or where it is long the way into it."""
        self._film, self._shown_at = None, time.monotonic()
        if observation is None:
            self._trajectory.end_reason = self._search.trajectory().end_reason
            return None
        if self._clip.seconds <= self._settings.one_look_s:
            return observation
        task = NavigateTask(
            id=self._task.id, question_id=self._task.query_id, film=self._clip.video_id, seconds=self._clip.seconds,
            question=self._task.query, budget=self._left,
        )  # fmt: skip
        self._film = FilmNavigation(task, self._settings, self._use, self._system)
        return await self._film.reset()

    def _judges(self, reply: PolicyReply, film: FilmNavigation) -> bool:
        """Tell whether a reply judges a film; a match outside the frontier does not."""
        if reply.finish_reason == "length" or not parse_action(reply.text).is_answer:
            return False
        judgement = parse_reply(reply.text, self._clip.seconds)
        return judgement.verdict == film.bounded(judgement).verdict

    def _judgement(self, text: str, seconds: float) -> Judgement:
        judgement = parse_reply(text, seconds)
        return judgement if self._film is None else self._film.bounded(judgement)

    def _add(self, turn: Turn[Any]) -> None:
        self._trajectory.turns.append(replace(turn, number=len(self._trajectory.turns) + 1))
