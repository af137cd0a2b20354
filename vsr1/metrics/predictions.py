"""Prediction files: one JSON line a query, in the published evaluator's field names (data-eval.md §4.4) plus ours.

Its files can be read as well as ours. A line that cannot be read never hides the others: it becomes a named problem.
What can be worked out again from other fields (flags, overlaps, copies of a turn's values) is recorded but never
trusted; `vsr1.metrics.rescoring` compares it. Declared here is what a metric reads; every other field of a row is kept
as it is, and not checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vsr1.episode.moments import Span
from vsr1.formats.rows import json_rows
from vsr1.search.record import Verdict

Rank = Annotated[int, Field(ge=1)]  # of the right video among all videos, 1 is best
# Tuples take JSON's lists, what is in them is as strict as the rest.
Scored = Annotated[tuple[str, float], Field(strict=False)]  # video, score
RankedMoment = Annotated[tuple[str, float, float, float], Field(strict=False)]  # video, start and end in s, score


# Where a field of a turn is found in an older row: the first of these that is there.
_OLDER_NAMES = {
    "rank": ("orig_rank", "final_rank", "rank"),
    "policy_rank": ("final_rank", "rank"),
    "top1_doc_id": ("final_top1_doc_id", "top1_doc_id"),
    "answer": ("final_answer", "answer"),
    "pred_start": ("final_pred_start", "pred_start"),
    "pred_end": ("final_pred_end", "pred_end"),
    "iou_raw": ("final_iou_raw",),
    "iou_r1": ("final_iou_r1", "final_iou_raw", "final_iou", "iou_r1", "iou"),
}


class PredictionError(ValueError):
    """A prediction or ground-truth file that cannot be used; the message names file, place and fix."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row: nothing that stops the others from being read."""

    query: str  # qid, "index 7" without one, "" where the line does not tell
    field: str
    message: str
    line: int | None = None  # of the file, from 1

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line else []
        return ": ".join([*place, *filter(None, (self.query, self.field)), self.message])


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class TurnRow(_Row):
    """One turn: what was looked at, what was said, and the ranking before and after its refinement; times in s."""

    turn: int
    rank: Rank
    policy_rank: Rank  # after this turn's refinement, `rank` without one
    top1_doc_id: str | None  # the video looked at; in sequential runs see `looked_at`
    top1_is_gt: bool | None = None
    selected_doc_id_for_generation: str | None = None
    policy_top1_doc_id: str | None = None  # first of the ranking that `policy_rank` is in
    policy_top1_is_gt: bool | None = None
    answer: Verdict
    time_parse_ok: bool | None = None
    pred_start: float | None = None
    pred_end: float | None = None
    iou_raw: float | None = None
    iou_r1: float | None = None
    refine_token_generated: bool | None = None
    refine_applied: bool | None = None
    profile_policy_rank_by_depth: dict[str, Rank] | None = None  # "1".."N" latents
    # Ours in addition.
    text_tokens: int | None = None  # sampled, the refine token included, latents not
    latent_tokens: int | None = None
    seconds: float | None = None
    retrieved: list[Scored] | None = None  # the ranking this turn's video was taken from, best first

    @property
    def looked_at(self) -> str | None:
        """Return the video that the verdict is about: the one selected in a sequential run, else the first one."""
        return self.selected_doc_id_for_generation or self.top1_doc_id

    @property
    def span(self) -> Span | None:
        """Return the predicted span in seconds."""
        return None if self.pred_start is None or self.pred_end is None else (self.pred_start, self.pred_end)


