"""Reasoning for the pairs of the pool, by rules or by a teacher model (data-eval.md §1.8, §2.2).

A pair ends as a row with a teacher's own words or as a named failure; no text stands in for a missing one. Each
finished row of a teacher model goes at once into a log under `.vsr1/`, so that a build that is killed goes on from
there; a row counts as long as the words put to the teacher, its sampling and the clip are the same. Failures are not
kept: the next build asks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.manifest import BuildError
from pipelines.data.records import reasoned_rows
from pipelines.data.teacher.prompts import MATCH_PROMPT, WRONG_PROMPT, teacher_prompt
from pipelines.data.teacher.task import Answer, Task
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import TeacherConfig
from vsr1.toy.world import load_events
from vsr1.video.clips import ClipFolder

TRAIN = "train"


@dataclass(frozen=True)
class TeacherOutcome:
    """`rows` in pool order; `failed` maps a pair's id to the reason; `ambiguous` pairs have no true label."""

    rows: list[dict[str, Any]]
    failed: dict[str, str]
    ambiguous: int


def check_teacher(folder: DatasetFolder, teacher: TeacherConfig) -> None:
    """See that the teacher's files are there, before the long work begins.

    Raises:
        BuildError: no events file for the rules, no checkpoint folder, or no key file.
    """
    if teacher.kind == "rules" and not folder.events(TRAIN).is_file():
        raise BuildError(
            f"{folder.events(TRAIN)} does not exist: data.teacher.kind=rules knows the toy corpus only; choose vllm or "
            "openai, leave 'train' out of data.splits, or bring prepared sft_data/ and grpo_data/"
        )
    if teacher.kind == "vllm" and not (teacher.folder and (teacher.folder / "config.json").is_file()):
        raise BuildError(f"data.teacher.folder={teacher.folder} is no checkpoint folder: it has no config.json")
    if teacher.kind == "openai" and teacher.key_file:
        if not teacher.key_file.is_file():
            raise BuildError(f"data.teacher.key_file={teacher.key_file} does not exist; put the API key there")
        if not teacher.key_file.read_text(encoding="utf-8").strip():
            raise BuildError(f"data.teacher.key_file={teacher.key_file} is empty; put the API key there")


def write_reasoning(
    folder: DatasetFolder, pool: list[dict[str, Any]], config: Config, progress: Callable[[str], None]
) -> TeacherOutcome:
    """Have every pair of the pool reasoned about, and write `sft_data/`'s reasoning and failures files.

    Ray must be running for `data.teacher.kind=vllm`.

    Raises:
        BuildError: more than `data.teacher.max_failed_fraction` of the pairs failed, the server refuses every request,
            a file of the teacher's is missing, or the log is damaged. What was finished is kept.
        ClipError: the clip of a pair is missing or damaged.
    """
    teacher = config.data.teacher
    check_teacher(folder, teacher)
    if teacher.kind == "rules":
        events = {video_id: shown for video_id, (shown, _) in load_events(folder.events(TRAIN)).items()}
        rows, ambiguous = reasoned_rows(pool, events, folder.events(TRAIN))
        outcome = TeacherOutcome(rows, {}, ambiguous)
        replies: dict[str, Answer] = {}
    else:
        # The moment is given in seconds of the video, so the teacher sees these, whatever clock the policy learns.
        clips = ClipFolder(folder.clips(TRAIN), "true_seconds")
        answers = _answers(folder, _tasks(pool, clips, config), clips, config, progress)
        replies = {pair_id: answer for pair_id, answer in answers.items() if answer["error"]}
        rows = [_row(pair, answers[pair["pair_id"]]) for pair in pool if pair["pair_id"] not in replies]
        failed = {pair["pair_id"]: replies[pair["pair_id"]]["error"] for pair in pool if pair["pair_id"] in replies}
        outcome = TeacherOutcome(rows, failed, 0)
    write_lines(failures_file(folder), [_failure(pair_id, replies[pair_id]) for pair_id in outcome.failed])
    _check_failures(folder, outcome.failed, len(pool), teacher.max_failed_fraction)
    write_lines(folder.reasoning(), outcome.rows)
    return outcome


def teacher_settings(teacher: TeacherConfig) -> list[Any]:
    """What decides a teacher's words beside the pair and the prompts; not where it is, nor how patient we are."""
    if teacher.kind == "rules":
        return [teacher.kind]
    prompts = [MATCH_PROMPT, WRONG_PROMPT]
    sampling = [teacher.max_tokens, teacher.temperature, teacher.top_p, teacher.seed]
    return [teacher.kind, str(teacher.folder), teacher.model, teacher.dtype, *sampling, *prompts]


