"""Sections that several stages share: model, agent, engine, rollout, retrieval and cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from vsr1.storage import BUDGET_GIB, URL, named, place_of


def _written_path(value: object) -> object:
    """Return the place of a URL; refuse what a shell would have made a path of, and an empty name of this folder."""
    text = str(value)
    if (place := place_of(text)) is not None:
        return place
    if not text.strip() or "\0" in text:
        raise ValueError("a path is needed; leave the key out to have the default")
    if text.startswith("$"):
        raise ValueError("shell variables are not replaced in settings; write ${oc.env:NAME} for one")
    return value


def _no_url(value: object) -> object:
    if URL.fullmatch(str(value)):
        raise ValueError("a path on this machine is needed here, not a URL")
    return value


def _absolute(path: Path) -> Path:
    """Return the path from where it was given, with `~` as the home folder.

    Ray runs actors and training workers in folders of their own, so a path must not depend on the present one.
    """
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"no home folder of {path.parts[0]} is known; write the path in full") from None


AbsolutePath = Annotated[
    Path, BeforeValidator(_written_path), AfterValidator(_absolute), PlainSerializer(named, str, when_used="json")
]
LocalPath = Annotated[AbsolutePath, BeforeValidator(_no_url)]  # of what is not fetched from a URL
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes


def cores() -> int:
    """Return the number of cores that this process may use: fewer than the machine's when it is pinned."""
    return len(os.sched_getaffinity(0))


class Section(BaseModel):
    """A section of settings: no unknown key, no number that is infinite or not one, no yes or no for a number."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: object) -> object:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and {int, float} & {field.annotation, *get_args(field.annotation)}:
                raise ValueError(f"{name}: a number is needed, not {str(value).lower()}")
        return values


class EngineConfig(Section):
    """One vLLM engine, as a rollout actor or a teacher holds it."""

    max_model_len: int = Field(1024, ge=128)
    max_num_seqs: int = Field(32, ge=1)
    latent_slots: int = Field(64, ge=1, description="requests that may hold latents at one time")
    videos_per_prompt: int = Field(8, ge=1, description="most videos of one prompt; others are refused")
    max_num_batched_tokens: int | None = Field(None, ge=1, description="prompt tokens of a step; empty: vLLM's choice")
    chunked_prefill: bool | None = Field(
        None,
        description="prompts over several steps; empty: on a GPU (on CPU vLLM 0.32 fails with seeds)",
    )
    kv_cache_gib: int | None = Field(
        None, ge=1, description="size of the key-value cache; empty: 1 on CPU, what the GPU share leaves on a GPU"
    )
    kv_blocks: int | None = Field(None, ge=1, description="size of the key-value cache in blocks, instead of bytes")
    gpu_memory_utilization: float = Field(0.6, gt=0, le=1)
    enforce_eager: bool | None = Field(None, description="no CUDA graphs; empty: graphs on a GPU, none on CPU")
    log_stats: bool = False
    logits_processor: str = Field(
        "vsr1.engine.latents:LatentLogitsProcessor",
        description="class that decodes the policy's latents: this one, or a subclass that measures",
    )
    seed: Seed = 0


class ChatModelConfig(Section):
    """A chat model that sees pictures, in engines of our own or behind a server, and how it is asked.

    A section that has one says by `kind` where it is.
    """

    folder: LocalPath | None = Field(None, description="vllm: checkpoint folder of a Qwen3-VL model")
    model: str | None = Field(None, description="openai: name of the model at the server")
    url: str | None = Field(None, description="openai: base URL of the server, as in http://host:8000/v1")
    key_file: LocalPath | None = Field(None, description="openai: file that holds the API key and nothing else")
    max_tokens: int = Field(4096, ge=1, description="most tokens of a reply, its thinking included")
    temperature: float = Field(0.4, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = Field(42, description="of the first reply; each further attempt takes the next number")
    timeout_s: float = Field(120.0, gt=0, description="openai: longest wait for a reply")
    retries: int = Field(5, ge=0, description="openai: of one request, on 429, 5xx or no answer, waiting longer each")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="vllm; auto: the checkpoint's own")
    engine: EngineConfig = EngineConfig(max_model_len=32_768, gpu_memory_utilization=0.9)

    def missing(self, kind: str, place: str) -> list[str]:
        """Return the keys, under `place`, without which a model of this kind cannot be asked."""
        needed = {"vllm": ("folder",), "openai": ("model", "url")}.get(kind, ())
        return [f"{place}.{name}" for name in needed if not getattr(self, name)]


class ModelConfig(Section):
    """Checkpoint folders of the policy and of the frozen embedder."""

    policy: AbsolutePath = Path("checkpoints/toy/policy")
    embedder: AbsolutePath = Path("checkpoints/toy/embedder")
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    allow_bin: bool = Field(False, description="read .bin weights of the policy, without running code from them")


class StorageConfig(Section):
    """Where files of URLs lie on a node: `data.root`, checkpoints and `run_dir` may be URLs, as s3://BUCKET/FOLDER."""

    cache: LocalPath | None = Field(None, description="folder on each node; empty: vsr1 in the user's cache folder")
    cache_gib: float = Field(BUDGET_GIB, gt=0, description="of fetched files; the oldest go where more comes")


