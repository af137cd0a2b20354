"""`python -m bench`: what can be measured on this machine.

A measurement is a file `bench/NAME.py` whose one public function returns a dict of figures. Its command reads the
options, imports the file, which may be heavy, and prints the figures by `show`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bench.measure import line
from bench.toy import commands as toy
from pipelines.command import ConfigFile, Overrides, errors, guarded, read_settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure something on this machine and print one line of JSON."
)
app.add_typer(toy.commands, name="toy")

Shape = Annotated[Literal["toy", "2b"], typer.Option(help="Sizes of the policy, whose weights are random.")]
Way = Annotated[Literal["file", "ipc", "nccl"], typer.Option(help="file: CPU; ipc: one GPU; nccl: two GPUs.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that are measured; their median counts.")]
Frames = Annotated[int, typer.Option(min=2, help="Frames of a clip.")]
Side = Annotated[int, typer.Option(min=32, help="Pixels of a frame's side.")]
StepPrompts = Annotated[int, typer.Option(min=1, help="Prompts a step, each about a clip of its own.")]
Replies = Annotated[int, typer.Option(min=1, help="Replies to a prompt.")]
ReplyWords = Annotated[int, typer.Option(min=2, help="Tokens of a reply.")]
MicroTokens = Annotated[int, typer.Option(min=1, help="As learner.micro_tokens.")]
Recompute = Annotated[int, typer.Option(min=0, help="As learner.gradient_checkpointing, in layers.")]
Compiled = Annotated[bool, typer.Option(help="As learner.compile.")]
ZeroStage = Annotated[int, typer.Option(min=1, max=3, help="As learner.zero_stage.")]
Vectors = Annotated[int, typer.Option(min=1, help="Vectors in the corpus.")]
Dim = Annotated[int, typer.Option(min=1, help="Numbers in a vector.")]
FaultSeed = Annotated[int, typer.Option("--seed", help="Of what is killed and stopped, and when.")]
LENGTHS = [12.0, 33.0, 120.0]  # of long toy films, minutes: trees of 4, 5 and 8 parts
MaxTurns = Annotated[int | None, typer.Option(help="Turns of each search; as the agent was trained if left out.")]


def show(name: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> None:
    """Print what a measurement returns as one line of JSON."""
    print(line(name, guarded(measure, *arguments)))


@app.command()
def gradient(
    policy: Annotated[Path, typer.Option(help="Checkpoint after Stage 1.")] = Path("checkpoints/toy/sft"),
    embedder: Annotated[Path, typer.Option(help="Checkpoint of the search.")] = Path("checkpoints/toy/embedder"),
    prompts: Annotated[int, typer.Option(min=8, help="Refinements; a quarter of them is measured.")] = 128,
    films: Annotated[int, typer.Option(min=32, help="Films of the corpus.")] = 512,
    most: Annotated[int, typer.Option(min=4, help="Branches, from 4 on doubled until there are so many.")] = 256,
    radius: Annotated[float, typer.Option(min=0.001, help="Distance of a branch, as a share of the norm.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of films and draws.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="SVG file to draw.")] = None,
) -> None:
    """Measure how the policy gradient of latents agrees with the true one, by branches and directions."""
    from bench.gradient import bench_gradient

    draws = [4 * 2**power for power in range((most // 4).bit_length())]
    show("gradient", bench_gradient, policy, embedder, prompts, films, draws, radius, seed, picture)


@app.command()
def latents(
    shape: Shape = "toy",
    samples: Annotated[int, typer.Option(min=1, help="Requests at one time.")] = 32,
    group: Annotated[int, typer.Option(min=1, help="Requests about the same clip.")] = 8,
    frames: Frames = 16,
    side: Side = 64,
    words: Annotated[int, typer.Option(min=1, help="Tokens before the refinement.")] = 32,
    rounds: Rounds = 5,
) -> None:
    """Time a refinement in the engine, in a cached Hugging Face loop, and by full recomputation."""
    from bench.engine import LatentWork, bench_latents

    show("latents", bench_latents, LatentWork(shape, samples, group, frames, side, words, rounds))


@app.command()
def learner(
    shape: Shape = "toy",
    stage: Annotated[int, typer.Option(min=1, max=2, help="Stage whose loss it is.")] = 2,
    frames: Frames = 16,
    side: Side = 64,
    prompts: StepPrompts = 4,
    group: Replies = 8,
    words: ReplyWords = 96,
    shared: Annotated[bool, typer.Option(help="Run a prompt once; else once a reply.")] = True,
    latents: Annotated[bool, typer.Option(help="Losses on 8 latents after each reply.")] = True,
    latent_passes: Annotated[int, typer.Option(min=1, max=8, help="As retrieval_loss.latent_passes.")] = 2,
    micro_tokens: MicroTokens = 16_384,
    recompute: Recompute = 0,
    compiled: Compiled = False,
    ranks: Annotated[int, typer.Option(min=0, help="DeepSpeed ranks; 0: one process without DeepSpeed.")] = 0,
    zero_stage: ZeroStage = 1,
    rounds: Rounds = 5,
    profile: Annotated[bool, typer.Option(help="One more step, and what the GPU did in it.")] = False,
) -> None:
    """Take steps of the learner alone: seconds, their parts, memory, and the share of the GPU."""
    from bench.learner import LearnerWork, bench_learner

    work = LearnerWork(
        shape, stage, frames, side, prompts, group, words, shared, latents, latent_passes, micro_tokens,
        recompute, compiled, ranks, zero_stage, rounds, profile,
    )  # fmt: skip
    show("learner", bench_learner, work)


Prompts = Annotated[int, typer.Option(min=1, help="Prompts a round and worker, each with a first clip of its own.")]
Group = Annotated[int, typer.Option(min=2, help="Samples of a prompt.")]
Words = Annotated[int, typer.Option(min=16, help="Tokens of a reply, before its 8 latents.")]
RolloutWorkers = Annotated[int, typer.Option("--workers", min=1, help="Rollout workers, each with an engine.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Requests of an engine at one time.")]


@app.command()
def rollout(
    shape: Shape = "toy",
    prompts: Prompts = 16,
    group: Group = 8,
    frames: Frames = 16,
    side: Side = 64,
    words: Words = 64,
    workers: RolloutWorkers = 1,
    at_once: AtOnce = 64,
    rounds: Rounds = 3,
    plain: Annotated[bool, typer.Option(help="Also measure plain vLLM, with one worker.")] = True,
) -> None:
    """Play episodes on real actors: seconds, tokens a second, and the share of what plain vLLM reaches."""
    from bench.rollout import LoopWork, bench_rollout

    work = LoopWork(shape, prompts, group, frames, side, words, workers, at_once, rounds)
    show("rollout", bench_rollout, work, plain and workers == 1)


@app.command()
def step(
    shape: Shape = "toy",
    prompts: Prompts = 16,
    group: Group = 8,
    frames: Frames = 16,
    side: Side = 64,
    words: Words = 64,
    workers: RolloutWorkers = 1,
    at_once: AtOnce = 64,
    rounds: Rounds = 3,
    ranks: Annotated[int, typer.Option(min=1, help="As learner.ranks.")] = 1,
    zero_stage: ZeroStage = 1,
    micro_tokens: MicroTokens = 16_384,
    recompute: Annotated[bool, typer.Option(help="As learner.gradient_checkpointing.")] = False,
    compiled: Compiled = False,
) -> None:
    """Take whole steps of Stage 2: seconds of rollouts, learner and push, and the parts of each."""
    from bench.rollout import LoopWork
    from bench.step import bench_step

    learner = {
        "ranks": ranks, "zero_stage": zero_stage, "micro_tokens": micro_tokens, "gradient_checkpointing": recompute,
        "compile": compiled,
    }  # fmt: skip
    show("step", bench_step, LoopWork(shape, prompts, group, frames, side, words, workers, at_once, rounds), learner)


@app.command()
def push(
    shape: Shape = "toy",
    way: Way = "file",
    frames: Frames = 16,
    side: Side = 64,
    prompts: StepPrompts = 4,
    group: Replies = 8,
    words: ReplyWords = 96,
    latents: Annotated[bool, typer.Option(help="8 latents after each reply, and the losses on them.")] = True,
    micro_tokens: MicroTokens = 16_384,
    recompute: Recompute = 0,
    compiled: Compiled = False,
    ranks: Annotated[int, typer.Option(min=1, help="DeepSpeed ranks.")] = 1,
    zero_stage: ZeroStage = 1,
    memory: Annotated[float, typer.Option(help="The engine's share of its GPU's memory.")] = 0.25,
    rounds: Rounds = 5,
) -> None:
    """Take whole steps without the search: replies of an engine, the learner on them, the push of its weights."""
    from bench.learner import LearnerWork
    from bench.push import PushWork, bench_push

    work = LearnerWork(
        shape, 2, frames, side, prompts, group, words, True, latents, 2, micro_tokens, recompute, compiled, ranks,
        zero_stage, rounds,
    )  # fmt: skip
    show("push", bench_push, work, PushWork(way, memory))


@app.command()
def parity(
    shape: Shape = "toy",
    samples: Annotated[int, typer.Option(min=2, help="Requests, half of them with a clip.")] = 32,
) -> None:
    """Compare log-probs and latents of the engine with a float32 oracle."""
    from bench.engine import bench_parity

    show("parity", bench_parity, shape, samples)


@app.command()
def weights(shape: Shape = "toy", way: Way = "file", rounds: Rounds = 5) -> None:
    """Push a whole policy into an engine, and check that it arrived."""
    from bench.engine import bench_weights

    show("weights", bench_weights, shape, way, rounds)


@app.command()
def data(
    overrides: Overrides = None,
    config: ConfigFile = None,
    videos: Annotated[
        int, typer.Option(min=10, help="Videos of the smaller corpus; the other has twice as many.")
    ] = 200,
    side: Annotated[int, typer.Option(min=64, help="Pixels of a frame's side.")] = 64,
) -> None:
    """Build toy datasets: each step's seconds, and memory as the corpus doubles."""
    from bench.data import bench_data

    show("data", bench_data, videos, side, read_settings(config, overrides, False))


