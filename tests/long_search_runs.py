"""A run of searches that navigate as its stages leave it: two evaluations and a step of training, of scripted replies.

The corpus of each split has a long film a query and one short video; queries and videos are vectors without meaning, so
wrong videos are retrieved too, and a rejection searches again in other words.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from navigate_runs import Ids, letters, spoken, tools, write_run
from navigation import Spoken, call

from pipelines.evaluation.replay.search import LocalSearch
from vsr1.config import Config
from vsr1.episode.environment import Prompt, run_episode
from vsr1.episode.sample import SampleId
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.prompts import name_of
from vsr1.navigate.tree import ClipTree
from vsr1.retrieval.corpus import open_corpus
from vsr1.retrieval.request import QueryEmbedder
from vsr1.search.environment import SearchSettings
from vsr1.search_then_navigate.environment import SearchThenNavigateEnvironment
from vsr1.search_then_navigate.record import LongSearchTask, LongSearchTrajectory
from vsr1.toy.long_corpus import LongFilms, write_long_corpus
from vsr1.toy.long_films import LongFilm
from vsr1.video.clips import Clip, ClipFolder, ClipMeta, write_clip, write_meta
from vsr1.video.decode import SampledVideo

SHORT = "-short"  # ends the name of a video of one look
SIZES = {"train": 1, "test": 2}  # films
_LEFT = re.compile(r"Left: (\d+)")


class Scattered:
    """Embeds a text as a vector that only its letters decide."""

    dim = 16
    fingerprint = "scattered"

    def embed_queries(self, queries: list[str], soft_tokens: Any = None) -> np.ndarray:
        """Return unit vectors, float32 [n, dim]."""
        rows = [np.random.default_rng(list(query.encode())).normal(size=self.dim) for query in queries]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def write_long_search_run(
    folder: Path, *, ids: Ids = letters, embedder: QueryEmbedder | None = None, **values: Any
) -> Config:
    """Write a dataset, and a run over it with evaluations `before` and `after`; return its configuration."""
    config = Config.model_validate(
        {
            "environment": "search_then_navigate",
            "run_dir": folder / "run",
            "data": {"root": folder / "data", "splits": tuple(SIZES), "teacher": {"kind": "none"}},
            "agent": {"refinement": "text", "max_turns": 3},
            "navigate": {"budgets": [4, 6], "eval_budgets": [2, 6], "pools": {"frames": 4}, "toy_minutes": [10]},
            "grpo": {"group_size": 3, "negatives": 1},
        }
        | values
    )
    dataset, embedder = DatasetFolder(config.data.root), embedder or Scattered()
    write_long_corpus(dataset, SIZES, config.navigate, 0)
    for split in SIZES:
        _write_corpus(dataset, split, embedder.dim)

    def play(split: str, task: LongSearchTask, knows: bool, careless: bool) -> LongSearchTrajectory:
        return played(config, split, task, ids, embedder, knows, careless)

    return write_run(config, play, prompts=1)


def _write_corpus(folder: DatasetFolder, split: str, dim: int) -> None:
    films = list(LongFilms.of_split(folder, split, 4).films.values())
    short = split + SHORT
    shown = {short: films[0].clip((1, 1, 1), 4), **{film.film: film.clip((), 4) for film in films}}
    lengths = {film.film: float(film.seconds) for film in films} | {short: 20.0}
    rows = [_clip_row(folder.clips(split), video, clip, lengths[video]) for video, clip in shown.items()]
    write_meta(folder.clips(split), rows)
    for path in (folder.video_embeddings(split), folder.query_meta(split), folder.annotations(split)):
        path.parent.mkdir(parents=True, exist_ok=True)
    np.save(folder.video_embeddings(split), np.random.default_rng(3).normal(size=(len(shown), dim)).astype(np.float32))
    folder.docid2row(split).write_text(json.dumps({video: row for row, video in enumerate(shown)}))
    annotations = [_annotation(film, number) for number, film in enumerate(films, start=1)]
    write_lines(folder.annotations(split), annotations)
    write_lines(folder.query_meta(split), [{"qid": f"{row['desc_id']}_fig"} for row in annotations])
    if split == "train":
        folder.grpo_records().parent.mkdir(parents=True, exist_ok=True)
        write_lines(folder.grpo_records(), [_record(film) for film in films])


def _clip_row(folder: Path, video: str, clip: Clip, length: float) -> ClipMeta:
    numbers = list(range(len(clip.frames)))
    times = length * (np.array(numbers) + 0.5) / len(numbers)
    sampled = SampledVideo(clip.frames, times, numbers, len(numbers), length, 1.0, numbers, False, len(numbers))
    return write_clip(folder, video, sampled, source=Path(f"{video}.mp4"), target_fps=1, max_frames=4)


def _annotation(film: LongFilm, number: int) -> dict[str, Any]:
    [clue] = film.task(SampleId("")).clues
    return {
        "video": film.film, "time": list(clue), "desc_id": number, "duration": film.seconds, "cog_desc": film.query,
        "fig_desc": film.query, "fig_desc_score": 1.0,
    }  # fmt: skip


def _record(film: LongFilm) -> dict[str, Any]:
    [clue] = film.task(SampleId("")).clues
    return {
        "qid": film.film, "query": film.query, "gt_video": film.film, "gt_time": list(clue),
        "gt_duration": film.seconds, "hard_negative_ids": ["train-short"], "is_augmented": False,
        "retrieved_video": "train-short",
    }  # fmt: skip


def played(
    config: Config, split: str, task: LongSearchTask, ids: Ids, embedder: QueryEmbedder, knows: bool, careless: bool
) -> LongSearchTrajectory:
    """Play an episode: into each long film, to its moment in the right one, then its judgement."""
    folder = DatasetFolder(config.data.root)
    clips, rejected, plan = ClipFolder(folder.clips(split), config.data.timestamps), list[str](), list[str]()

    async def load_clip(video_id: str) -> Clip:
        rejected.append(video_id)
        plan[:] = _plan(task, video_id, careless) if not video_id.endswith(SHORT) else []
        return clips.read(video_id)

    async def reply_to(prompt: Prompt, turn: int) -> Spoken:
        left = _LEFT.findall(str(prompt.parts[-1]))
        if plan and left and float(left[-1]) > 0:
            return spoken(call(plan.pop(0)), prompt, ids)
        if rejected[-1] == task.gt_video and knows:
            start, end = task.gt_span
            answer = f"<answer>matched</answer> <start>{start}</start> <end>{end}</end>"
        else:
            answer = f"<answer>not_matched</answer> <query>{task.query}, not {rejected[-1]}</query>"
        return spoken(f"<think>seen</think> {answer} <REFINE>", prompt, ids)

    environment = SearchThenNavigateEnvironment(
        task, SearchSettings.of(config.agent, 3), config.navigate,
        LocalSearch(open_corpus(folder, split), embedder), load_clip, tools(config, split),
    )  # fmt: skip
    return asyncio.run(run_episode(environment, reply_to))


def _plan(task: LongSearchTask, video: str, careless: bool) -> list[str]:
    """Return the calls into a long film: one into a wrong one, mistakes of a careless agent."""
    if video != task.gt_video:
        return ["caption(1,1)"]
    tree = ClipTree.of(task.gt_duration)
    leaf = tree.leaf(min(tree.covered([task.gt_span])))
    name, above = name_of(leaf), name_of(leaf[:2])
    if careless:
        return [f"caption({above})", f"caption({above})", "caption(9,9)", f"look({name})"]
    return [f"caption({above})", f"look({name})", "find(a ring)"]