class AgentConfig(Section):
    """The loop: turns, latents and what a rejected video means."""

    max_turns: int = Field(3, ge=1)
    refinement: Literal["latents", "text", "none"] = Field(
        "latents", description="after a rejection: latents, the query in new words, or the next video of the ranking"
    )
    latents: int = Field(8, ge=1, le=8, description="latents of one refinement, where it is by latents")
    latents_of_turns: Literal["replace", "accumulate"] = Field(
        "replace", description="a refinement takes the place of the one before, or joins it"
    )
    exclude_rejected: bool = True
    system_prompt: AbsolutePath | None = Field(None, description="file that replaces the default system prompt")
    max_new_tokens: int = Field(96, ge=16, description="most tokens of one reply, the refine token included")

    @property
    def depth(self) -> int:
        """Latents of one refinement, 0 where there are none."""
        return self.latents if self.refinement == "latents" else 0

    @model_validator(mode="after")
    def _the_next_video_differs(self) -> AgentConfig:
        if self.refinement == "none" and self.max_turns > 1 and not self.exclude_rejected:
            raise ValueError("agent.refinement=none shows one video again and again unless agent.exclude_rejected=true")
        return self


class RolloutConfig(Section):
    """The engines that play episodes, and how they get weights."""

    workers: int = Field(1, ge=1)
    transfer: Literal["file", "nccl", "ipc"] = Field(
        "file", description="how weights travel: nccl between GPUs, ipc on the learner's own GPU, file on CPU"
    )
    verify_push: bool = Field(True, description="compare every pushed tensor with the learner's")
    temperature: float = Field(
        1.0,
        ge=0.01,
        description="of training: a group needs samples that differ (evaluations decode greedily); vLLM takes no less",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="of training: sample from the likeliest tokens of this sum only")
    top_k: int = Field(0, ge=0, description="of training: sample from so many likeliest tokens only; 0: all")
    max_episodes: int | None = Field(
        None, ge=1, description="episodes that a worker plays at one time; empty: twice engine.max_num_seqs"
    )
    deadline_s: float = Field(900.0, gt=0, description="after which an episode is cancelled and counts as failed")
    engine: EngineConfig = EngineConfig()


class ShardConfig(Section):
    """The FAISS of the shards; on a GPU they are where `cluster.shard.gpus` is above 0."""

    faiss: LocalPath | None = Field(
        None, description="folder with a FAISS, as of `pip install --target`, on each node; empty: the installed one"
    )
    pip: list[str] = Field([], description="or requirements that Ray installs for them on each node")

    @model_validator(mode="after")
    def _one_faiss(self) -> ShardConfig:
        if self.faiss and self.pip:
            raise ValueError("retrieval.shard.faiss and retrieval.shard.pip name two; leave one of them out")
        return self


class RetrievalConfig(Section):
    """The search over the corpus: exact with `index: Flat`."""

    shards: int = Field(2, ge=1)
    replicas: int = Field(1, ge=1, description="actors that hold the same shard")
    embedders: int = Field(
        1, ge=1, description="query embedders: the service's own, and actors that each reserve cluster.retrieval too"
    )
    shard: ShardConfig = ShardConfig()
    index: str = Field("Flat", description="FAISS index factory; another than Flat finds approximately, scores exactly")
    index_params: str = Field("", description="search parameters of that index, as in nprobe=16")
    top_k: int = Field(10, ge=1)
    max_batch: int = Field(256, ge=1)
    deadline_s: float = Field(60.0, gt=0, description="seconds until a search fails with what it waited for")
    shard_timeout_s: float = Field(
        30.0, gt=0, description="seconds until a replica that does not answer counts as down"
    )
    keep_versions: int = Field(2, ge=1, description="versions of the corpus that can be searched, the current included")
    keep_s: float = Field(0.0, ge=0, description="seconds that older versions can be searched after they were replaced")