@app.command()
def retrieval(
    videos: Vectors = 100_000,
    dim: Dim = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Queries in one call.")] = 256,
    shards: Annotated[int, typer.Option(min=1, help="Shard actors, one thread each.")] = 2,
    rounds: Rounds = 7,
    singles: Annotated[int, typer.Option(min=1, help="Rounds in which a single query is timed.")] = 50,
    gpu: Annotated[bool, typer.Option("--gpu", help="Also with a shard, and plain FAISS, on one GPU.")] = False,
    faiss: Annotated[Path | None, typer.Option(help="Folder with a FAISS that can (retrieval.shard.faiss).")] = None,
) -> None:
    """Time the search service beside one plain FAISS index on the same vectors."""
    from bench.retrieval import bench_retrieval

    show("retrieval", bench_retrieval, videos, dim, batch, shards, rounds, singles, gpu, faiss)


@app.command()
def kills(
    videos: Vectors = 10_000,
    dim: Dim = 256,
    searches: Annotated[int, typer.Option(min=1, help="Searches that are checked.")] = 10_000,
    shards: Annotated[int, typer.Option(min=1, help="Shards, of two replicas each.")] = 2,
    rounds: Rounds = 5,
) -> None:
    """Search while shards are killed and check every answer; time the first answer after a kill."""
    from bench.kills import bench_kills

    show("kills", bench_kills, videos, dim, searches, shards, rounds)


