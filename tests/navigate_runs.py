"""A run of navigation as its stages leave it: two evaluations and a step of training, of scripted replies."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from navigation import Spoken, call

from pipelines.stage.tasks import PromptStream, group_of
from vsr1.config import Config, dump_config
from vsr1.environments.registry import environment_of
from vsr1.environments.spec import Evaluated, fingerprint_of
from vsr1.episode.environment import Prompt, run_episode
from vsr1.episode.rewards import scored
from vsr1.formats.atomic import write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolResult, Use, node_clip
from vsr1.navigate.environment import NavigateEnvironment
from vsr1.navigate.plane import Member, ToolPlane
from vsr1.navigate.prompts import name_of
from vsr1.navigate.record import NavigateTask, NavigateTrajectory
from vsr1.rl.credit import credits_of
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories, write_trajectories
from vsr1.toy.long_corpus import LongFilms, write_long_corpus

Ids = Callable[[Any], list[int]]  # of a part of a prompt: a text, or a clip


def letters(part: Any) -> list[int]:
    """Return a token a letter, and one for a clip."""
    return [ord(letter) for letter in part] if isinstance(part, str) else [0]


def write_navigation_run(folder: Path, *, ids: Ids = letters, train: int = 2, test: int = 3, **values: Any) -> Config:
    """Write a dataset, and a run over it with evaluations `before` and `after`; return its configuration."""
    config = Config.model_validate(
        {
            "environment": "navigate",
            "run_dir": folder / "run",
            "data": {"root": folder / "data"},
            "agent": {"refinement": "none"},
            "navigate": {"budgets": [4, 6], "eval_budgets": [2, 6, 16], "pools": {"frames": 4}},
            "grpo": {"group_size": 3},
        }
        | values
    )
    write_long_corpus(DatasetFolder(config.data.root), {"train": train, "test": test}, config.navigate, 0)

    def play(split: str, task: NavigateTask, knows: bool, careless: bool) -> NavigateTrajectory:
        return played(config, split, task, ids, knows, careless)

    return write_run(config, play, prompts=train)


def write_run(config: Config, play: Callable[[str, Any, bool, bool], Any], *, prompts: int) -> Config:
    """Write evaluations `before` and `after`, and a step of training with so many groups of three; return `config`.

    Args:
        play: an episode of a split: a task, whether the agent knows the answer, and whether it makes mistakes.
    """
    environment = environment_of(config)
    rewards = environment.rewards(config)
    for name, knows in (("before", False), ("after", True)):
        queries, settings = environment.evaluation_queries(config, "test"), {"name": name}
        outcomes = {one.task.id.prompt: scored(play("test", one.task, knows, False), rewards) for one in queries}
        evaluated = Evaluated(queries, outcomes, "test", config.agent, fingerprint_of(settings))
        summary = environment.scored(config, evaluated)[1].model_copy(update={"settings": settings})
        write_json(config.run_dir / f"{name}.json", summary.to_json())
        logged = [LoggedTrajectory(one, fingerprint=evaluated.fingerprint) for one in outcomes.values()]
        write_trajectories(config.run_dir / f"{name}{EVALUATION_LOG}", logged)
    stream = PromptStream(config)
    tasks = [task for _ in range(prompts) for task in group_of(next(stream), 3)]
    episodes = [scored(play("train", task, task.id.sample == 0, task.id.sample == 2), rewards) for task in tasks]
    credits = credits_of(episodes, config.grpo.objective, config.agent.max_new_tokens)
    rows = [LoggedTrajectory(one, 1, turns) for one, turns in zip(episodes, credits, strict=True)]
    append_trajectories(config.run_dir / TRAINING_LOG, rows)
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    return config


def played(
    config: Config, split: str, task: NavigateTask, ids: Ids, knows: bool, careless: bool = False
) -> NavigateTrajectory:
    """Play an episode: down to the clue or into the first part, with mistakes of a careless one, then an answer."""
    [goal] = [task.tree.leaf(number) for number in task.tree.covered(task.clues)]
    leaf = goal if knows else (1, 1, 2)
    name, above = name_of(leaf), name_of(leaf[:2])
    way = ["find(a ring)", f"caption({above})", f"caption({name})", f"look({name})", f"video_qa({name}, which colour?)"]
    if careless:
        way = [f"caption({above})", f"caption({above})", "caption(9,9)", "caption(4,4,4)"]
    texts = [call(text) for text in way[: len(way) if careless else max(int(task.budget) - 1, 1)]]
    texts.append(f"<think>seen</think><answer>{task.answer if knows else 'unknown'}</answer>")

    async def reply_to(prompt: Prompt, turn: int) -> Spoken:
        return spoken(texts[turn - 1], prompt, ids)

    environment = NavigateEnvironment(task, config.navigate, tools(config, split))
    return asyncio.run(run_episode(environment, reply_to))


def spoken(text: str, prompt: Prompt, ids: Ids) -> Spoken:
    """Return a reply with its tokens and those of its prompt."""
    reply = Spoken(text)
    reply.token_ids = ids(text)
    reply.logprobs = [-1.0] * len(reply.token_ids)
    reply.prompt_token_ids = [
        token for part in prompt.parts for token in (part if isinstance(part, list) else ids(part))
    ]
    return reply


def tools(config: Config, split: str) -> Use:
    """Return the tools of a split, which keep their answers in the dataset as the router does."""
    films = LongFilms.of_split(DatasetFolder(config.data.root), split, config.navigate.pools.frames)

    async def ask(one: ToolCall) -> ToolResult:
        return films.answer(one)

    member = Member(ask)
    answers = config.data.root / "navigate" / "answers"
    plane = ToolPlane(films, {"caption": [member], "video_qa": [member]}, 60.0, answers)

    async def use(one: ToolCall) -> ToolResult:
        if one.tool == "look":
            return ToolResult("", films.read(node_clip(one.film, one.node or ())))
        return await plane.use(one)

    return use
