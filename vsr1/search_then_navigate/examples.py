"""Training examples of both: judgements as those of a search, calls as those of navigation."""

from __future__ import annotations

from collections.abc import Sequence

from vsr1.episode.trajectory import Trajectory
from vsr1.navigate.examples import navigate_examples
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.examples import trained_examples
from vsr1.search_then_navigate.record import LongSearchTrajectory, calls_of, is_judgement, judgements
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig


def long_search_examples(
    trajectories: Sequence[LongSearchTrajectory], credits: list[list[Credit]], stage: GrpoConfig, agent: AgentConfig
) -> list[Example]:
    """Return one example a judgement, then those of the calls, which are one where they follow each other.

    Args:
        credits: of the turns of each trajectory.
    """
    of_judgements, of_calls = list[list[Credit]](), list[list[Credit]]()
    for one, turns in zip(trajectories, credits, strict=True):
        pairs = list(zip(one.turns, turns, strict=True))
        of_judgements.append([credit for turn, credit in pairs if is_judgement(turn)])
        of_calls.append([credit for turn, credit in pairs if not is_judgement(turn)])
    searches = [judgements(one) for one in trajectories]
    calls = [Trajectory(one.task, calls_of(one)) for one in trajectories]
    return trained_examples(searches, of_judgements, stage, agent) + navigate_examples(calls, of_calls, stage)
