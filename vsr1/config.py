"""The one typed configuration of every job: what a run reads, trains and places where.

A YAML file and `key=value` overrides are merged and checked against `Config`. An unknown key is an error that names the
nearest known one; nothing is read from environment variables.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the place and the fix."""


# Ray runs actors and training workers in folders of their own, so a path means the same from where it was given.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.absolute())]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)


class EngineConfig(Section):
    """One vLLM engine, as a rollout actor or a teacher holds it."""

    max_model_len: int = Field(1024, ge=128)
    max_num_seqs: int = Field(32, ge=1)
    latent_slots: int = Field(64, ge=1, description="requests that may hold latents at one time")
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
    seed: int = 0


class TeacherConfig(Section):
    """Who writes the reasoning of SFT records, and how it is asked."""

    kind: Literal["rules", "vllm", "openai"] = Field(
        "rules", description="rules: toy corpus only; vllm: engines of our own; openai: an OpenAI-compatible server"
    )
    folder: AbsolutePath | None = Field(None, description="vllm: checkpoint folder of a Qwen3-VL model")
    model: str | None = Field(None, description="openai: name of the model at the server")
    url: str | None = Field(None, description="openai: base URL of the server, as in http://host:8000/v1")
    key_file: AbsolutePath | None = Field(None, description="openai: file that holds the API key and nothing else")
    max_tokens: int = Field(4096, ge=1, description="most tokens of a reply, its thinking included")
    temperature: float = Field(0.4, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    seed: int = Field(42, description="of a pair's first reply; each further attempt takes the next number")
    attempts: int = Field(3, ge=1, description="replies asked for until one can be used")
    max_failed_fraction: float = Field(0.02, ge=0, le=1, description="share of pairs without reasoning tolerated")
    concurrency: int = Field(8, ge=1, description="openai: requests at one time")
    timeout_s: float = Field(120.0, gt=0, description="openai: longest wait for a reply")
    retries: int = Field(5, ge=0, description="openai: of one request, on 429, 5xx or no answer, waiting longer each")
    engines: int = Field(1, ge=1, description="vllm: engines at one time, on CUDA each on a GPU of its own")
    batch: int = Field(16, ge=1, description="vllm: pairs given to an engine at one time")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="vllm; auto: the checkpoint's own")
    engine: EngineConfig = EngineConfig(max_model_len=32_768, gpu_memory_utilization=0.9)

    @model_validator(mode="after")
    def _teacher_can_be_reached(self) -> TeacherConfig:
        needed = {"rules": (), "vllm": ("folder",), "openai": ("model", "url")}[self.kind]
        missing = [f"data.teacher.{name}" for name in needed if not getattr(self, name)]
        if missing:
            raise ValueError(f"data.teacher.kind={self.kind} needs {' and '.join(missing)}")
        return self


class DataConfig(Section):
    """The dataset folder and how raw videos become clips."""

    root: AbsolutePath = Path("runs/data")
    splits: tuple[str, ...] = ("train", "test")
    videos: AbsolutePath | None = Field(
        None,
        description="folder of source videos, sub-folders too, named <video id>.<ext>; empty: root/raw_videos/SPLIT",
    )
    annotations: dict[str, AbsolutePath] = Field(
        {}, description="annotation file of a split, copied to root/raw_annotation/; a split not named has it there"
    )
    search_only: bool = Field(
        False, description="videos without annotations: a corpus to search, no queries or records"
    )
    sample_fps: float = Field(1.0, gt=0, description="frames per second kept from a video")
    max_frames: int = Field(64, ge=2, description="most frames in a clip; a longer video is spread over them")
    max_pixels: int = Field(200_704, ge=1024, description="most pixels in a frame, before rounding to the patch grid")
    clip_storage: Literal["npy", "compact"] = Field(
        "npy", description="raw frames as published, or H.264 of about a tenth of the bytes that loses a little"
    )
    timestamps: Literal["true_seconds", "legacy_index"] = "true_seconds"
    beyond_duration: Literal["error", "keep"] = Field(
        "error", description="moments that end after their video: refuse them, or keep them as published"
    )
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="share of undecodable videos a build tolerates")
    hard_negatives: int = Field(50, ge=1, description="nearest wrong videos kept for each training query")
    grpo_negatives: int = Field(24, ge=1)
    decode_workers: int = Field(2, ge=1)
    embed_workers: int = Field(1, ge=1)
    embed_batch: int = Field(32, ge=1, description="most queries or clips embedded at one time")
    embed_batch_mib: int = Field(
        512, ge=1, description="most MiB of frames in one batch of clips, if it is not one clip"
    )
    teacher: TeacherConfig = TeacherConfig()

    @model_validator(mode="after")
    def _search_only_has_no_annotations(self) -> DataConfig:
        if self.search_only and self.annotations:
            raise ValueError("data.search_only=true builds from videos alone; leave data.annotations out")
        return self


