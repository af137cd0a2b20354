"""Rankings of the frozen engine, and training records out of them (data-eval.md §1.8, §1.9).

A ranking is exact, over the whole corpus; ties go to the smaller video id, as in the retrieval service. The records are
shown pairs, SFT conversations and GRPO prompts. All are pure functions of what they are given; the order of the queries
is kept. A pair without a true label or without reasoning gives no record: nothing is made up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipelines.data.manifest import BuildError, Manifest, Row, query_row, video_path
from vsr1.formats.annotations import Annotation
from vsr1.formats.dataset import DatasetFolder
from vsr1.search.prompts import assistant_text, format_seconds, user_text
from vsr1.toy.world import Event, find_queried, reasoning

QUERIES_AT_ONCE = 1024
BALANCE_SEED = 42
OPTIONS = ("<answer>matched</answer>", "<answer>not_matched</answer><REFINE>")


@dataclass(frozen=True)
class Hit:
    """A video in a query's ranking; `rank` starts at 1."""

    video_id: str
    score: float
    rank: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks the videos for one query: the best ones, best first, and the right one wherever it stands.

    Held as rows int32 [k] of `ids` and scores float32 [k], because a corpus has many queries.
    """

    annotation: Annotation
    ids: list[str]
    rows: np.ndarray
    scores: np.ndarray
    truth: Hit

    @property
    def best(self) -> list[Hit]:
        """Return the best videos."""
        hits = enumerate(zip(self.rows, self.scores, strict=True), start=1)
        return [Hit(self.ids[row], float(score), rank) for rank, (row, score) in hits]

    @property
    def top1(self) -> Hit:
        """Return the best video."""
        return Hit(self.ids[self.rows[0]], float(self.scores[0]), 1)

    def wrong(self, count: int) -> list[Hit]:
        """Return the `count` nearest wrong videos, or all wrong videos if there are fewer."""
        return [hit for hit in self.best if hit.video_id != self.truth.video_id][:count]


def rank_videos(manifest: Manifest, queries: np.ndarray, videos: np.ndarray, depth: int) -> list[Ranking]:
    """Rank the videos for each query, in annotation order, `depth` wrong videos deep at least.

    Args:
        queries: unit vectors, float32 [Nq, dim], in annotation order. videos: float32 [Nv, dim], by sorted id.
    """
    ids = list(manifest.videos)
    rows = {video_id: row for row, video_id in enumerate(ids)}
    rankings: list[Ranking] = []
    for first in range(0, len(manifest.annotations), QUERIES_AT_ONCE):
        scores_QV = queries[first : first + QUERIES_AT_ONCE] @ videos.T
        order_QV = np.argsort(-scores_QV, axis=1, kind="stable").astype(np.int32)
        annotations = manifest.annotations[first : first + QUERIES_AT_ONCE]
        for annotation, scores, order in zip(annotations, scores_QV, order_QV, strict=True):
            truth = rows[annotation.video]
            place = int(np.flatnonzero(order == truth)[0])
            best = order[: depth + 1].copy()  # a slice would hold the whole row
            right = Hit(annotation.video, float(scores[truth]), place + 1)
            rankings.append(Ranking(annotation, ids, best, scores[best], right))
    return rankings


def pool_rows(folder: DatasetFolder, manifest: Manifest, rankings: list[Ranking]) -> list[Row]:
    """Return two shown videos a query, one right and one wrong: its top-1, and for balance the other kind.

    Where the top-1 is wrong, the right video is added as pair `<qid>::gt`; where it is right, the best wrong one is.
    """
    pool = []
    for index, ranking in enumerate(rankings):
        annotation, top1_is_right = ranking.annotation, ranking.top1.video_id == ranking.truth.video_id
        other = ranking.wrong(1)[0] if top1_is_right else ranking.truth
        other_name = other.video_id if top1_is_right else "gt"
        for hit, name in ((ranking.top1, ranking.top1.video_id), (other, other_name)):
            row = _pool_row(folder, manifest, annotation, hit)
            pool.append({"pair_id": f"{annotation.qid}::{name}", "query_index": index} | row)
    return pool


def reasoned_rows(pool: list[Row], events: dict[str, list[Event]], events_file: Path) -> tuple[list[Row], int]:
    """Return pool rows with the rule-based teacher's reasoning, and how many pairs were left out.

    A wrong video that shows the queried events too has no true label: that pair is left out and counted.

    Args:
        events: by video id. events_file: where they were read, for the messages.

    Raises:
        BuildError: the events of a video are missing, or the moment of a query is not that of two of its events.
    """
    rows, ambiguous = [], 0
    for pair in pool:
        for video_id in (pair["top1_video_id"], pair["gt_video_id"]):
            if video_id not in events:
                raise BuildError(f"{events_file} has no events of video {video_id!r}; write the toy corpus again")
        queried = _queried(pair, events[pair["gt_video_id"]], events_file)
        shown = events[pair["top1_video_id"]]
        matched = pair["gold_label"] == "match"
        if not matched and find_queried(shown, queried) is not None:
            ambiguous += 1
            continue
        rows.append(reasoned_row(pair, reasoning(shown, queried, matched)))
    return rows, ambiguous


def reasoned_row(pair: Row, words: str, think: str = "") -> Row:
    """Return a row of the pool with a teacher's reasoning, under the published names."""
    return pair | {
        "model_label": pair["gold_label"],
        "model_reasoning": words,
        "model_temporal_grounding": "N/A",
        "model_temporal_start": None,
        "model_temporal_end": None,
        "model_think": think,
        "model_finish_reason": "stop",
        "model_error": "",
        "parsed_ok": True,
        "model_gold_consistent": True,
    }


