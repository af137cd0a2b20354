"""Searches that navigate: first their searches, then the whole episode again with the rankings that were recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.evaluation.replay.differences import Differs
from pipelines.evaluation.replay.navigation import NavigateStages
from pipelines.evaluation.replay.search import check_searches
from vsr1.episode.environment import Environment
from vsr1.episode.trajectory import Trajectory
from vsr1.navigate.calls import Use
from vsr1.retrieval.request import SearchRequest, SearchResult
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.environment import SearchSettings
from vsr1.search.examples import turn_example
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import is_judgement, judgements
from vsr1.video.clips import Clip


class LongSearchStages(NavigateStages):
    """The checks of a run of searches that navigate."""

    def _plays(self) -> dict[str, Callable[[Any], str]]:
        return {"retrieval": self._searches, **super()._plays()}

    def _searches(self, trajectory: Trajectory[Any, Any]) -> str:
        return check_searches(self._sources, judgements(trajectory), self._tolerances.score)

    def _environment(self, trajectory: Trajectory[Any, Any], use: Use) -> Environment[Any, Any]:
        """Return the environment with the recorded rankings and films, in their order."""
        records = [turn.record for turn in judgements(trajectory).turns]
        later = [record.retrieved_after for record in records if record.retrieved_after is not None]
        rankings, films = iter([records[0].retrieved, *later]), iter(record.video_id for record in records)

        async def search(request: SearchRequest) -> SearchResult:
            ranking = next(rankings, None)
            if ranking is None:
                raise Differs(f"the episode searches more than the {1 + len(later)} times that were recorded")
            scores = dict.fromkeys(request.scores_of, 0.0)
            return SearchResult(ranking, 0, scores, records[0].index_version, np.zeros(1, np.float32))

        async def load_clip(video: str) -> Clip:
            film = next(films, None)
            if film is None:
                raise Differs(f"the episode goes on after its last film, the {len(records)}th")
            return self._sources.shown(film)

        sources = self._sources
        settings = SearchSettings.of(sources.agent, sources.top_k)
        return SearchThenNavigateEnvironment(trajectory.task, settings, sources.config.navigate, search, load_clip, use)

    def _turn_example(self, trajectory: Trajectory[Any, Any], place: int, credit: Credit) -> Example:
        if not is_judgement(trajectory.turns[place]):
            return super()._turn_example(trajectory, place, credit)
        judged = sum(map(is_judgement, trajectory.turns[:place]))
        config = self._sources.config
        return turn_example(judgements(trajectory), judged, credit, config.grpo, self._sources.agent)