class ModelConfig(Section):
    """Checkpoint folders of the policy and of the frozen embedder."""

    policy: AbsolutePath = Path("checkpoints/toy/policy")
    embedder: AbsolutePath = Path("checkpoints/toy/embedder")
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    allow_bin: bool = Field(False, description="read .bin weights of the policy, without running code from them")


class LearnerConfig(Section):
    """DeepSpeed ranks and the optimiser, the same for both stages."""

    ranks: int = Field(2, ge=1)
    zero_stage: Literal[1, 2, 3] = 1
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_tokens: int = Field(
        16_384,
        ge=1,
        description="most tokens of one forward pass of one rank, padding included; a longer row is a pass of its own",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute MLPs again in backward instead of keeping them: less memory, more time"
    )


class RetrievalLossConfig(Section):
    """InfoNCE of the refined query against the right video and its negatives."""

    weight: float = Field(0.3, ge=0)
    temperature: float = Field(0.1, gt=0)
    negatives: int = Field(24, ge=1, description="wrong videos: the one shown, then the nearest to the query in words")
    mined: int = Field(0, ge=0, description="videos nearest to the refined query itself, also negatives")


class SftConfig(Section):
    """Stage 1: token cross-entropy plus the retrieval loss."""

    learner: LearnerConfig = LearnerConfig()
    retrieval_loss: RetrievalLossConfig = RetrievalLossConfig()
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1, description="examples in one optimiser step, over all ranks")
    max_steps: int | None = Field(None, ge=1)
    save_every: int | None = Field(
        None, ge=1, description="optimiser steps between states that a stopped run goes on from; empty: the end only"
    )


class RewardConfig(Section):
    """Weights of the reward terms and the form of the retrieval reward."""

    verification: float = 1.2
    think_format: float = 0.05
    time_format: float = 0.05
    temporal_iou: float = 0.45
    refine_presence: float = 0.1
    retrieval: float = 0.8
    retrieval_form: Literal["delta_p", "p_after"] = "delta_p"
    retrieval_temperature: float = Field(0.1, gt=0)
    no_refine_penalty: float = Field(-0.3, le=0, description="retrieval term of a turn without match or refinement")


class ObjectiveConfig(Section):
    """The policy loss of Stage 2; docs/training.md says which values make GRPO, Dr.GRPO, DAPO, GSPO, CISPO and more."""

    loss: Literal["clip", "gspo", "cispo"] = "clip"
    clip_low: float = Field(0.2, gt=0, le=1)
    clip_high: float = Field(0.28, gt=0)
    normalise: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    advantage: Literal["group", "group_centred", "batch"] = Field(
        "group", description="divided by the group's deviation, only centred (Dr.GRPO), or normalised over the batch"
    )
    advantage_epsilon: float = Field(1e-4, gt=0)
    credit: Literal["trajectory", "turn"] = Field(
        "trajectory", description="turn: a turn answers for the mean of its own reward and of those after it"
    )
    discount: float = Field(1.0, ge=0, le=1, description="weight of each turn in that mean, against the turn before it")
    kl: Literal["none", "k1", "k2", "k3"] = Field("none", description="against the policy that the stage starts from")
    kl_weight: float = Field(0.01, ge=0)
    mismatch: Literal["ratio", "truncate", "mask"] = Field(
        "truncate",
        description="engine and learner differ: take it into the ratio, or weight tokens, truncated or masked",
    )
    mismatch_low: float = Field(0.5, ge=0, le=1)
    mismatch_high: float = Field(2.0, ge=1)
    train_truncated: bool = Field(True, description="replies cut at the length limit take part in the policy loss")
    overlong_buffer: int = Field(0, ge=0, description="last tokens before the limit that cost up to 1; 0: none")