@app.command()
def heal(
    overrides: Overrides = None,
    config: ConfigFile = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A role to kill and stop; again for more; all if left out.")
    ] = None,
) -> None:
    """Kill and stop a process of every role of Stage 2, and time how it is found and healed, by part."""
    from bench.heal import ROLES, bench_heal

    show("heal", bench_heal, read_settings(config, overrides), only or list(ROLES))


@app.command()
def join(
    overrides: Overrides = None,
    config: ConfigFile = None,
    before_s: Annotated[float, typer.Option(min=1, help="Seconds that are measured before the join.")] = 10.0,
    scripted: Annotated[bool, typer.Option(help="Engines that wait; else real ones, which share the CPUs.")] = False,
) -> None:
    """Let another rollout worker join while the others play: samples a second before and meanwhile."""
    from bench.join import bench_join

    show("join", bench_join, read_settings(config, overrides, False), before_s, scripted)


@app.command()
def soak(
    overrides: Overrides = None,
    config: ConfigFile = None,
    every_s: Annotated[float, typer.Option(min=1, help="Mean seconds between two faults.")] = 20.0,
    seed: FaultSeed = 0,
    most: Annotated[int | None, typer.Option(min=1, help="Faults, and none after them.")] = None,
    limit_s: Annotated[float | None, typer.Option(min=1, help="Seconds until the training is told to stop.")] = None,
) -> None:
    """Train while processes of all roles are killed and stopped, and count samples that were lost or repeated."""
    from bench.soak import bench_soak

    show("soak", bench_soak, read_settings(config, overrides), every_s, seed, most, limit_s)


