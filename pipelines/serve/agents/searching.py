"""One search of the served agent: rankings, verdicts and calls as events, and the answer that is made of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from pipelines.serve.agents.playing import Playing, ReplyTo
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import LISTED, Moment, SearchAnswer, SearchBody, TurnTrace, moment_of
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.navigate.calls import Use
from vsr1.search.environment import LoadClip, Search, SearchEnvironment, SearchSettings
from vsr1.search.events import Judged, Refined, Retrieved, SearchEvent, TurnStarted
from vsr1.search.parse import last_element
from vsr1.search.record import Ranking, SearchTask, SearchTurn
from vsr1.search_then_navigate.environment import Called, SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask, judgements
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig


class Searching(Playing):
    """State of one search.

    A turn has at most 4 events and one for each token of its reply, so a search has at most
    `max_turns * (agent.max_new_tokens + 6) + 2`, in which no ranking is longer than `top_k`; where it navigates, each
    reply that calls a tool adds one event, and one for each of its tokens.

    Args:
        agent: as it was trained; the body may change its turns.
        navigate: how long videos are navigated; None: they are not.
    """

    def __init__(
        self,
        body: SearchBody,
        agent: AgentConfig,
        names: tuple[str, str, str],
        weight_version: int,
        limit_s: float,
        navigate: NavigateConfig | None = None,
    ) -> None:
        super().__init__(body, agent, names, weight_version, limit_s)
        self._body, self._navigate = body, navigate
        self._agent = agent.model_copy(update={"max_turns": body.max_turns or agent.max_turns})

    def events(
        self, search: Search, load_clip: LoadClip, reply_to: ReplyTo, use: Use | None = None
    ) -> AsyncGenerator[Event, None]:
        """Return the events of the search; iterate over them once, see `Playing`.

        Args:
            use: calls the tools, where long videos are navigated.
        """
        environment = self._environment(search, load_clip, use)
        return self._played(environment, lambda: environment.number, reply_to)

    def _environment(
        self, search: Search, load_clip: LoadClip, use: Use | None
    ) -> SearchEnvironment | SearchThenNavigateEnvironment:
        task = SearchTask(SampleId(self._id), self._id, self._body.query, exclude=self._body.exclude_ids or [])
        settings, navigate = SearchSettings.of(self._agent, self._body.top_k or LISTED), self._navigate
        if navigate is None or use is None:
            return SearchEnvironment(task, settings, search, load_clip, self._observe)
        budget = max(navigate.budgets) if self._budget is None else self._budget
        budgeted = LongSearchTask(**vars(task), budget=budget)
        return SearchThenNavigateEnvironment(budgeted, settings, navigate, search, load_clip, use, self._observe)

    def _end(self, trajectory: Trajectory[Any, Any], is_whole: bool) -> None:
        """Tell the moments and the whole answer."""
        turns = judgements(trajectory).turns
        rankings = [e for e in self._log.events if e["type"] == "retrieved"]
        moments = self._moments(turns[-1].record) if turns and is_whole else []
        answer = SearchAnswer(
            id=self._id,
            status="matched" if moments else "not_found" if is_whole else "partial",
            query=self._body.query,
            corpus=self._corpus,
            moments=moments,
            turns=[*map(self._finished, turns), *self._unfinished(len(turns) + 1)],
            usage=self._usage(trajectory.turns),
            model=self._model,
            weight_version=self._weight_version,
            index_version=rankings[0]["index_version"] if rankings else None,
        )
        for moment in moments:
            self._log.add({"type": "moment", **moment.model_dump()})
        self._log.add({"type": "done", "result": answer.model_dump()})

    def _moments(self, last: SearchTurn) -> list[Moment]:
        score = dict(last.retrieved)[last.video_id]
        is_enough = self._body.threshold is None or score >= self._body.threshold
        if last.verdict != "matched" or last.span is None or not is_enough:
            return []
        return [moment_of(self._body.query, self._corpus, last.video_id, last.span, score)]

    def _finished(self, turn: Turn[SearchTurn]) -> TurnTrace:
        record = turn.record
        return _trace(
            turn.number,
            record.video_id,
            _rows(record.retrieved),
            verdict=record.verdict,
            calls=self._calls(turn.number),
            reasoning=(last_element(turn.text, "think") or "").strip(),
            refined=None if record.retrieved_after is None else _rows(record.retrieved_after),
            seconds=turn.seconds,
        )

    def _unfinished(self, turn: int) -> list[TurnTrace]:
        """Return what is known of a turn that is in no trajectory yet, if it began."""
        events = {event["type"]: event for event in self._log.events if event["turn"] == turn}
        if "turn.started" not in events:
            return []
        video, ranking = events["turn.started"]["video_id"], events["retrieved"]["videos"]
        return [_trace(turn, video, ranking, calls=self._calls(turn))]

    def _observe(self, event: SearchEvent | Called) -> None:
        match event:
            case Retrieved(turn, ranking, version):
                self._tell("retrieved", turn, videos=_rows(ranking), index_version=version)
            case TurnStarted(turn, video):
                self._tell("turn.started", turn, video_id=video)
            case Judged(turn, video, verdict, span, _, seconds):
                self._tell("verdict", turn, video_id=video, verdict=verdict, span=span, seconds=seconds)
            case Refined(turn, before, after):
                self._tell("refined", turn, before=_rows(before), after=_rows(after))
            case Called():
                self._tell_call(event)


def _trace(turn: int, video_id: str, ranking: list[dict[str, Any]], **more: Any) -> TurnTrace:
    ids = [row["video_id"] for row in ranking]
    rank = ids.index(video_id) + 1 if video_id in ids else None
    return TurnTrace.model_validate({"turn": turn, "retrieved": ranking, "video_id": video_id, "rank": rank, **more})


def _rows(ranking: Ranking) -> list[dict[str, Any]]:
    return [{"video_id": video, "score": score} for video, score in ranking]
