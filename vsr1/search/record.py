"""What is particular to the search environment in a trajectory: the task, and what each turn looked at and did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vsr1.episode.moments import Span, clamp_span, temporal_iou
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Trajectory, Turn

Verdict = Literal["matched", "not_matched", "unknown"]
EndReason = Literal["matched", "max_turns", "no_refinement", "corpus_exhausted", "lost"]
Ranking = list[tuple[str, float]]  # video and score, best first


@dataclass
class SearchTask:
    """One sample of one query, with what is known about its answer: nothing, when serving."""

    id: SampleId
    query_id: str
    query: str
    gt_video: str = ""
    gt_span: Span = (0.0, 0.0)  # seconds
    gt_duration: float = 0.0  # seconds, of the right video
    negatives: list[str] = field(default_factory=list)  # wrong videos that reward and retrieval loss compare with
    first_video: str | None = None  # shown in turn 1 instead of what the search finds
    exclude: list[str] = field(default_factory=list)  # videos that are never shown
    ends_when_lost: bool = False  # with the rejection of the right video, if that is not shown again


@dataclass
class SearchTurn:
    """A video that was shown, what the reply says of it, and the refined query if there was one."""

    video_id: str
    verdict: Verdict
    span: Span | None  # seconds
    retrieved: Ranking  # that this turn's video was taken from
    gt_rank_before: int  # rank of the right video in that ranking, 1 is best, nothing excluded; 0: there is none
    gt_rank_after: int | None  # rank after this turn's refinement, None without one
    index_version: str
    refined: bool = False  # by latents, which the refine token calls for, or in new words
    # For the retrieval reward: similarity of the query vector to the right video and to the negatives, before and after
    # this turn's refinement. None says that they were not asked for; an empty list says that there are no negatives.
    gt_score_before: float | None = None
    gt_score_after: float | None = None
    negative_scores_before: list[float] | None = None
    negative_scores_after: list[float] | None = None
    rewrite: str | None = None  # the query in new words, where refinement is by text
    retrieved_after: Ranking | None = None  # ranking after this turn's refinement, None without one
    ranks_by_depth: list[int] | None = None  # rank of the right video with the first k latents only, k = 1..N

    @property
    def lacks_refinement(self) -> bool:
        """Whether the reply leaves the query as it was without accepting the shown video, which would have ended it."""
        return not self.refined and self.verdict != "matched"


SearchTrajectory = Trajectory[SearchTask, SearchTurn]


def moment_iou(trajectory: SearchTrajectory) -> float:
    """Return the IoU of the last turn's span with the true moment, in 0..1 (`iou_r1` of data-eval.md §5).

    0 unless the last turn says "matched", gives a span and looked at the right video. The predicted span is clamped to
    the right video's duration; the true one is not.
    """
    task, last = trajectory.task, trajectory.last.record
    if last.verdict != "matched" or last.span is None or last.video_id != task.gt_video:
        return 0.0
    return temporal_iou(clamp_span(last.span, task.gt_duration), task.gt_span)


def latents_of(turn: Turn[SearchTurn]) -> int:
    """Return how many latents a turn's refinement has."""
    return len(turn.latents["query"]) if "query" in turn.latents else 0
