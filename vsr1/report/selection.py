"""Which trajectories a report shows: some of every outcome that occurred, of as many queries as possible."""

from __future__ import annotations

from collections.abc import Callable

from vsr1.agent.trajectory import Trajectory
from vsr1.metrics.summary import refined_rank


def improved(trajectory: Trajectory) -> bool:
    """Refinement brought the right video closer to the top than the engine alone had it."""
    return refined_rank(trajectory) < trajectory.segments[0].gt_rank_before


def matched_right(trajectory: Trajectory) -> bool:
    """The agent accepted a video and it was the right one."""
    return trajectory.last.verdict == "matched" and trajectory.last.video_id == trajectory.gt_video


def matched_wrong(trajectory: Trajectory) -> bool:
    """The agent accepted a video and it was another one."""
    return trajectory.last.verdict == "matched" and trajectory.last.video_id != trajectory.gt_video


def not_found(trajectory: Trajectory) -> bool:
    """The agent accepted no video."""
    return trajectory.last.verdict != "matched"


OUTCOMES: dict[str, Callable[[Trajectory], bool]] = {
    "refined and improved": improved,
    "matched the right video": matched_right,
    "matched a wrong video": matched_wrong,
    "not found": not_found,
}


def outcomes(trajectory: Trajectory) -> list[str]:
    """Names of the outcomes that hold; only the first can hold beside another."""
    return [name for name, holds in OUTCOMES.items() if holds(trajectory)]


def pick_trajectories(trajectories: list[Trajectory], n: int) -> list[Trajectory]:
    """At most `n` different trajectories: the outcomes take turns, each giving its next one in the order of the list.

    With `n` of at least 4 every outcome that occurs is among them. A query not shown yet goes first, so that the
    samples of one GRPO group do not fill the page. The choice depends on the list alone.

    Raises:
        ValueError: `n` is negative, or a trajectory has no turn.
    """
    if n < 0:
        raise ValueError(f"pick_trajectories: n is {n}; it counts trajectories")
    for trajectory in trajectories:
        if not trajectory.segments:
            raise ValueError(f"pick_trajectories: the trajectory of query {trajectory.query_id!r} has no turn")
    waiting = [[index for index, item in enumerate(trajectories) if holds(item)] for holds in OUTCOMES.values()]
    picked: list[int] = []
    while len(picked) < n and any(waiting):
        for candidates in waiting:
            candidates[:] = [index for index in candidates if index not in picked]
            if not candidates or len(picked) == n:
                continue
            shown = {trajectories[index].query_id for index in picked}
            fresh = [index for index in candidates if trajectories[index].query_id not in shown]
            picked.append((fresh or candidates)[0])
    return [trajectories[index] for index in picked]
