"""One question about one long film: its calls as events, then the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from pipelines.serve.agents.playing import Playing, ReplyTo
from pipelines.serve.gateway.events import Event
from pipelines.serve.gateway.schema import AskAnswer, AskBody
from vsr1.episode.environment import Observation, PolicyReply
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Trajectory
from vsr1.navigate.calls import Use
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.files import Question
from vsr1.navigate.record import NavigateTask, spent
from vsr1.search_then_navigate.environment import Called
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import AgentConfig


class WatchedNavigation(NavigateEnvironment):
    """The navigation of one film, which tells its calls."""

    def __init__(
        self, task: NavigateTask, settings: NavigateConfig, use: Use, observe: Callable[[Called], None]
    ) -> None:
        super().__init__(task, settings, use)
        self._tell = observe

    @property
    def number(self) -> int:
        """Return the turn that is being played, from 1."""
        return len(self._trajectory.turns) + 1

    async def step(self, reply: PolicyReply) -> Observation | None:
        observation = await super().step(reply)
        turn = self._trajectory.last
        call = turn.record
        if call.status not in ("answered", "abstained"):
            span = None if call.node is None or call.node not in self._tree else self._tree.span(call.node)
            self._tell(Called(turn.number, self._task.film, call, span))
        return observation


class Asking(Playing):
    """State of one question.

    A turn has an event for its call and one for each token of its reply; there are at most as many turns as the budget
    has calls, `navigate.free_turns` more and the answer.

    Args:
        film: what is known of the film, as a question about it says.
    """

    def __init__(
        self,
        body: AskBody,
        film: Question,
        agent: AgentConfig,
        names: tuple[str, str, str],
        weight_version: int,
        limit_s: float,
        navigate: NavigateConfig,
    ) -> None:
        super().__init__(body, agent, names, weight_version, limit_s)
        self._navigate = navigate
        self._task = NavigateTask(
            id=SampleId(self._id),
            question_id=self._id,
            film=body.film,
            seconds=film.seconds,
            question=body.question,
            budget=max(navigate.budgets) if self._budget is None else self._budget,
            options=body.options or [],
            scenes=film.scenes,
        )

    def events(self, use: Use, reply_to: ReplyTo) -> AsyncGenerator[Event, None]:
        """Return the events of the question; iterate over them once, see `Playing`."""
        environment = WatchedNavigation(self._task, self._navigate, use, self._tell_call)
        return self._played(environment, lambda: environment.number, reply_to)

    def _end(self, trajectory: Trajectory[Any, Any], is_whole: bool) -> None:
        status = trajectory.end_reason if trajectory.end_reason in ("answered", "abstained") else "no_answer"
        answer = AskAnswer.model_validate(
            {
                "id": self._id,
                "status": status if is_whole else "partial",
                "question": self._task.question,
                "film": self._task.film,
                "corpus": self._corpus,
                "answer": trajectory.last.record.words if is_whole and status == "answered" else None,
                "calls": self._calls(),
                "budget": self._task.budget,
                "spent": spent(trajectory),
                "usage": self._usage(trajectory.turns),
                "model": self._model,
                "weight_version": self._weight_version,
            }
        )
        self._log.add({"type": "done", "result": answer.model_dump()})
