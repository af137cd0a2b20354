"""The trajectories of a run: JSON lines, and beside them their latents as float16 in binary.

    train_trajectories.jsonl     one line a trajectory; a turn's latents are [first number, rows, columns] of
    train_trajectories.latents   little-endian float16, one array after another

Latents are written before the line that names them, so a run that was killed at any byte leaves whole lines with whole
latents, then perhaps a piece of a line, which is not read and is cut off before the next is written. Prompt tokens are
stored in runs, `[id, count]` where an id repeats: a video's placeholders are most of a prompt. Log-probs and scores are
float32, as they were computed. The noise on latents is not stored: it follows from a turn's seed.

A row holds more than its trajectory: of a training its step and the advantages of its turns, of an evaluation the
fingerprint of its settings. Lines of version 0.1 (`segments`, latents as JSON lists) are read too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Trajectory, Turn
from vsr1.formats.atomic import cut_torn_line, replacing
from vsr1.navigate.record import NavigateTask, NavigateTurn
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn
from vsr1.search_then_navigate.record import LongSearchTask
from vsr1.video.clips import ClipReference

LATENTS = ".latents"
STORED = np.dtype("<f2")
_SHARED_WITH_SEGMENTS = (
    "prompt_token_ids", "response_token_ids", "response_logprobs", "text", "finish_reason", "weight_version", "seconds",
)  # fmt: skip
_RESULTS = ("end_reason", "terms", "turn_rewards", "turn_latent_rewards", "reward")
_TERMS = ("turn_terms", "weights")  # which logs of before 0.3 do not have
_RANKINGS = ("retrieved", "retrieved_after")
_SCORES = ("negative_scores_before", "negative_scores_after")


class TrajectoryLogError(ValueError):
    """A line that is not a trajectory; the message names the file and the line."""


@dataclass(frozen=True, eq=False)
class LoggedTrajectory:
    trajectory: SearchTrajectory  # or a `NavigateTrajectory`, which a reader tells by its task
    step: int = 0  # 0 in an evaluation
    credits: list[Credit] | None = None  # of the turns, as they were trained on; None in an evaluation
    fingerprint: str = ""  # of an evaluation's settings


def append_trajectories(path: Path, logged: Iterable[LoggedTrajectory]) -> None:
    """Add trajectories to a log, after cutting off what a killed run left of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_torn_line(path)
    with path.with_suffix(LATENTS).open("ab") as latents:
        rows = [_row(entry, latents) for entry in logged]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)


def write_trajectories(path: Path, logged: Iterable[LoggedTrajectory]) -> None:
    """Write a log anew; a kill leaves the one that was there, this one, or none."""
    with replacing(path) as part, replacing(path.with_suffix(LATENTS)) as latents:
        with latents.open("wb") as numbers, part.open("w", encoding="utf-8") as file:
            for entry in logged:
                file.write(_line(_row(entry, numbers)))
        path.unlink(missing_ok=True)  # a kill between the two must not leave old lines beside new latents


def read_log(path: Path) -> Iterator[LoggedTrajectory]:
    """Yield the trajectories of a log in order; latents stay on disk until they are looked at.

    Raises:
        TrajectoryLogError: a line that is not a trajectory, or names latents that are not there.
    """
    stored = path.with_suffix(LATENTS)
    has_latents = stored.is_file() and stored.stat().st_size >= STORED.itemsize
    latents = np.memmap(stored, STORED, "r") if has_latents else np.zeros(0, STORED)
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield _logged(json.loads(line), latents)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TrajectoryLogError(
                    f"{path}:{number}: not a trajectory ({error!r}); delete the line to go on"
                ) from error


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def _row(entry: LoggedTrajectory, latents: BinaryIO) -> dict[str, Any]:
    trajectory = entry.trajectory
    row: dict[str, Any] = {"step": entry.step}
    if entry.credits is not None:
        row["advantages"] = [asdict(credit) for credit in entry.credits]
    if entry.fingerprint:
        row["fingerprint"] = entry.fingerprint
    turns = [_turn_row(turn, latents) for turn in trajectory.turns]
    rest = {name: getattr(trajectory, name) for name in (*_RESULTS, *_TERMS)}
    return row | {"task": asdict(trajectory.task), "turns": turns} | rest


