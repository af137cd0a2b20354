"""The HTML report of a run: one file with no script and no reference to anything outside it.

Every text is escaped; a content security policy in the page forbids what escaping might miss. A video whose frames
cannot be had is an error, not a gap in the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vsr1.agent.trajectory import Segment, Trajectory
from vsr1.metrics.summary import EvalSummary, refined_rank
from vsr1.report import curves
from vsr1.report.filmstrip import Thumbnail, thumbnails
from vsr1.report.metric_rows import METRIC_ROWS, cells
from vsr1.report.reply import Piece, pieces
from vsr1.report.selection import outcomes, pick_trajectories
from vsr1.report.timeline import Timeline, timeline

SHOWN_TRAJECTORIES = 10
SHOWN_RETRIEVED = 5

Frames = Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Turn:
    """What the page shows of one segment."""

    segment: Segment
    right: bool  # the video shown is the right one
    correct: bool  # the verdict is
    film: list[Thumbnail]
    axis: Timeline
    reply: list[Piece]
    retrieved: list[tuple[int, str, float]]  # rank from 1, video, score


@dataclass(frozen=True)
class Episode:
    """What the page shows of one trajectory."""

    trajectory: Trajectory
    outcomes: list[str]
    first_rank: int
    last_rank: int
    turns: list[Turn]


def write_report(
    out: Path,
    *,
    title: str,
    settings: dict[str, str],
    scalars: list[dict[str, Any]],
    evaluations: dict[str, dict[str, Any]],
    trajectories: list[Trajectory],
    frames: Frames,
) -> None:
    """Write the page to `out`, whose folder is made if missing.

    Args:
        settings: what the run was started with, shown as given.
        scalars: rows of `runlog.read_scalars`.
        evaluations: label ("before GRPO", …) to `EvalSummary.to_json`, in the order of the columns.
        trajectories: `SHOWN_TRAJECTORIES` of them are shown, see `pick_trajectories`; may be empty.
        frames: video id to (frames [T, H, W, 3] uint8 RGB, frame times [T] in seconds); its errors pass through.

    Raises:
        ValueError: unusable frames, or a trajectory without a turn.
        pydantic.ValidationError: an evaluation that is not an `EvalSummary`.
    """
    summaries = {label: EvalSummary.from_json(row) for label, row in evaluations.items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        settings=settings,
        summaries=summaries,
        groups=[
            (group, [(row, cells(row, summaries.values())) for row in rows])
            for group, rows in groupby(METRIC_ROWS, key=lambda row: row.group)
        ],
        stages=curves.curves_by_stage(scalars),
        chart=curves,
        episodes=[_episode(item, frames) for item in pick_trajectories(trajectories, SHOWN_TRAJECTORIES)],
        trajectory_count=len(trajectories),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")


def _episode(trajectory: Trajectory, frames: Frames) -> Episode:
    return Episode(
        trajectory=trajectory,
        outcomes=outcomes(trajectory),
        first_rank=trajectory.segments[0].gt_rank_before,
        last_rank=refined_rank(trajectory),
        turns=[_turn(trajectory, segment, frames) for segment in trajectory.segments],
    )


def _turn(trajectory: Trajectory, segment: Segment, frames: Frames) -> Turn:
    pixels, seconds = frames(segment.video_id)
    film = thumbnails(segment.video_id, pixels, seconds)
    right = segment.video_id == trajectory.gt_video
    return Turn(
        segment=segment,
        right=right,
        correct=segment.verdict == ("matched" if right else "not_matched"),
        film=film,
        axis=timeline(trajectory, segment, seconds),
        reply=pieces(segment.text),
        retrieved=[
            (rank, video, score) for rank, (video, score) in enumerate(segment.retrieved[:SHOWN_RETRIEVED], start=1)
        ],
    )
