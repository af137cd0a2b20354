"""Rollouts in the loop, on random weights, beside plain vLLM on the same requests.

In the loop: rollout workers, retrieval service, clip stores and reward worker as in Stage 2, episodes of two turns,
latents after each reply, noise on them. Every round has new clips and queries; replies have an exact length. Plain vLLM
then gets the prompts of all turns of the round at one time and samples as many tokens, a latent counted as one.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import Qwen3VLProcessor

from actors.rollout import Sampling
from bench.learner import SIGMA, write_models
from bench.lengths import EXACT_LENGTHS
from bench.measure import Rounds, device, dtype_name
from bench.retrieval import unit_vectors
from pipelines.stage.connection import connect
from pipelines.stage.tasks import group_of
from pipelines.stage.workers import Workers, complete, workers
from vsr1.config import Config
from vsr1.episode.environment import Prompt
from vsr1.episode.sample import SampleId
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.model.processor import ClipProcessor
from vsr1.search.prompts import SYSTEM_PROMPT, turn_parts
from vsr1.search.record import SearchTask, SearchTrajectory
from vsr1.settings.parts import AgentConfig
from vsr1.video.clips import Clip, ClipFolder, write_clip, write_meta
from vsr1.video.decode import SampledVideo

TURNS, NEGATIVES, VIDEOS = 2, 8, 64


@dataclass(frozen=True)
class LoopWork:
    """What is played: `prompts` a round and worker, `group` samples of each, replies of `words` tokens about clips."""

    shape: str = "toy"
    prompts: int = 16
    group: int = 8
    frames: int = 16
    side: int = 64  # pixels
    words: int = 64
    workers: int = 1
    at_once: int = 64  # requests of a worker's engine at one time
    rounds: int = 3

    @property
    def round_prompts(self) -> int:
        """Return the prompts of a round, of all workers."""
        return self.prompts * self.workers


def bench_rollout(work: LoopWork, plain: bool) -> dict[str, Any]:
    """Return medians over rounds, after one that warms up: seconds, tokens a second, and the share of plain vLLM's.

    Several workers are also measured as fewer of them, down to one.

    Args:
        plain: also measure plain vLLM; only with one worker.
    """
    with loop(work) as (others, config):
        if work.workers == 1:
            return rollout_figures(others, config, work, plain)
        return scaling_figures(others, config, work)


def scaling_figures(others: Workers, config: Config, work: LoopWork) -> dict[str, Any]:
    """Measure all of the workers, then one fewer, and so on.

    Returns:
        `by_workers`: the figures by their number; `added`: what each one more adds to the tokens a second, as a share
        of one's.
    """
    figures, first = {}, 0
    for count in range(work.workers, 0, -1):
        others.fleet.scale(count)
        part = replace(work, workers=count)
        figures[count] = rollout_figures(others, config, part, plain=False, first=first)
        first += (work.rounds + 1) * part.round_prompts
    rate = {count: figures[count]["tokens_per_s"] for count in figures}
    added = {count: (rate[count] - rate[count - 1]) / rate[1] for count in range(2, work.workers + 1)}
    return {"by_workers": figures, "added": added}


def rollout_figures(others: Workers, config: Config, work: LoopWork, plain: bool, first: int = 0) -> dict[str, Any]:
    """Measure as `bench_rollout` on running workers; the first prompt begins with the video of number `first`."""
    taken = Rounds()
    with asyncio.Runner() as runner:
        peer = _peer(config) if plain else None
        try:
            for number in range(work.rounds + 1):
                rounds = Rounds() if number == 0 else taken
                with rounds.time("loop"):
                    played = play(others, config, work, first + number * work.round_prompts)
                if peer is not None:
                    requests = _requests(config, played)
                    for way, latents in (("plain", config.agent.depth), ("plain_without_latents", 0)):
                        runner.run(peer.forget())
                        with rounds.time(way):
                            runner.run(peer.generate(requests, work.words + latents))
        finally:
            if peer is not None:
                peer.shutdown()
    turns = [turn for trajectory in played for turn in trajectory.turns]
    tokens = len(turns) * (work.words + config.agent.depth)
    return asdict(work) | {
        "turns": len(turns),
        "clips": len({clip for turn in turns for clip in turn.clips}),
        **{f"{way}_s": taken.median(way) for way in taken.seconds},
        "tokens_per_s": tokens / taken.median("loop"),
        **{f"of_{way}": taken.ratio(way, "loop") for way in taken.seconds if way != "loop"},
    }


def play(others: Workers, config: Config, work: LoopWork, first: int) -> list[SearchTrajectory]:
    """Play a round, whose prompts begin with the videos from number `first` on.

    Raises:
        RuntimeError: an episode did not have its turns, each with its tokens and its latents.
    """
    sampling = Sampling(config.retrieval.top_k, temperature=1.0, sigma=SIGMA)
    tasks = [task for prompt in prompts_of(work, first) for task in group_of(prompt, work.group)]
    played, _ = complete(list(others.play(TRAIN, tasks, config.agent, sampling)))
    shapes = {(len(turn.response_token_ids), len(turn.latents["query"])) for one in played for turn in one.turns}
    if shapes != {(work.words, config.agent.depth)} or {len(one.turns) for one in played} != {TURNS}:
        raise RuntimeError(f"episodes of other shapes than wanted: tokens and latents of turns are {shapes}")
    return played


def prompts_of(work: LoopWork, first: int) -> Iterator[SearchTask]:
    """Yield the prompts of a round, each with a first video that no other prompt begins with."""
    for video in range(first, first + work.round_prompts):
        others = [str((video + step) % _videos(work)) for step in range(1, NEGATIVES + 2)]
        name = str(video)
        yield SearchTask(
            SampleId(name), name, f"a red circle number {video}", gt_video=others[0], gt_span=(0.0, 1.0),
            gt_duration=float(work.frames), negatives=others[1:], first_video=str(video),
        )  # fmt: skip


def written(work: LoopWork, folder: Path, learner: dict[str, Any] | None = None) -> Config:
    """Write models, clips and a corpus of random vectors; return the settings of a job on them.

    Args:
        learner: settings of a learner that shares the machine, as `grpo.learner`; None: there is none.
    """
    write_models(work.shape, folder, weights=True)
    processor = Qwen3VLProcessor.from_pretrained(folder / "policy")
    most = work.frames * work.side**2  # pixels of a clip; vLLM tries the largest clip that the processor lets through
    processor.video_processor.size = {"shortest_edge": 2 * 32 * 32, "longest_edge": most}
    processor.save_pretrained(folder / "policy")
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.empty_cache()
    _write_corpus(work, folder)
    tokens = work.frames // 2 * (work.side**2 // 1024 + 12) + 512 + work.words + AgentConfig().latents
    own = gpus >= work.workers + (learner is not None)  # no two workers, and no learner, on one GPU
    share = {"learner": 0.5, "retrieval": 0.2, "rollout": 0.75 if own else 0.3 / work.workers}
    return Config.model_validate(
        {
            "run_dir": folder / "run",
            "data": {"root": folder, "splits": [TRAIN]},
            "model": {
                "policy": folder / "policy", "embedder": folder / "embedder", "device": device(), "dtype": dtype_name()
            },
            "agent": {"max_turns": TURNS, "max_new_tokens": work.words},
            "rollout": {
                "workers": work.workers,
                "transfer": "file" if not gpus else "nccl" if own else "ipc",
                "engine": {
                    "max_model_len": -(-tokens // 256) * 256,
                    "max_num_seqs": work.at_once,
                    "latent_slots": work.at_once,
                    "kv_cache_gib": 1 if work.shape == "toy" else 12 if learner is None else 6,
                    "gpu_memory_utilization": 0.3,  # that must be free at the start
                    "logits_processor": EXACT_LENGTHS,
                },
            },
            "grpo": {
                "prompts_per_step": work.round_prompts, "group_size": work.group, "latents": {"sigma": SIGMA},
                "negatives": NEGATIVES, "learner": {"ranks": 1} | (learner or {}),
            },
            "cluster": {
                "num_cpus": None if gpus else 2,
                "object_store_gib": 1 + 4 * _videos(work) * 3 * work.frames * work.side**2 / 2**30,
                **({role: {"gpus": part} for role, part in share.items()} if gpus else {}),
            },
        }
    )  # fmt: skip


@contextmanager
def loop(work: LoopWork, learner: dict[str, Any] | None = None) -> Iterator[tuple[Workers, Config]]:
    """Have what `written` writes, a Ray of one's own and the workers of a job on it for a block."""
    with tempfile.TemporaryDirectory() as name:
        config = written(work, Path(name), learner)
        connect(config)
        try:
            with workers(config, TRAIN) as others:
                yield others, config
        finally:
            ray.shutdown()