def _turn_row(turn: Turn[SearchTurn], latents: BinaryIO) -> dict[str, Any]:
    places = {}
    for name, values in turn.latents.items():
        if latents.seek(0, 2) % STORED.itemsize:  # a kill cut a number in half
            latents.write(b"\0")
        places[name] = [latents.tell() // STORED.itemsize, *values.shape]
        latents.write(np.ascontiguousarray(values, STORED).tobytes())
    row = vars(turn) | {
        "clips": [[clip.video_id, clip.content_hash] for clip in turn.clips],
        "prompt_token_ids": _runs(turn.prompt_token_ids),
        "response_logprobs": [_short(value) for value in turn.response_logprobs],
        "record": _record_row(turn.record),
        "latents": places,
    }
    return {name: value for name, value in row.items() if value is not None}


def _record_row(record: SearchTurn | NavigateTurn) -> dict[str, Any]:
    row = asdict(record)
    if isinstance(record, NavigateTurn):
        return row
    for name in _RANKINGS:
        if row[name] is not None:
            row[name] = [(video, _short(score)) for video, score in row[name]]
    for name in _SCORES:
        if row[name] is not None:
            row[name] = [_short(score) for score in row[name]]
    return row


def _short(value: float) -> float:
    """Return the number with the fewest digits that is the same as float32."""
    return float(str(np.float32(value)))


def _logged(row: dict[str, Any], latents: np.ndarray) -> LoggedTrajectory:
    advantages = row.get("advantages")
    return LoggedTrajectory(
        _earlier_trajectory(row) if "segments" in row else _trajectory(row, latents),
        row.get("step", 0),
        None if advantages is None else [Credit(**turn) for turn in advantages],
        row.get("fingerprint", ""),
    )


def _trajectory(row: dict[str, Any], latents: np.ndarray) -> SearchTrajectory:
    task: Any = row["task"]
    results = {name: row[name] for name in _RESULTS} | {name: row[name] for name in _TERMS if name in row}
    if "question_id" in task:
        turns = [_turn(turn, latents, _navigate_record) for turn in row["turns"]]
        return Trajectory(_navigate_task(task), turns, **results)
    kind = LongSearchTask if "budget" in task else SearchTask
    task = kind(**{**task, "id": SampleId(**task["id"]), "gt_span": tuple(task["gt_span"])})
    turns = [_turn(turn, latents, _navigate_record if "status" in turn["record"] else None) for turn in row["turns"]]
    return Trajectory(task, turns, **results)


def _navigate_task(row: dict[str, Any]) -> Any:
    clues = [tuple(span) for span in row["clues"]]
    return NavigateTask(**{**row, "id": SampleId(**row["id"]), "clues": clues})


def _navigate_record(row: dict[str, Any]) -> Any:
    node = None if row["node"] is None else tuple(row["node"])
    return NavigateTurn(**{**row, "node": node, "nodes": [tuple(found) for found in row["nodes"]]})


def _turn(
    row: dict[str, Any], latents: np.ndarray, record: Callable[[dict[str, Any]], Any] | None = None
) -> Turn[SearchTurn]:
    arrays = {}
    for name, (start, *shape) in row["latents"].items():
        arrays[name] = latents[start : start + int(np.prod(shape))].reshape(shape)
    prompt: list[int] = []
    for run in row["prompt_token_ids"]:
        prompt += [run] if isinstance(run, int) else [run[0]] * run[1]
    logprobs = [float(np.float32(value)) for value in row["response_logprobs"]]
    clips = [ClipReference(*clip) for clip in row["clips"]]
    parts = {"clips": clips, "prompt_token_ids": prompt, "response_logprobs": logprobs, "latents": arrays}
    return Turn(**{**row, **parts, "record": (record or _record)(row["record"])})


def _record(row: dict[str, Any]) -> SearchTurn:
    values = dict(row)
    for name in _RANKINGS:
        if values.get(name) is not None:
            values[name] = [(video, float(np.float32(score))) for video, score in values[name]]
    for name in _SCORES:
        if values.get(name) is not None:
            values[name] = np.asarray(values[name], np.float32).tolist()
    if values["span"] is not None:
        values["span"] = tuple(values["span"])
    return SearchTurn(**values)


def _runs(ids: list[int]) -> list[int | tuple[int, int]]:
    runs = ((token, len(list(group))) for token, group in groupby(ids))
    return [token if count == 1 else (token, count) for token, count in runs]


def _earlier_trajectory(row: dict[str, Any]) -> SearchTrajectory:
    """Return a trajectory that a version before 0.2 logged; its group is its query, and noise is not read."""
    task = SearchTask(
        id=SampleId(row["query_id"], row["sample"]),
        **{name: row[name] for name in ("query_id", "query", "gt_video", "gt_duration")},
        gt_span=tuple(row["gt_span"]),
    )
    turns = []
    for segment in row["segments"]:
        arrays = {} if segment["latents"] is None else {"query": np.asarray(segment["latents"], np.float32)}
        record = {name: segment[name] for name in SearchTurn.__dataclass_fields__ if name in segment}
        turns.append(
            Turn(
                number=segment["turn"],
                clips=[ClipReference(segment["video_id"], segment["clip_hash"])],
                seed=row["seed"] + segment["turn"],
                record=_record(record | {"refined": bool(arrays) or segment.get("rewrite") is not None}),
                latents=arrays,
                **{name: segment[name] for name in _SHARED_WITH_SEGMENTS},
            )
        )
    results = {name: row[name] for name in _RESULTS if name in row}
    return Trajectory(task, turns, turn_latent_rewards=row.get("turn_retrieval_rewards", []), **results)