class FleetConfig(Section):
    """How actors that die, stand still or fail are found and started again, and how many rollout workers there are."""

    probe_every_s: float = Field(
        1.0, gt=0, description="seconds without a sign of life after which an engine is asked for one token"
    )
    probe_s: float = Field(
        7.0,
        gt=0,
        description="seconds until an engine that gives no token counts as dead; after half of them it gets no samples",
    )
    stopped_s: float = Field(2.0, gt=0, description="seconds that a process may stand still, as after SIGSTOP")
    return_s: float = Field(
        480.0,
        gt=0,
        description="seconds that another actor whose process or node is gone has to come back; then the stage ends",
    )
    start_s: float = Field(900.0, gt=0, description="seconds until a rollout worker that is not ready counts as dead")
    push_s: float = Field(300.0, gt=0, description="seconds that a rollout worker has to take weights")
    drain_s: float = Field(60.0, gt=0, description="seconds that a leaving rollout worker has to end what it plays")
    stop_s: float = Field(
        15.0, gt=0, description="seconds that a stage has to save its state and end, at Ctrl-C, SIGTERM or `vsr1 stop`"
    )
    learn_s: float = Field(3600.0, gt=0, description="seconds that a call to all learner ranks may take")
    restarts_per_hour: int = Field(
        20, ge=0, description="of one rollout worker, and of the learner; 0 starts none again"
    )
    snapshot_every: int | None = Field(
        None,
        ge=0,
        description="optimiser steps between copies of the learner's state in memory, from which ranks that died go "
        "on; empty: as often as takes a twentieth of its time; 0: none",
    )
    most: int | None = Field(
        None, ge=1, description="rollout workers to grow to from rollout.workers where all are full; empty: none more"
    )
    grow_s: float = Field(30.0, gt=0, description="seconds that all must be full before one more starts")
    shrink_s: float = Field(600.0, gt=0, description="seconds that one could be spared before one leaves again")
    spares: int = Field(0, ge=0, description="more rollout workers that are started and play only when another dies")
    breaker_outcomes: int = Field(20, ge=5, description="last samples of a rollout worker that are judged")
    breaker_share: float = Field(
        0.5, gt=0, le=1, description="share of them that fails, where others fail less, which keeps samples from it"
    )
    breaker_s: float = Field(
        10.0, gt=0, description="seconds until it is tried with one sample; each failure doubles them"
    )


class ActorResources(Section):
    """What Ray reserves for one actor of a role."""

    cpus: float = Field(0.1, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory_gib: float = Field(0.5, ge=0)


class PlacedResources(ActorResources):
    """What Ray reserves for one actor of a role, and on which nodes."""

    labels: dict[str, str] = Field(
        {}, description="of the nodes that may hold it: a value, or `!value`, `in(a,b)`, `!in(a,b)` as Ray reads them"
    )
    strategy: Literal["pack", "spread", "strict_pack", "strict_spread"] = Field(
        "pack", description="fill a node before the next, or take one after another; strict, of the learner only: must"
    )


class Node(ActorResources):
    """What Ray can hand to actors on one node, besides the object store."""

    labels: dict[str, str] = Field({}, description="as of `ray start --labels`")
    gpu_memory_gib: float | None = Field(None, gt=0, description="of one GPU; empty: not known, and not compared")


class NodeGroup(Node):
    """Equal nodes of a cluster, for a dry run without it, and for what its autoscaler may add."""

    count: int = Field(1, ge=1)
    cpus: float = Field(gt=0)
    memory_gib: float = Field(gt=0)
    autoscaled: bool = Field(
        False, description="Ray's autoscaler adds them for actors that want them, so those that are not there count too"
    )

    @model_validator(mode="after")
    def _nodes_that_come_are_known(self) -> NodeGroup:
        if self.autoscaled and not self.labels:
            raise ValueError("autoscaled nodes need labels, by which those that are there already are known")
        return self


class ClusterConfig(Section):
    """Where Ray runs and what each role reserves."""

    address: str | None = Field(None, description="`auto` or host:port of a running cluster; empty starts a local one")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local cluster; empty counts the cores")
    object_store_gib: float = Field(1.0, gt=0)
    rollout: PlacedResources = PlacedResources(cpus=0.5, memory_gib=3.0)
    learner: PlacedResources = PlacedResources(cpus=0.3, memory_gib=1.5)
    shard: PlacedResources = PlacedResources(cpus=0.05, memory_gib=0.3)
    retrieval: PlacedResources = PlacedResources(cpus=0.1, memory_gib=1.0)
    reward: PlacedResources = PlacedResources(cpus=0.1, memory_gib=0.3)
    clips: ActorResources = ActorResources(cpus=0.05, memory_gib=0.5)
    reward_workers: int = Field(1, ge=1)
    nodes: dict[str, NodeGroup] = Field(
        {}, description="groups of nodes by name: what --dry-run compares with instead of this machine or a cluster"
    )

    @model_validator(mode="after")
    def _strict_is_for_one_group(self) -> ClusterConfig:
        for name in ("rollout", "shard", "retrieval", "reward"):
            if getattr(self, name).strategy.startswith("strict"):
                raise ValueError(f"cluster.{name}.strategy: take pack or spread; only the learner's ranks start as one")
        return self