def _videos(work: LoopWork) -> int:
    numbers = range(1, work.workers + 1)  # of workers that are measured
    return max(VIDEOS, work.prompts * (work.rounds + 1) * sum(numbers))


def _write_corpus(work: LoopWork, root: Path) -> None:
    folder, rng, count = DatasetFolder(root), np.random.default_rng(0), _videos(work)
    rows = []
    for video in range(count):
        frames = rng.integers(0, 255, (work.frames, work.side, work.side, 3), np.uint8)
        indices = list(range(work.frames))
        sampled = SampledVideo(
            frames, np.arange(work.frames) * 1.0, indices, work.frames, float(work.frames), 1.0, indices, False,
            work.frames,
        )  # fmt: skip
        rows.append(
            write_clip(
                folder.clips(TRAIN), str(video), sampled, source=root / f"{video}.mp4", target_fps=1.0,
                max_frames=work.frames,
            )
        )  # fmt: skip
    write_meta(folder.clips(TRAIN), rows)
    width = json.loads((root / "embedder" / "config.json").read_text(encoding="utf-8"))["text_config"]["hidden_size"]
    folder.video_embeddings(TRAIN).parent.mkdir(parents=True)
    np.save(folder.video_embeddings(TRAIN), unit_vectors(rng, count, width))
    folder.docid2row(TRAIN).write_text(json.dumps({str(video): video for video in range(count)}), encoding="utf-8")


def _peer(config: Config) -> Any:
    from bench.plain import PlainVllm  # vLLM, which only this measurement needs in this process

    model = config.model
    return PlainVllm(model.policy, config.rollout.engine, model.device, model.dtype)


def _requests(config: Config, played: list[SearchTrajectory]) -> list[tuple[list[int], Clip]]:
    """Return what plain vLLM is asked: the prompt of every turn, its clip as a placeholder."""
    processor, folder = ClipProcessor(config.model.policy), ClipFolder(DatasetFolder(config.data.root).clips(TRAIN))
    clips = {clip.video_id: folder.read(clip.video_id) for one in played for turn in one.turns for clip in turn.clips}
    requests = []
    for trajectory in played:
        before, after = turn_parts(trajectory.task.query, SYSTEM_PROMPT)
        for turn in trajectory.turns:
            clip = clips[turn.clips[0].video_id]
            ids = Prompt([before, clip, after]).token_ids(processor.encode, processor.video_token)
            requests.append((ids, clip))
    return requests
