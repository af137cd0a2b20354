"""Reasoning for the pairs of the pool, by rules or by a teacher model (data-eval.md §1.8, §2.2).

A pair ends as a row with a teacher's own words or as a named failure; no text stands in for a missing one. Each
finished row of a teacher model goes at once into a journal under `.vsr1/`, so that a build that is killed goes on from
there; a row counts as long as the words put to the teacher, its sampling and the clip are the same. Failures are not
kept: the next build asks again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipelines.data.manifest import Announce, BuildError, Row, check_failures
from pipelines.data.records import reasoned_row, reasoned_rows
from pipelines.data.steps import open_journal, read_journal
from pipelines.data.teacher.prompts import MATCH_PROMPT, WRONG_PROMPT, Answer, Task, teacher_prompt
from vsr1.config import Config
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.digest import value_sha256
from vsr1.settings.data import DataConfig, TeacherConfig
from vsr1.toy.world import load_events
from vsr1.video.clips import ClipFolder
from vsr1.video.largest_clip import check_largest_clip


@dataclass(frozen=True)
class TeacherOutcome:
    """`rows` in pool order; `failed` maps a pair's id to the reason; `ambiguous` pairs have no true label."""

    rows: list[Row]
    failed: dict[str, str]
    ambiguous: int


def check_teacher(folder: DatasetFolder, data: DataConfig) -> None:
    """Check that the teacher's files are there, before the long work begins.

    Raises:
        BuildError: no events file for the rules, no checkpoint folder, or no key file.
        ConfigError: an engine cannot hold the largest clip of the teacher's processor.
    """
    teacher = data.teacher
    if teacher.kind == "rules" and not folder.events(TRAIN).is_file():
        raise BuildError(
            f"{folder.events(TRAIN)} does not exist: data.teacher.kind=rules knows the toy corpus only; choose vllm or "
            "openai, leave 'train' out of data.splits, or bring prepared sft_data/ and grpo_data/"
        )
    if teacher.kind == "vllm" and not (teacher.folder and (teacher.folder / "config.json").is_file()):
        raise BuildError(f"data.teacher.folder={teacher.folder} is no checkpoint folder: it has no config.json")
    if teacher.kind == "vllm" and teacher.folder:
        check_largest_clip(teacher.folder, data)
    key = teacher.key_file if teacher.kind == "openai" else None
    if key and not (key.is_file() and key.read_text(encoding="utf-8").strip()):
        problem = "is empty" if key.is_file() else "does not exist"
        raise BuildError(f"data.teacher.key_file={key} {problem}; put the API key there")


def write_reasoning(folder: DatasetFolder, pool: list[Row], config: Config, announce: Announce) -> TeacherOutcome:
    """Have every pair of the pool reasoned about, and write `sft_data/`'s reasoning and failures files.

    Ray must be running for `data.teacher.kind=vllm`.

    Raises:
        BuildError: more than `data.teacher.max_failed_fraction` of the pairs failed, the server refuses every request,
            a file of the teacher's is missing, or the journal is damaged. What was finished is kept.
        ClipError: the clip of a pair is missing or damaged.
    """
    teacher = config.data.teacher
    check_teacher(folder, config.data)
    rows: list[Row] = []
    failures, ambiguous = [], 0
    if teacher.kind == "rules":
        events = {video_id: shown for video_id, (shown, _) in load_events(folder.events(TRAIN)).items()}
        rows, ambiguous = reasoned_rows(pool, events, folder.events(TRAIN))
    else:
        # The moment is given in seconds of the video, so the teacher sees these, whatever clock the policy learns.
        clips = ClipFolder(folder.clips(TRAIN), "true_seconds")
        answers = _answers(folder, _tasks(pool, clips, config), clips, config, announce)
        for pair in pool:
            answer = answers[pair["pair_id"]]
            reply = {"model_finish_reason": answer["finish_reason"], "model_raw_response": answer["raw"]}
            if answer["error"]:
                failures.append({"pair_id": pair["pair_id"], "error": answer["error"]} | reply)
            else:
                rows.append(reasoned_row(pair, answer["reasoning"], answer["think"]) | reply)
    failed = {failure["pair_id"]: failure["error"] for failure in failures}
    write_lines(folder.reasoning_failures(), failures)
    check_failures(
        failed, len(pool), teacher.max_failed_fraction, "pairs got no reasoning from the teacher",
        f"all of them in {folder.reasoning_failures()}; build again to ask for these only, change the teacher, or "
        "raise data.teacher.max_failed_fraction",
    )  # fmt: skip
    write_lines(folder.reasoning(), rows)
    return TeacherOutcome(rows, failed, ambiguous)


def teacher_settings(teacher: TeacherConfig) -> list[Any]:
    """Return what decides a teacher's words beside pair and prompts; not where it is, nor how patient we are."""
    if teacher.kind == "rules":
        return [teacher.kind]
    sampling = [teacher.max_tokens, teacher.temperature, teacher.top_p, teacher.seed]
    return [teacher.kind, str(teacher.folder), teacher.model, teacher.dtype, *sampling, MATCH_PROMPT, WRONG_PROMPT]


def _tasks(pool: list[Row], clips: ClipFolder, config: Config) -> list[Task]:
    """Return what to ask about each pair, with a fingerprint over everything that its answer depends on."""
    settings = teacher_settings(config.data.teacher)
    names = sorted({pair["top1_video_id"] for pair in pool})
    with ThreadPoolExecutor(config.data.decode_workers) as readers:
        hashes = dict(zip(names, readers.map(lambda name: clips.read(name).content_hash, names), strict=True))
    tasks = []
    for pair in pool:
        span = (pair["gt_start"], pair["gt_end"]) if pair["gold_label"] == "match" else None
        system, user = teacher_prompt(pair["query"], span)
        fingerprint = value_sha256([settings, system, user, hashes[pair["top1_video_id"]]])
        tasks.append(Task(pair["pair_id"], pair["top1_video_id"], system, user, fingerprint))
    return tasks


def _answers(
    folder: DatasetFolder, tasks: list[Task], clips: ClipFolder, config: Config, announce: Announce
) -> dict[str, Answer]:
    """Return the answer about each pair, out of the journal or from the teacher."""
    journal = folder.reasoning_journal()
    earlier = read_journal(journal, "pair_id")
    answers: dict[str, Answer] = {
        task.pair_id: earlier[task.pair_id]["answer"]
        for task in tasks
        if earlier.get(task.pair_id, {}).get("fingerprint") == task.fingerprint
    }
    pending = {task.pair_id: task for task in tasks if task.pair_id not in answers}
    announce(f"teacher: {len(pending)} pairs to reason about, {len(answers)} kept")
    if not pending:
        return answers
    if config.data.teacher.kind == "vllm":
        from pipelines.data.teacher.vllm import ask_engines

        replies = ask_engines(list(pending.values()), clips, config.data.teacher, config.model.device)
    else:
        from pipelines.data.teacher.openai import ask_server

        replies = ask_server(list(pending.values()), clips, config.data.teacher)
    with open_journal(journal) as add, closing(replies):
        for number, answer in enumerate(replies, start=1):
            pair_id = answer["pair_id"]
            answers[pair_id] = answer
            if not answer["error"]:
                add({"pair_id": pair_id, "fingerprint": pending[pair_id].fingerprint, "answer": answer})
            if number % 100 == 0:
                announce(f"teacher: {number} of {len(pending)} pairs answered")
    return answers