def sft_records(reasoned: list[Row], pool: list[Row], system: str) -> list[Row]:
    """Return one conversation a reasoned pair, in order; `pool` names each query's top-1, of left out pairs too."""
    top1 = {row["query_index"]: row["top1_video_id"] for row in pool if row["top1_rank"] == 1}
    return [_sft_record(row, system, top1[row["query_index"]]) for row in reasoned]


def hard_negatives(rankings: list[Ranking], count: int) -> dict[str, list[str]]:
    """Return per query the nearest wrong videos, best first."""
    return {ranking.annotation.qid: [hit.video_id for hit in ranking.wrong(count)] for ranking in rankings}


def grpo_records(manifest: Manifest, rankings: list[Ranking], system: str, negatives: int) -> tuple[list[Row], Row]:
    """Return a row a query with its top-1, then missed queries again with the right video until both labels are equal.

    Returns:
        the rows and the content of `stats.minimal_top1.json`.
    """
    rows = [_grpo_record(manifest, ranking, system, negatives) for ranking in rankings]
    missed = [row for row in rows if row["label"] == "not_matched"]
    hits = len(rows) - len(missed)
    order = list(missed)
    random.Random(BALANCE_SEED).shuffle(order)
    added = [_with_right_video(order[i % len(order)]) for i in range(max(0, len(missed) - hits))]
    written = [{"problem_id": i} | row for i, row in enumerate([*rows, *added], start=1)]
    stats = {
        "rows_total": len(rows),
        "rows_written": len(written),
        "rows_matched": hits + len(added),
        "rows_not_matched": len(missed),
        "rows_matched_raw": hits,
        "rows_not_matched_raw": len(missed),
        "augment_target_match_ratio": 1.0,
        "augment_seed": BALANCE_SEED,
        "rows_augmented_gt_video_positive": len(added),
        "hard_negative_topk": negatives,
        "hard_negative_depth": min(negatives + 1, len(manifest.videos)),
        "hard_negative_avg_count": sum(len(row["hard_negative_ids"]) for row in rows) / len(rows),
    }
    return written, stats