class PredictionRow(_Row):
    """One query; a failed one has no turns, and counts as a failure wherever queries are counted."""

    index: int | None = None  # position in the split
    qid: str | None = None
    query: str = ""
    gt_pos_doc_id: str | None = None
    gt_start: float | None = None
    gt_end: float | None = None
    orig_rank: Rank | None = None
    final_rank: Rank | None = None
    matched_turn: int | None = None  # 0: never
    stop_reason: str | None = None
    used_refine_any: bool | None = None
    refine_token_generated_turns: int | None = None
    refine_applied_turns: int | None = None
    max_turn: int | None = None
    turns: list[TurnRow] = []
    # Ours in addition.
    status: Literal["ok", "failed"] = "ok"
    reason: str | None = None  # why it failed: a class of error, or a skip of the published evaluator
    message: str | None = None
    gt_duration: float | None = None
    corpus_size: int | None = None  # videos searched
    text_tokens: int | None = None
    latent_tokens: int | None = None
    seconds: float | None = None
    end_reason: str | None = None
    fingerprint: str | None = None  # of the settings it was made with
    ranked_moments: list[RankedMoment] | None = None  # best first
    older: bool = False  # made from the flat fields of a row without turns

    @property
    def name(self) -> str:
        """Return what messages call the query."""
        return f"index {self.index}" if self.qid is None else f"qid {self.qid}"

    @property
    def gt_span(self) -> Span | None:
        """Return the true span in seconds."""
        return None if self.gt_start is None or self.gt_end is None else (self.gt_start, self.gt_end)

    @model_validator(mode="before")
    @classmethod
    def _one_turn(cls, row: Any) -> Any:
        """Make a turn of the flat fields of an older row, which has no turns, by the fallbacks of data-eval.md §5.1."""
        if not isinstance(row, dict) or "turns" in row or row.get("status") == "failed":
            return row
        turn: dict[str, Any] = {"turn": 1}
        for field, names in _OLDER_NAMES.items():
            turn[field] = next((row[name] for name in names if row.get(name) is not None), None)
        turn["answer"] = turn["answer"] or "unknown"
        rank = turn["policy_rank"]
        rest = {name: value for name, value in row.items() if not name.startswith(("turn1_", "final_"))}
        return rest | {"final_rank": rank, "older": True, "turns": [turn] if rank is not None else []}

    @model_validator(mode="after")
    def _whole(self) -> PredictionRow:
        needed = ["qid"] if self.index is None else []
        if self.status == "ok":
            needed += ["gt_pos_doc_id", "orig_rank", "final_rank", "turns"]
            needed += [] if self.older else ["gt_start", "gt_end"]
        elif self.turns:
            raise _fault("turns", "a failed query has none")
        for name in needed:
            if not getattr(self, name) and getattr(self, name) != 0:
                raise _fault(name, "missing")
        for number, turn in enumerate(self.turns, start=1):
            if turn.turn != number:
                raise _fault(f"turns.{number - 1}.turn", f"{turn.turn}, but it is turn {number} of the list")
            for rank in (turn.rank, turn.policy_rank):
                if self.corpus_size is not None and rank > self.corpus_size:
                    raise _fault(
                        f"turn {number}", f"rank {rank} is outside 1..{self.corpus_size}, the videos that were searched"
                    )
        return self


def _fault(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("row", "{field}: {message}", {"field": field, "message": message})


def read_predictions(path: Path) -> tuple[list[PredictionRow], list[Problem]]:
    """Read the rows of a JSON-lines file, ours or the published evaluator's, and say what is wrong with the rest.

    A line that is cut off or not as declared is left out; of two rows of one query (qid, else index) the last counts,
    as in the published evaluator. Each is a problem.

    Raises:
        PredictionError: no such file, or not one readable row.
    """
    if not path.is_file():
        raise PredictionError(f"prediction file {path} does not exist; `vsr1 eval` writes one")
    rows: dict[str, tuple[int, PredictionRow]] = {}
    problems: list[Problem] = []
    for place, line in json_rows(path, PredictionError):
        number = int(place.split()[1])
        try:
            row = PredictionRow.model_validate_json(line)
        except ValidationError as error:
            problems += [_problem(number, line, item) for item in error.errors()]
            continue
        if row.name in rows:
            earlier = rows.pop(row.name)[0]
            problems.append(Problem(row.name, "qid", f"also on line {earlier}; this line, the last, counts", number))
        rows[row.name] = number, row
    if not rows:
        fault = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ": it is empty"
        raise PredictionError(f"prediction file {path} has no row that can be read{fault}")
    return [row for _, row in rows.values()], problems


def _problem(number: int, line: bytes, item: Mapping[str, Any]) -> Problem:
    qid = re.search(rb'"qid"\s*:\s*"([^"]*)"', line)
    query = f"qid {qid.group(1).decode('utf-8', 'replace')}" if qid else ""
    if item["type"] == "json_invalid":
        return Problem(query, "whole line", f"{item['msg']}; was the file cut off?", number)
    if item["type"] == "row":
        return Problem(query, item["ctx"]["field"], item["ctx"]["message"], number)
    return Problem(query, ".".join(map(str, item["loc"])) or "whole line", item["msg"], number)
