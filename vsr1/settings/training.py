"""Settings of the two training stages, their rewards and objective, and of the evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vsr1.settings.parts import AbsolutePath, Section


class LearnerConfig(Section):
    """DeepSpeed ranks and the optimiser, the same for both stages."""

    ranks: int = Field(2, ge=1)
    zero_stage: Literal[1, 2, 3] = 1
    learning_rate: float = Field(5e-5, gt=0)
    head_learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["half_constant", "constant", "linear", "cosine"] = Field(
        "half_constant", description="of both rates, over the steps or the time of a stage; all but constant end at 0"
    )
    warmup_steps: int = Field(0, ge=0, description="first steps, over which the rates rise evenly from 0")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_tokens: int = Field(
        16_384,
        ge=1,
        description="most tokens of one forward pass of one rank, a prompt that replies share counted once; one reply "
        "with its prompt is a pass at least",
    )
    gradient_checkpointing: bool | Annotated[int, Field(ge=0)] = Field(
        False,
        description="compute layers again in backward instead of keeping their insides, all or that many: less memory, "
        "more time",
    )
    compile: bool = Field(
        False, description="fuse the layers' small operations by torch.compile; not with zero_stage=3"
    )
    vision_cache_gib: float = Field(
        2.0, ge=0, description="features of clips kept for later passes and steps, where the vision tower is frozen"
    )

    @model_validator(mode="after")
    def _whole_weights_are_compiled(self) -> LearnerConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError("learner.compile=true needs whole weights on every rank: take learner.zero_stage 1 or 2")
        return self


Negatives = Annotated[
    int, Field(ge=1, description="wrong videos compared with, those nearest to the query in words; and the one shown")
]


MaxPromptTokens = Annotated[
    int | None, Field(ge=1, description="records with longer prompts, their clip included, are left out; empty: none")
]


class RetrievalLossConfig(Section):
    """InfoNCE of the refined query against the right video and its negatives."""

    weight: float = Field(0.3, ge=0)
    temperature: float = Field(0.1, gt=0)
    mined: int = Field(0, ge=0, description="videos nearest to the refined query itself, also negatives")
    latent_passes: int = Field(
        2,
        ge=1,
        le=8,
        description="over how many latents its gradient runs back; as many as latents: all, the exact one",
    )


class SftConfig(Section):
    """Stage 1: token cross-entropy plus the retrieval loss."""

    learner: LearnerConfig = LearnerConfig()
    retrieval_loss: RetrievalLossConfig = RetrievalLossConfig()
    negatives: Negatives = 24
    max_prompt_tokens: MaxPromptTokens = None
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1, description="examples in one optimiser step, over all ranks")
    max_steps: int | None = Field(None, ge=1)
    limit_s: float | None = Field(
        None, gt=0, description="no step begins later than this after the first one: compares runs of equal time"
    )
    save_every: int | None = Field(
        None, ge=1, description="optimiser steps between states that a stopped run goes on from; empty: the end only"
    )
    save_total_limit: int = Field(2, ge=1, description="newest of these states that are kept")
    val_records: int = Field(0, ge=0, description="records that are never trained on, chosen by the seed, to evaluate")
    validate_every: int | None = Field(None, ge=1, description="optimiser steps between evaluations on these records")
    keep_best: bool = Field(False, description="also keep the weights of the lowest evaluated loss, in `sft-best`")

    @model_validator(mode="after")
    def _evaluations_have_records(self) -> SftConfig:
        if (self.validate_every or self.keep_best) and not (self.validate_every and self.val_records):
            raise ValueError("an evaluation during Stage 1 needs sft.validate_every and sft.val_records")
        if self.val_records % self.learner.ranks:
            raise ValueError(
                f"sft.val_records={self.val_records} cannot be shared by sft.learner.ranks={self.learner.ranks}"
            )
        return self

    @model_validator(mode="after")
    def _ranks_share_a_batch(self) -> SftConfig:
        rows, ranks = self.batch_size, self.learner.ranks
        if rows % ranks:
            near = [str(count * ranks) for count in (rows // ranks, rows // ranks + 1) if count]
            raise ValueError(
                f"sft.batch_size={rows} cannot be shared by sft.learner.ranks={ranks}; take {' or '.join(near)}"
            )
        return self


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
    terms: Literal["summed", "apart"] = Field(
        "summed", description="apart: every reward term is normalised by itself, then their weighted sum is taken"
    )
    balance_verdicts: bool = Field(
        False, description="looks at right and at wrong videos weigh the same in a step, however many there are"
    )
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

    @model_validator(mode="after")
    def _terms_apart_are_normalised(self) -> ObjectiveConfig:
        if self.terms == "apart" and self.advantage == "group_centred":
            raise ValueError("objective.terms=apart changes nothing where advantages are only centred; take group")
        return self


class LatentActionConfig(Section):
    """Latents as actions: sampled in the engine, with a density in the loss."""

    sigma: float = Field(0.0, ge=0, description="standard deviation of each number of a latent; 0: no actions")
    weight: float = Field(1.0, ge=0, description="of their policy loss")
    weigh: Literal["fixed", "gradient"] = Field(
        "fixed", description="gradient: that loss gets `weight` times the gradient of the retrieval loss at the latents"
    )
    clip_low: float = Field(0.05, gt=0, le=1)
    clip_high: float = Field(0.05, gt=0)
    branches: int = Field(
        0,
        ge=0,
        description="perturbations of each refinement, scored by search alone; they are the actions then; 0: none",
    )
    branch_sigma: float = Field(0.3, gt=0, description="standard deviation of a branch along each direction")
    directions: int = Field(32, ge=0, description="principal ones of the latents that branches differ in; 0: all")
    guided: bool = Field(False, description="branches differ in principal directions of the retrieval loss's gradients")

    @property
    def are_trained(self) -> bool:
        """Whether there is a policy loss of the latents."""
        return bool(self.weight and (self.sigma or self.branches))

    @model_validator(mode="after")
    def _branches_are_compared(self) -> LatentActionConfig:
        if self.branches == 1:
            raise ValueError("latents.branches=1 has nothing to compare with; take 2 or more, or 0")
        return self


class GrpoConfig(Section):
    """Stage 2: group-relative policy optimisation on the live loop."""

    learner: LearnerConfig = LearnerConfig(learning_rate=2e-5)
    retrieval_loss: RetrievalLossConfig = RetrievalLossConfig(weight=0.1)
    negatives: Negatives = 24
    objective: ObjectiveConfig = ObjectiveConfig()
    latents: LatentActionConfig = LatentActionConfig()
    train_heads: bool = True
    loss_embedder: AbsolutePath | None = Field(
        None, description="embedder that the retrieval loss differentiates, where the search has another one"
    )
    loss_corpus: AbsolutePath | None = Field(
        None, description="dataset in which that embedder made the vectors of the same training videos"
    )
    max_prompt_tokens: MaxPromptTokens = None
    draw: Literal["epochs", "success"] = Field(
        "epochs", description="prompts in turn, or drawn by p(1 - p) of the share p of their samples that succeed"
    )
    first_video: Literal["retrieved", "balanced", "recorded", "hopeless"] = Field(
        "retrieved",
        description="what turn 1 shows: the live search's top video; that or, for augmented records, the right one; "
        "that of the GRPO record; or the live one, and the right one where a prompt hardly ever succeeds",
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
    minibatches: int = Field(
        1, ge=1, description="optimiser steps an epoch on one batch of examples, each on its own part of them"
    )
    epochs: int = Field(1, ge=1, description="times that each batch of examples is trained on")
    replace_equal_groups: int = Field(
        0, ge=0, description="more prompts a step for groups whose samples all earned the same (dynamic sampling)"
    )
    max_failed_fraction: float = Field(0.1, ge=0, le=1, description="share of a step's samples that may fail")
    poison_deaths: int = Field(
        3, ge=2, description="rollout workers that may die with a prompt, the last with it alone, until it is dropped"
    )
    staleness: int = Field(
        0, ge=0, description="steps that rollouts run ahead of the learner: a sample is at most so many versions old"
    )
    late: Literal["wait", "drop"] = Field(
        "wait", description="a step waits for samples that would be too old for the next, or they are dropped"
    )
    state_every: int = Field(
        5, ge=1, description="steps between states that a stopped run goes on from; rollouts since then are not lost"
    )
    state_limit: int = Field(2, ge=1, description="newest of these states that are kept")
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints in `checkpoints/step-N`; empty: the last one only"
    )
    save_total_limit: int | None = Field(None, ge=1, description="newest of them that are kept; empty: all")
    keep_best: bool = Field(False, description="also keep the weights of the best validation reward, in `grpo-best`")
    validate_every: int | None = Field(None, ge=1, description="steps between evaluations on `val_split`")
    val_split: str = "val"
    evaluate_before: bool = Field(False, description="evaluate `eval.split` before the first step, as `before`")
    evaluate_after: bool = Field(False, description="evaluate it with the trained weights, as `after`")

    @model_validator(mode="after")
    def _the_best_is_known(self) -> GrpoConfig:
        if self.keep_best and not self.validate_every:
            raise ValueError("grpo.keep_best=true compares validations; set grpo.validate_every")
        return self

    @model_validator(mode="after")
    def _losses_on_latents_fit_together(self) -> GrpoConfig:
        if (self.loss_embedder is None) != (self.loss_corpus is None):
            raise ValueError("grpo.loss_embedder and grpo.loss_corpus belong together: set both, or neither")
        if (self.latents.weigh == "gradient" or self.latents.guided) and not self.retrieval_loss.weight:
            raise ValueError("grpo.latents.weigh=gradient and guided=true need the retrieval loss; give that a weight")
        if self.learner.zero_stage == 3 and (self.latents.branches or self.latents.weigh == "gradient"):
            raise ValueError("grpo.latents.branches and weigh=gradient need whole weights: take zero_stage 1 or 2")
        return self

    @model_validator(mode="after")
    def _every_rank_has_a_sample(self) -> GrpoConfig:
        samples, ranks = self.prompts_per_step * self.group_size, self.learner.ranks
        if samples < ranks:
            raise ValueError(
                f"grpo.prompts_per_step={self.prompts_per_step} x grpo.group_size={self.group_size} are {samples} "
                f"samples a step, too few for grpo.learner.ranks={ranks}; raise one of the two or lower the ranks"
            )
        return self


class TrackingConfig(Section):
    """Where the scalars of a training go beside TensorBoard and `scalars.jsonl`."""

    wandb: str | None = Field(
        None,
        pattern=r"^[^/\\#?%:]{1,128}$",  # of the names that it takes
        description="project of Weights & Biases, whose own variables hold the key and the mode",
    )


class EvalConfig(Section):
    """What an evaluation plays."""

    split: str = "test"
    limit: int | None = Field(None, ge=1, description="queries evaluated, the first ones; empty takes all")
    top_k: int = Field(100, ge=1, description="videos listed by a search, of which ranked lists of moments are made")
    rank_by_depth: bool = Field(True, description="also rank by the first 1, 2, ... latents of each refinement")
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="share of queries that may fail without an error")
    agents: dict[str, dict[str, Any]] = Field(
        {}, description="further evaluations on the same engines, by name: what each changes in `agent`"
    )