def _pool_row(folder: DatasetFolder, manifest: Manifest, annotation: Annotation, hit: Hit) -> Row:
    query = query_row(annotation)
    video, truth = manifest.videos[hit.video_id], manifest.videos[annotation.video]
    start, end = annotation.time
    return {
        "qid": query["qid"],
        "query": query["query"],
        "query_pos_doc_id": query["pos_doc_id"],
        "fig_score": query["fig_score"],
        "top1_doc_id": hit.video_id,
        "top1_score": hit.score,
        "top1_rank": hit.rank,
        "gold_label": "match" if hit.video_id == annotation.video else "not_match",
        "top1_video_id": hit.video_id,
        "top1_video_path": video_path(folder, manifest.split, video),
        "top1_start": 0.0,
        "top1_end": video.duration,
        "top1_duration": video.duration,
        "gt_video_id": annotation.video,
        "gt_video_path": video_path(folder, manifest.split, truth),
        "gt_start": start,
        "gt_end": end,
        "gt_duration": end - start,  # of the moment, as in the published files
    }


def _queried(pair: Row, events: Sequence[Event], events_file: Path) -> tuple[Event, Event]:
    for first, second in pairwise(events):
        if (first.start, second.end) == (pair["gt_start"], pair["gt_end"]):
            return first, second
    raise BuildError(
        f"{events_file}: no two events of video {pair['gt_video_id']!r} run from {pair['gt_start']} to "
        f"{pair['gt_end']} s, the moment of query {pair['qid']!r}; write the toy corpus again"
    )


def _sft_record(row: Row, system: str, top1: str) -> Row:
    matched = row["gold_label"] == "match"
    span = (row["gt_start"], row["gt_end"]) if matched else None
    return {
        "qid": row["qid"],
        "query": row["query"],
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": user_text(row["query"]) + "<video>"},
            {"role": "assistant", "content": assistant_text(row["model_reasoning"], matched, span)},
        ],
        "videos": [f"{row['top1_video_id']}.npy"],
        "meta": {
            "source": "pairs_with_reasoning",
            "gold_label": "pos" if matched else "neg",
            "video_id": row["top1_video_id"],
            "query_pos_video_id": row["gt_video_id"],
            "pair_id": row["pair_id"],
            "episode_type": "T1",
            "num_negs": 0 if matched else 1,
            "top1_video_id": top1,
            "top1_gold_label": "pos" if top1 == row["gt_video_id"] else "neg",
        },
    }


def _grpo_record(manifest: Manifest, ranking: Ranking, system: str, negatives: int) -> Row:
    annotation, wrong = ranking.annotation, ranking.wrong(negatives)
    matched = ranking.top1.video_id == annotation.video
    return {
        "qid": annotation.qid,
        "problem": f"{system}\n\nQuery:\n{annotation.fig_desc}",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": list(OPTIONS),
        "solution": _matched_solution(annotation.time) if matched else OPTIONS[1],
        "path": f"{ranking.top1.video_id}.npy",
        "data_source": "Verified-Search-Minimal-Top1",
        "query": annotation.fig_desc,
        "gt_video": annotation.video,
        "gt_time": list(annotation.time),
        "gt_duration": manifest.videos[annotation.video].duration,
        "retrieved_video": ranking.top1.video_id,
        "label": "matched" if matched else "not_matched",
        "hard_negative_ids": [hit.video_id for hit in wrong],
        "hard_negative_scores": [hit.score for hit in wrong],
        "hard_negative_ranks": [hit.rank for hit in wrong],
        "is_augmented": False,
    }


def _with_right_video(row: Row) -> Row:
    return row | {
        "path": f"{row['gt_video']}.npy",
        "solution": _matched_solution(row["gt_time"]),
        "retrieved_video": row["gt_video"],
        "label": "matched",
        "is_augmented": True,
        "augmentation_type": "gt_video_positive",
        "source_label": "not_matched",
        "source_retrieved_video": row["retrieved_video"],
    }


def _matched_solution(time: Sequence[float]) -> str:
    start, end = (format_seconds(value) for value in time)
    return f"<answer>matched</answer><start>{start}</start><end>{end}</end><REFINE>"