class LatentActionConfig(Section):
    """Latents as actions: sampled in the engine, with a density in the loss."""

    sigma: float = Field(0.0, ge=0, description="standard deviation of each number of a latent; 0: no actions")
    weight: float = Field(1.0, ge=0, description="of their policy loss")
    clip_low: float = Field(0.05, gt=0, le=1)
    clip_high: float = Field(0.05, gt=0)


class GrpoConfig(Section):
    """Stage 2: group-relative policy optimisation on the live loop."""

    learner: LearnerConfig = LearnerConfig(learning_rate=2e-5)
    retrieval_loss: RetrievalLossConfig = RetrievalLossConfig(weight=0.1)
    objective: ObjectiveConfig = ObjectiveConfig()
    latents: LatentActionConfig = LatentActionConfig()
    train_heads: bool = True
    first_video: Literal["retrieved", "balanced", "recorded"] = Field(
        "retrieved",
        description="what turn 1 shows: the live search's top video; that or, for augmented records, the right one; or "
        "that of the GRPO record",
    )
    end_lost_episodes: bool = Field(
        True, description="end with the rejection of the right video, if it is excluded then: the search is lost"
    )
    steps: int = Field(10, ge=1)
    limit_s: float | None = Field(
        None, gt=0, description="no step begins later than this after the first one: compares runs of equal time"
    )
    prompts_per_step: int = Field(4, ge=1)
    group_size: int = Field(8, ge=2)
    replace_equal_groups: int = Field(
        0, ge=0, description="more prompts a step for groups whose samples all earned the same (dynamic sampling)"
    )
    max_failed_fraction: float = Field(0.1, ge=0, le=1, description="share of a step's samples that may fail")
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints in `checkpoints/step-N`; empty: the last one only"
    )
    validate_every: int | None = Field(None, ge=1, description="steps between evaluations on `val_split`")
    val_split: str = "val"
    evaluate_after: bool = Field(
        False, description="evaluate `eval.split` with the trained weights, as `vsr1 eval` does"
    )


class AgentConfig(Section):
    """The loop: turns, latents and what a rejected video means."""

    max_turns: int = Field(3, ge=1)
    refinement: Literal["latents", "text", "none"] = Field(
        "latents", description="after a rejection: latents, the query in new words, or the next video of the ranking"
    )
    latents: int = Field(8, ge=1, le=8, description="of one refinement, where it is by latents")
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
    workers: int = Field(1, ge=1)
    transfer: Literal["file", "nccl", "ipc"] = Field(
        "file", description="how new weights come: nccl between GPUs, ipc on the learner's own GPU, file on CPU"
    )
    verify_push: bool = Field(True, description="compare every pushed tensor with the learner's")
    temperature: float = Field(1.0, ge=0)
    engine: EngineConfig = EngineConfig()


class RetrievalConfig(Section):
    """The search over the corpus: exact with `index: Flat`."""

    shards: int = Field(2, ge=1)
    replicas: int = Field(1, ge=1, description="actors that hold the same shard")
    index: str = Field("Flat", description="FAISS index factory; another than Flat finds approximately, scores exactly")
    index_params: str = Field("", description="search parameters of that index, as in nprobe=16")
    top_k: int = Field(10, ge=1)
    max_batch: int = Field(256, ge=1)
    deadline_s: float = Field(60.0, gt=0, description="after which a search fails with what it waited for")
    shard_timeout_s: float = Field(30.0, gt=0, description="after which a replica that does not answer counts as down")
    keep_versions: int = Field(2, ge=1, description="versions of the corpus that can be searched, the current included")
    keep_s: float = Field(0.0, ge=0, description="and older ones for so long after they were replaced")