@app.command()
def restarts(
    overrides: Overrides = None,
    config: ConfigFile = None,
    kills: Annotated[int, typer.Option(min=1, help="Times that the training is killed.")] = 10,
    seed: FaultSeed = 0,
) -> None:
    """Kill a whole training again and again, go on with the same command, and compare it with one left alone."""
    from bench.restarts import bench_restarts

    show("restarts", bench_restarts, read_settings(config, overrides), kills, seed)


@app.command()
def navigate(
    films: Annotated[int, typer.Option(min=1, help="Films of each length, each with a question of its own.")] = 500,
    minutes: Annotated[list[float] | None, typer.Option(help="Lengths of films; 12, 33 and 120 if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the films.")] = 0,
) -> None:
    """Play scripted agents in the long toy world: accuracy against budget, beside the computed optimum."""
    from bench.navigate import navigate_curve

    show("navigate", navigate_curve, films, minutes or LENGTHS, seed)


@app.command()
def navigate_arms(
    overrides: Overrides = None,
    config: ConfigFile = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of batches and samples.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Runs at one time; they share the GPUs.")] = 1,
    policies: Annotated[
        str, typer.Option(help="Of Stage 2: with drawn budgets, or with one; empty string: Stage 1 only.")
    ] = "drawn,fixed2,fixed8,fixed30",
) -> None:
    """Train policies to navigate, and put them on the curve of accuracy against budget beside the optimum."""
    import torch

    from bench.navigate_arms import navigate_arms

    settings = read_settings(config, overrides)
    arguments = [part for file in config or [] for part in ("--config", str(file))] + list(overrides or [])
    names = [policy for policy in policies.split(",") if policy]
    chosen, gpus = range(first_seed, first_seed + seeds), torch.cuda.device_count()
    show("navigate_arms", navigate_arms, settings, arguments, chosen, names, at_once, gpus, errors.print)


@app.command()
def find(
    films: Annotated[int, typer.Option(min=1, help="Films of each length, each with a question of its own.")] = 150,
    minutes: Annotated[list[float] | None, typer.Option(help="Lengths of films; 12, 33 and 120 if left out.")] = None,
    level: Annotated[int, typer.Option(min=2, max=3, help="Level of the nodes that a search names.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the films.")] = 0,
) -> None:
    """Compare the calls of the best player in the long toy world without a search, and of one that searches first."""
    from bench.navigate import find_worth

    show("find", find_worth, films, minutes or LENGTHS, seed, level)


@app.command()
def long_search(
    corpora: Annotated[int, typer.Option(min=1, help="Corpora of each length.")] = 20,
    films: Annotated[int, typer.Option(min=2, help="Films of each corpus.")] = 12,
    minutes: Annotated[list[float] | None, typer.Option(help="Lengths of films; 12, 33 and 120 if left out.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Calls of an episode.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Films that an episode may judge.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the films.")] = 0,
    policy: Annotated[
        Path | None, typer.Option(help="Checkpoint that navigates; a scripted agent if left out.")
    ] = None,
) -> None:
    """Search moments in corpora of long toy films: navigation against one look at each film, at equal visual tokens."""
    from bench.long_search import long_search

    show("long_search", long_search, corpora, films, minutes or LENGTHS, seed, budget, turns, policy)


@app.command()
def tools(
    prompts: Annotated[int, typer.Option(min=1, help="Groups of a round, each about a film of its own.")] = 8,
    group: Replies = 8,
    calls: Annotated[int, typer.Option(min=1, help="Calls of an episode.")] = 4,
    reply_s: Annotated[float, typer.Option(min=0, help="Seconds that an engine takes for a reply.")] = 0.5,
    tool_s: Annotated[float, typer.Option(min=0, help="Seconds that a captioner takes for a call.")] = 0.25,
    at_once: AtOnce = 16,
    rounds: Rounds = 3,
) -> None:
    """Play episodes with tools and without, the pools free and busy: episodes a second, and calls made twice."""
    from bench.tools import ToolWork, bench_tools

    show("tools", bench_tools, ToolWork(prompts, group, calls, reply_s, tool_s, at_once, rounds))