def failures_file(folder: DatasetFolder) -> Path:
    """`reasoning_failures.train.jsonl`: one row a pair that got no reasoning, empty if there is none."""
    return folder.reasoning().with_name("reasoning_failures.train.jsonl")


def log_file(folder: DatasetFolder) -> Path:
    """Finished rows of teacher models, in the order in which they were finished."""
    return folder.root / ".vsr1" / "build" / "reasoning.jsonl"


def _tasks(pool: list[dict[str, Any]], clips: ClipFolder, config: Config) -> list[Task]:
    """What to ask about each pair, with a fingerprint over everything that its answer depends on."""
    settings = teacher_settings(config.data.teacher)
    shown = sorted({pair["top1_video_id"] for pair in pool})
    with ThreadPoolExecutor(config.data.decode_workers) as readers:
        hashes = dict(zip(shown, readers.map(lambda name: clips.read(name).content_hash, shown), strict=True))
    tasks = []
    for pair in pool:
        span = (pair["gt_start"], pair["gt_end"]) if pair["gold_label"] == "match" else None
        system, user = teacher_prompt(pair["query"], span)
        about = json.dumps([settings, system, user, hashes[pair["top1_video_id"]]])
        fingerprint = hashlib.sha256(about.encode()).hexdigest()
        tasks.append(Task(pair["pair_id"], pair["top1_video_id"], system, user, fingerprint))
    return tasks


def _answers(
    folder: DatasetFolder, tasks: list[Task], clips: ClipFolder, config: Config, progress: Callable[[str], None]
) -> dict[str, Answer]:
    """The answer about each pair, out of the log or from the teacher."""
    log = log_file(folder)
    earlier = _logged(log)
    answers = {
        task.pair_id: earlier[task.pair_id]["answer"]
        for task in tasks
        if earlier.get(task.pair_id, {}).get("fingerprint") == task.fingerprint
    }
    pending = {task.pair_id: task for task in tasks if task.pair_id not in answers}
    progress(f"teacher: {len(pending)} pairs to reason about, {len(answers)} kept")
    if not pending:
        return answers
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = _ask(list(pending.values()), clips, config)
    with log.open("a", encoding="utf-8") as kept, closing(asked):
        for number, answer in enumerate(asked, start=1):
            pair_id = answer["pair_id"]
            answers[pair_id] = answer
            if not answer["error"]:
                entry = {"pair_id": pair_id, "fingerprint": pending[pair_id].fingerprint, "answer": answer}
                kept.write(json.dumps(entry, ensure_ascii=False) + "\n")
                kept.flush()
            if number % 100 == 0:
                progress(f"teacher: {number} of {len(pending)} pairs answered")
    return answers


def _ask(tasks: list[Task], clips: ClipFolder, config: Config) -> Generator[Answer, None, None]:
    if config.data.teacher.kind == "vllm":
        from pipelines.data.teacher.vllm import ask_engines

        yield from ask_engines(tasks, clips, config.data.teacher, config.model.device)
    else:
        from pipelines.data.teacher.openai import ask_server

        yield from ask_server(tasks, clips, config.data.teacher)


def _logged(path: Path) -> dict[str, dict[str, Any]]:
    """Entries of earlier builds by pair, the last of each; a last line that was cut off is removed from the file."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    entries = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries[entry["pair_id"]] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} line {number} is not an entry of the log ({error}); remove that line") from error
    return entries


def _row(pair: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The fields that `reasoned_rows` writes, and the reply as it came."""
    return pair | {
        "model_label": pair["gold_label"],
        "model_reasoning": answer["reasoning"],
        "model_temporal_grounding": "N/A",
        "model_temporal_start": None,
        "model_temporal_end": None,
        "model_think": answer["think"],
        "model_finish_reason": answer["finish_reason"],
        "model_error": "",
        "parsed_ok": True,
        "model_gold_consistent": True,
        "model_raw_response": answer["raw"],
    }


def _failure(pair_id: str, answer: Answer) -> dict[str, str]:
    return {
        "pair_id": pair_id,
        "error": answer["error"],
        "model_finish_reason": answer["finish_reason"],
        "model_raw_response": answer["raw"],
    }


def _check_failures(folder: DatasetFolder, failed: dict[str, str], total: int, tolerated: float) -> None:
    if len(failed) <= tolerated * total:
        return
    named = "; ".join(f"{pair_id}: {reason}" for pair_id, reason in list(failed.items())[:3])
    raise BuildError(
        f"the teacher gave no reasoning for {len(failed)} of {total} pairs ({named}), all of them in "
        f"{failures_file(folder)}; build again to ask for these only, change the teacher, or raise "
        f"data.teacher.max_failed_fraction={tolerated}"
    )