class ActorResources(Section):
    """What Ray reserves for one actor of a role."""

    cpus: float = Field(0.1, ge=0)
    gpus: float = Field(0.0, ge=0)
    memory_gib: float = Field(0.5, ge=0)


class ClusterConfig(Section):
    """Where Ray runs and what each role reserves."""

    address: str | None = Field(None, description="`auto` or host:port of a running cluster; empty starts a local one")
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local cluster; empty counts the cores")
    object_store_gib: float = Field(1.0, gt=0)
    rollout: ActorResources = ActorResources(cpus=0.5, memory_gib=3.0)
    learner: ActorResources = ActorResources(cpus=0.3, memory_gib=1.5)
    shard: ActorResources = ActorResources(cpus=0.05, memory_gib=0.3)
    retrieval: ActorResources = ActorResources(cpus=0.1, memory_gib=1.0)
    reward: ActorResources = ActorResources(cpus=0.1, memory_gib=0.3)
    clips: ActorResources = ActorResources(cpus=0.05, memory_gib=0.5)
    reward_workers: int = Field(1, ge=1)


class EvalConfig(Section):
    split: str = "test"
    limit: int | None = Field(None, ge=1, description="queries evaluated, the first ones; empty takes all")
    top_k: int = Field(100, ge=1, description="videos listed by a search, of which ranked lists of moments are made")
    rank_by_depth: bool = Field(True, description="also rank by the first 1, 2, ... latents of each refinement")
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="share of queries that may fail without an error")
    agents: dict[str, dict[str, Any]] = Field(
        {}, description="further evaluations on the same engines, by name: what each changes in `agent`"
    )


class CorpusConfig(Section):
    """A corpus to search: one split of a dataset folder that was built."""

    root: AbsolutePath
    split: str = "test"
    added: AbsolutePath | None = Field(None, description="folder of added videos; empty: root/added/SPLIT")


class UploadConfig(Section):
    """Which videos may be added to what is served, and what one may cost."""

    max_mib: int = Field(2048, ge=1, description="of a file")
    max_seconds: float = Field(14_400.0, gt=0, description="length of a video")
    max_frames: int = Field(1_000_000, ge=1, description="of a video")
    max_pixels: int = Field(9_437_184, ge=1, description="of a frame, as in 4096x2304")
    cpu_s: float = Field(1800.0, ge=1, description="CPU seconds of a process that decodes a video")
    memory_gib: float = Field(4.0, gt=0, description="address space of such a process")
    waiting: int = Field(16, ge=1, description="videos of a corpus on their way; beyond them the answer is 429")
    at_once: int = Field(2, ge=1, description="files received at one time; beyond them the answer is 429")
    path_root: AbsolutePath | None = Field(None, description="folder below which a path may be given; empty: none may")
    urls: bool = Field(False, description="whether a video may be fetched from a public address")
    limit_s: float = Field(3600.0, gt=0, description="for receiving a file, or fetching one")


class ServeConfig(Section):
    """The served agent."""

    corpora: dict[str, CorpusConfig] = Field({}, description="by the name that a search gives")
    model: str = Field("vsr1", description="name of `model.policy` in searches and answers; the default of a search")
    models: dict[str, AbsolutePath] = Field(
        {}, description="further policy checkpoints, by the name that a search gives"
    )
    least_replicas: int = Field(1, ge=1, description="agents of each model, one engine each")
    most_replicas: int = Field(1, ge=1)
    searches_a_replica: int = Field(32, ge=1, description="searches that one agent plays at one time")
    waiting_searches: int = Field(64, ge=0, description="further searches that wait; beyond them the answer is 429")
    request_limit_s: float = Field(120.0, gt=0, description="after which a search ends with what it has")
    key_file: AbsolutePath | None = Field(None, description="hashes of API keys; empty lets everybody in")
    cors_origins: list[str] = Field([], description="sites whose scripts may ask, as in https://example.org")
    body_limit_kib: int = Field(1024, ge=1, description="largest body of a request")
    body_limit_s: float = Field(20.0, gt=0, description="after which a body that is still coming is refused")
    resume_grace_s: float = Field(
        5.0, ge=0, description="a streamed search goes on for so long without a reader; 0: it ends with its reader"
    )
    resume_keep_s: float = Field(60.0, ge=0, description="events of a search that is over can be read for so long")
    resume_keep: int = Field(256, ge=0, description="searches that are over and kept")
    upload: UploadConfig = UploadConfig()
    longest_clip_s: float = Field(120.0, gt=0, description="of a part of a video that is cut out")

    @model_validator(mode="after")
    def _models_can_be_told_apart(self) -> ServeConfig:
        for name in (self.model, *self.models):
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"serve: {name!r} cannot name a model; use letters, digits, '_' and '-'")
        if self.model in self.models:
            raise ValueError(f"serve.models: {self.model!r} names model.policy already (serve.model); choose another")
        return self


