"""What one rollout leaves behind: a list of segments, because every turn is a fresh prompt.

Token ids and log-probs are the engine's own; nothing is tokenised again afterwards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Verdict = Literal["matched", "not_matched", "unknown"]
Span = tuple[float, float]


@dataclass
class Segment:
    """One turn: a video shown, a reply sampled, and the refined query if there was one.

    `response_token_ids` holds the sampled tokens only, up to and including the refine token where one was sampled.
    """

    turn: int
    video_id: str
    clip_hash: str
    prompt_token_ids: list[int]
    response_token_ids: list[int]
    response_logprobs: list[float]
    text: str
    finish_reason: str
    verdict: Verdict
    span: Span | None  # seconds
    latents: np.ndarray | None  # [N, R] float32, as sampled
    noise: np.ndarray | None  # [N, R] float32 standard normal; latents are their means + sigma * noise
    retrieved: list[tuple[str, float]]  # ranking this turn's video was taken from, best first
    gt_rank_before: int  # rank of the right video in that ranking, 1 is best, nothing excluded; 0: there is none
    gt_rank_after: int | None  # rank after this turn's refinement, None without one
    index_version: str
    weight_version: int
    seconds: float
    # For the retrieval reward: similarity of the query vector to the right video and to the negatives, before and after
    # this turn's refinement. None says that they were not asked for; an empty list says that there are no negatives.
    gt_score_before: float | None = None
    gt_score_after: float | None = None
    negative_scores_before: list[float] | None = None
    negative_scores_after: list[float] | None = None
    rewrite: str | None = None  # the query in new words, where refinement is by text
    retrieved_after: list[tuple[str, float]] | None = None  # ranking after this turn's refinement, None without one
    ranks_by_depth: list[int] | None = None  # rank of the right video with the first k latents only, k = 1..N

    @property
    def refined(self) -> bool:
        """Whether the reply refines the query: by latents, which the refine token calls for, or in new words."""
        return self.latents is not None or self.rewrite is not None

    @property
    def lacks_refinement(self) -> bool:
        """Whether the reply leaves the query as it was without accepting the shown video, which would have ended it."""
        return not self.refined and self.verdict != "matched"


@dataclass
class FailedSample:
    """A sample without a score: never an answer of the policy, and never trained on."""

    query_id: str
    sample: int
    reason: str  # class of the error
    message: str


@dataclass
class Trajectory:
    """All segments of one sample of one query, its reward terms and why it ended."""

    query_id: str
    query: str
    gt_video: str
    gt_span: Span  # seconds
    gt_duration: float  # seconds, of the right video
    sample: int
    seed: int
    segments: list[Segment] = field(default_factory=list)
    end_reason: str = ""  # matched | max_turns | no_refinement | corpus_exhausted | lost
    terms: dict[str, float] = field(default_factory=dict)  # unweighted, by name
    turn_rewards: list[float] = field(default_factory=list)  # weighted, of each turn, the temporal IoU with the last
    turn_retrieval_rewards: list[float] = field(default_factory=list)  # what of each is for the refined query
    reward: float = 0.0

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain values for one JSON line; latents become nested lists."""
        row = asdict(self)
        for segment in row["segments"]:
            for name in ("latents", "noise"):
                segment[name] = None if segment[name] is None else segment[name].tolist()
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Trajectory:
        """Inverse of `to_json`."""
        segments = []
        for item in row["segments"]:
            arrays = {
                name: None if item[name] is None else np.asarray(item[name], np.float32)
                for name in ("latents", "noise")
            }
            span = None if item["span"] is None else (item["span"][0], item["span"][1])
            after = item.get("retrieved_after")
            rankings = {
                "retrieved": [(video, score) for video, score in item["retrieved"]],
                "retrieved_after": None if after is None else [(video, score) for video, score in after],
            }
            segments.append(Segment(**{**item, **arrays, **rankings, "span": span}))
        return cls(**{**row, "segments": segments, "gt_span": tuple(row["gt_span"])})