@app.command()
def report(
    trajectories: Annotated[int, typer.Option(min=1, help="Trajectories, each with a video of its own.")] = 5000,
    rounds: Rounds = 1,
    out: Annotated[Path | None, typer.Option(help="Keep the page there.")] = None,
) -> None:
    """Build the report page of a large run: its size and the seconds that it takes."""
    from bench.report import bench_report

    show("report", bench_report, trajectories, rounds, out)


@app.command()
def serve(
    overrides: Overrides = None,
    config: ConfigFile = None,
    requests: Annotated[int, typer.Option(min=0, help="Searches over which memory is watched; 0: none.")] = 10_000,
    max_turns: MaxTurns = None,
) -> None:
    """Load the service: answers a second, latencies, overload, memory; every answer is checked."""
    from bench.service import bench_serve

    show("serve", bench_serve, read_settings(config, overrides, False), requests, max_turns)


@app.command()
def faults(overrides: Overrides = None, config: ConfigFile = None, max_turns: MaxTurns = None) -> None:
    """Kill parts of the service under load: what searches get, and seconds until it answers again."""
    from bench.faults import bench_faults

    show("faults", bench_faults, read_settings(config, overrides, False), max_turns)


@app.command(name="overlap")
def overlap_(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warm_up: Annotated[int, typer.Option(min=1, help="First steps that do not count.")] = 2,
    rounds: Rounds = 3,
) -> None:
    """Run Stage 2 with rollouts in step with the learner and one step ahead: samples a second, share of the ideal."""
    from bench.overlap import overlap

    show("overlap", overlap, read_settings(config, overrides, False), warm_up, rounds)


@app.command()
def fuzz(
    files: Annotated[int, typer.Option(min=1, help="Films whose bytes are changed.")] = 5000,
    seed: Annotated[int, typer.Option(help="The same seed changes the same bytes.")] = 0,
) -> None:
    """Change bytes of videos and bring them in as uploads are: each must be a clip or a failure with a name."""
    from bench.fuzz import bench_fuzz

    show("fuzz", bench_fuzz, files, seed)


@app.command()
def scale(
    gpus: Annotated[int, typer.Option(min=3, help="GPUs in all; those that neither play nor learn search.")] = 1000,
    engines: Annotated[int, typer.Option(min=1, help="GPUs that play, an engine each.")] = 480,
    ranks: Annotated[int, typer.Option(min=1, help="GPUs that learn.")] = 512,
    videos: Annotated[int, typer.Option(min=1, help="Videos that are searched.")] = 10_000_000,
    prompts: Annotated[int, typer.Option(min=1, help="As grpo.prompts_per_step.")] = 2048,
    group: Replies = 8,
    staleness: Annotated[int, typer.Option(min=0, help="As grpo.staleness.")] = 2,
    at_once: AtOnce = 128,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the learner.")] = 4,
    deaths: Annotated[float, typer.Option(min=0, help="Deaths of a member in an hour.")] = 0.01,
    preemptions: Annotated[float, typer.Option(min=0, help="Preemptions of a member in an hour.")] = 0.02,
) -> None:
    """Simulate steps at a size that nobody here has, with the real ledger, journal and fleet."""
    from bench.scale import ScaleWork, bench_scale

    work = ScaleWork(
        gpus, engines, ranks, videos, prompts, group, staleness, at_once, steps, deaths=deaths, preemptions=preemptions
    )
    show("scale", bench_scale, work)


@app.command()
def hosts(
    overrides: Overrides = None,
    config: ConfigFile = None,
    faults: Annotated[bool, typer.Option(help="Cut a link, kill a host and let one join in another training.")] = True,
) -> None:
    """Train on three hosts (network namespaces) with a job from a fourth: sums beside one host, faults of hosts."""
    from bench.hosts import bench_hosts

    show("hosts", bench_hosts, read_settings(config, overrides), faults)


@app.command()
def autoscaled(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Train while Ray's autoscaler adds and takes nodes, by demand, and one of them is preempted."""
    from bench.hosts_autoscaled import bench_autoscaled

    show("autoscaled", bench_autoscaled, read_settings(config, overrides))