class ToyConfig(Section):
    """The corpus that `vsr1 demo` renders."""

    create: bool = Field(False, description="render and build it before a stage that finds no dataset in data.root")
    train: int = Field(96, ge=2, description="videos in the training split")
    val: int = Field(0, ge=0, description="videos in the validation split; 0: there is none")
    test: int = Field(48, ge=2, description="videos in the test split")
    queries: int = Field(1, ge=1, description="queries of each training video, about one moment in different words")


class Config(Section):
    seed: int = 0
    run_dir: AbsolutePath = Path("runs/run")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    rewards: RewardConfig = RewardConfig()
    agent: AgentConfig = AgentConfig()
    rollout: RolloutConfig = RolloutConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    cluster: ClusterConfig = ClusterConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()
    toy: ToyConfig = ToyConfig()

    @property
    def served_models(self) -> dict[str, Path]:
        """Policy checkpoints that are served, by name; the first is the default."""
        return {self.serve.model: self.model.policy, **self.serve.models}

    @model_validator(mode="after")
    def _reply_fits_the_context(self) -> Config:
        if self.agent.max_new_tokens >= self.rollout.engine.max_model_len:
            raise ValueError(
                f"agent.max_new_tokens={self.agent.max_new_tokens} leaves no room for a prompt in "
                f"rollout.engine.max_model_len={self.rollout.engine.max_model_len}"
            )
        return self

    @model_validator(mode="after")
    def _evaluated_agents_are_agents(self) -> Config:
        for name, changes in self.eval.agents.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ValueError(f"eval.agents: {name!r} names files; use letters, digits, '_', '.' and '-'")
            try:
                AgentConfig.model_validate(self.agent.model_dump() | changes)
            except ValidationError as error:
                raise ValueError(f"eval.agents.{name}: " + "; ".join(_explain(e, "") for e in error.errors())) from None
        return self


def load_config(path: Path | str | Sequence[Path] | None, overrides: list[str] | None = None) -> Config:
    """Read YAML files, apply `section.key=value` overrides and validate.

    Args:
        path: YAML file, or several of which later ones win key by key, or None for the defaults.
        overrides: OmegaConf dot-list entries; later ones win.

    Raises:
        ConfigError: missing or malformed file, unknown key (with the nearest known one), or a value of the wrong type.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else list(path or [])
    for file in paths:
        if not file.is_file():
            raise ConfigError(f"config file {file} does not exist")
    where = ", ".join(str(file) for file in paths)
    for entry in overrides or []:
        if "=" not in entry:
            raise ConfigError(f"override {entry!r} is not of the form section.key=value")
    try:
        tree = OmegaConf.merge(
            OmegaConf.create(Config().model_dump(mode="json")),  # under a partly given section lie its own defaults
            *[OmegaConf.load(file) for file in paths],
            OmegaConf.from_dotlist(overrides or []),
        )
        values = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{where or 'overrides'}: {error}") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, where) for item in error.errors())) from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back to an equal value."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _explain(error: Any, files: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    where = f"{files}: " if files else ""
    if error["type"] != "extra_forbidden":
        given = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
        return f"{where}{key or 'config'}: {error['msg']}{given}"
    nearest = difflib.get_close_matches(key, _known_keys(Config), n=1, cutoff=0.0)[0]
    return f"{where}unknown key {key!r}; the nearest known key is {nearest!r}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
