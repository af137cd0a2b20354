"""Prompts that replies share and latents side by side, against padded rows of their own and the roll one by one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.reference import ForwardState, prefill, roll_latents, token_logprobs
from bench.toy.models import HIDDEN, write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from vsr1.engine.latent_table import latent_noise
from vsr1.model.attention import LayerOptions
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row, run_rows
from vsr1.model.forward import token_logprobs as packed_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.rl.batch import (
    BatchTotals,
    Example,
    LatentActions,
    LearnerError,
    RetrievalTarget,
    Sampled,
    batch_totals,
    by_prompt,
    micro_batches,
)
from vsr1.rl.example_loss import ExampleLoss
from vsr1.rl.objective import TokenBatch, latent_objective, token_objective
from vsr1.rl.refined import VideoVectors
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, LearnerConfig, RetrievalLossConfig, SftConfig
from vsr1.video.clips import Clip, ClipReference

DEPTH, SIGMA, VIDEOS = 4, 0.3, 5
REPLIES = [[20, 21, 22], [30, 31], [40, 41, 42, 43], [20, 50]]


def _clip(number: int, height: int) -> Clip:
    frames = np.random.default_rng(number).integers(0, 255, (4, height, 64, 3), dtype=np.uint8)
    return Clip.make(f"v{number}", frames, np.arange(4) * 1.0)


CLIPS = {clip.video_id: clip for clip in (_clip(0, 64), _clip(1, 96), _clip(2, 64))}
Gradients = dict[str, torch.Tensor]


class Models:
    """Random models, what they see, and examples of two stages."""

    def __init__(self, folder: Path) -> None:
        write_random_models(folder, train_tokenizer(vocabulary_texts(0, 200)))
        self.policy: VideoSearchPolicy = load_policy(folder / "policy").eval()
        self.policy.model.visual.requires_grad_(False)
        self.before = copy.deepcopy(self.policy).requires_grad_(False)  # the reference of the KL term
        generator = torch.manual_seed(3)
        for parameter in self.before.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
        self.embedder, self.processor = Embedder.load(folder / "embedder"), ClipProcessor(folder / "policy")
        matrix = torch.nn.functional.normalize(torch.randn(VIDEOS, HIDDEN, generator=generator), dim=-1)
        self.vectors = VideoVectors(matrix, {f"v{i}": i for i in range(VIDEOS)})
        self.read: list[str] = []

    def loss(self, stage: SftConfig | GrpoConfig) -> ExampleLoss:
        def read(reference: ClipReference) -> Clip:
            self.read.append(reference.video_id)
            return reference.check(CLIPS[reference.video_id])

        before = self.before if isinstance(stage, GrpoConfig) and stage.objective.kl != "none" else None
        sources = self.policy, before, self.embedder, self.vectors, self.processor, read
        return ExampleLoss(stage, AgentConfig(latents=DEPTH), *sources, temperature=0.8)

    def examples(self) -> list[Example]:
        """Two groups of one prompt, a reply alone to a third, and a reply without a clip; some of them refine."""
        examples = []
        for video in ("v0", "v1"):
            prompt = self.processor.prompt_ids(turn_prompt("a red circle", SYSTEM_PROMPT), CLIPS[video])
            examples += [Example(prompt, reply, (CLIPS[video].reference,)) for reply in REPLIES]
        prompt = self.processor.prompt_ids(turn_prompt("a blue ring", SYSTEM_PROMPT), CLIPS["v2"])
        examples.append(Example(prompt, REPLIES[0], (CLIPS["v2"].reference,)))
        examples.append(Example(self.processor.tokenizer.encode("a red circle"), REPLIES[1]))
        for i, example in enumerate(examples):
            if i % 3 != 1:
                example.target = RetrievalTarget("a red circle", "v0", ["v1", f"v{2 + i % 3}"])
        return examples

    @torch.no_grad()
    def sampled(self, loss: ExampleLoss) -> list[Example]:
        """The examples as an engine of the same weights would have sampled their latents."""
        examples = self.examples()
        noise = torch.stack([self.noise(i) for i in range(len(examples))])
        latents = roll_latents(self.policy, self.state(loss, examples), DEPTH, SIGMA * noise).numpy()
        for i, example in enumerate(examples):
            logprobs = [-3.0 - 0.1 * (i + j) for j in range(len(example.response_ids))]
            example.sampled = Sampled(
                logprobs, 1.0 - 0.3 * i, [j != 1 for j in range(len(logprobs))] if i % 2 else None
            )
            if example.target:
                example.target.latents = latents[i]
                example.sampled.latents = LatentActions(latents[i], i, 0.5 - 0.2 * i)
        return examples

    def noise(self, seed: int) -> torch.Tensor:
        return torch.stack([latent_noise(seed, step, self.policy.config.refine_dim) for step in range(DEPTH)])

    def state(
        self, loss: ExampleLoss, examples: list[Example], policy: VideoSearchPolicy | None = None
    ) -> ForwardState:
        rows, features = loss.rows([[example] for example in examples])
        return prefill((policy or self.policy).model, [row for [row] in rows], features, keep_cache=True)

    def gradients(self, total: torch.Tensor) -> Gradients:
        self.policy.zero_grad(set_to_none=True)
        total.backward()
        return {name: p.grad for name, p in self.policy.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("shared"))


def _stage_2(**learner: object) -> GrpoConfig:
    return GrpoConfig.model_validate(
        {
            "learner": learner,
            "retrieval_loss": {"latent_passes": DEPTH, "weight": 0.4, "mined": 1},
            "objective": {"kl": "k3", "kl_weight": 0.1, "loss": "gspo", "normalise": "sequence_mean"},
            "latents": {"sigma": SIGMA, "weight": 0.7},
        }
    )


def _stage_1() -> SftConfig:
    return SftConfig(retrieval_loss=RetrievalLossConfig(latent_passes=DEPTH, weight=0.4))


def _oracle_of_stage_2(models: Models, loss: ExampleLoss, examples: list[Example]) -> torch.Tensor:
    """The loss by padded rows, and by two rolls: at the sampled latents, and with gradients from each to the next."""
    stage, totals = _stage_2(), batch_totals(examples)
    rows = [Row(example.prompt_ids, example.response_ids) for example in examples]
    state = models.state(loss, examples)
    trained = torch.tensor([flag for example in examples for flag in example.trained])
    lengths = [sum(example.trained) for example in examples]
    with torch.no_grad():
        before = token_logprobs(models.before, models.state(loss, examples, models.before), rows, 0.8)[0]
    batch = TokenBatch(
        token_logprobs(models.policy, state, rows, 0.8)[0][trained],
        torch.tensor([value for example in examples for value in example.sampled.logprobs])[trained],
        before[trained],
        torch.tensor([example.sampled.advantage for example in examples]).repeat_interleave(torch.tensor(lengths)),
        lengths,
    )
    total, _ = token_objective(batch, stage.objective, totals, AgentConfig().max_new_tokens)
    refined = [i for i, example in enumerate(examples) if example.target]
    noise = torch.stack([models.noise(i) if i in refined else torch.zeros_like(models.noise(0)) for i in range(10)])
    values = torch.zeros_like(noise)
    values[refined] = torch.stack([torch.tensor(examples[i].target.latents) for i in refined])
    means = roll_latents(models.policy, state, DEPTH, actions=values)
    advantages = torch.tensor([examples[i].latent_actions.advantage for i in refined])
    of_rows = values[refined], means[refined], noise[refined]
    total = total + latent_objective(*of_rows, advantages, stage.latents, totals)[0]
    latents = roll_latents(models.policy, models.state(loss, examples), DEPTH, SIGMA * noise)
    targets = [examples[i].target for i in refined]
    return total + 0.4 * loss.refined.losses(targets, latents[refined]).sum() / totals.refined


def _oracle_of_stage_1(models: Models, loss: ExampleLoss, examples: list[Example]) -> torch.Tensor:
    totals, state = batch_totals(examples), models.state(loss, examples)
    rows = [Row(example.prompt_ids, example.response_ids) for example in examples]
    logprobs, _ = token_logprobs(models.policy, state, rows, 0.8)
    end = models.processor.tokenizer.eos_token_id
    ends = (models.policy.lm_head(state.after_norm[:, -1]) / 0.8).log_softmax(-1)[:, end]
    refined = [i for i, example in enumerate(examples) if example.target]
    latents = roll_latents(models.policy, state, DEPTH)[refined]
    retrieval = loss.refined.losses([examples[i].target for i in refined], latents).sum() / totals.refined
    return -(logprobs.sum() + ends.sum()) / totals.tokens + 0.4 * retrieval


def _check_same(gradients: Gradients, wanted: Gradients) -> None:
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        apart = float((gradients[name] - gradient).abs().max())
        assert apart <= 1e-5 * float(gradient.abs().max()) + 1e-9, (name, apart)


Oracle = Callable[[Models, ExampleLoss, list[Example]], torch.Tensor]


@pytest.mark.parametrize(
    ("stage", "oracle"),
    [(_stage_1(), _oracle_of_stage_1), (_stage_2(), _oracle_of_stage_2)],
    ids=["stage 1", "stage 2 with GRPO, KL, latents and InfoNCE"],
)
def test_the_loss_and_every_gradient_equal_the_oracle_and_unshared_rows(
    models: Models, stage: SftConfig | GrpoConfig, oracle: Oracle
) -> None:
    """In one pass, in passes of a few tokens, a row at a time, and with layers that backward computes again."""
    loss = models.loss(stage)
    examples = models.sampled(loss) if isinstance(stage, GrpoConfig) else models.examples()
    totals = batch_totals(examples)
    expected = oracle(models, loss, examples)
    wanted = models.gradients(expected)
    ways = [[by_prompt(examples)], micro_batches(examples, 160), [[[example]] for example in examples]]
    assert len(ways[1]) > 2
    for passes in ways:
        total = sum((loss(groups, totals)[0] for groups in passes), torch.zeros(()))
        assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        _check_same(models.gradients(total), wanted)
    again = models.loss(stage.model_copy(update={"learner": LearnerConfig(gradient_checkpointing=3)}))
    _check_same(models.gradients(again(by_prompt(examples), totals)[0]), wanted)


def test_each_pass_over_the_latents_brings_the_gradient_nearer_to_the_whole_one(models: Models) -> None:
    loss = models.loss(_stage_2())
    examples = models.sampled(loss)
    totals = BatchTotals(1, 1, 1, 1)
    gradients = []
    for passes in range(1, DEPTH + 1):
        stage = GrpoConfig(retrieval_loss=RetrievalLossConfig(latent_passes=passes, weight=100.0))
        parts = models.gradients(models.loss(stage)(by_prompt(examples), totals)[0])
        gradients.append(torch.cat([part.flatten() for name, part in parts.items() if name.startswith("refine_proj")]))
    cosines = [float(torch.nn.functional.cosine_similarity(one, gradients[-1], dim=0)) for one in gradients]
    assert cosines == sorted(cosines)
    assert 0.9 < cosines[0] < 0.99 < cosines[1]


@torch.no_grad()
def test_layers_are_the_same_whichever_way_they_are_run(models: Models) -> None:
    """Rows of one group and alone, with and without clips, log-probs and states."""
    loss = models.loss(_stage_2())
    rows, features = loss.rows(by_prompt(models.examples()))
    flat = [row for group in rows for row in group]
    wanted, _ = token_logprobs(models.policy, prefill(models.policy.model, flat, features, keep_cache=False), flat)
    for groups, recompute in ((rows, True), ([[row] for row in flat], 2)):
        states = run_rows(models.policy.model, groups, features, options=LayerOptions(recompute))
        torch.testing.assert_close(packed_logprobs(models.policy, states, flat)[0], wanted, atol=1e-5, rtol=0)


def test_replies_about_other_clips_do_not_share_a_prompt(models: Models) -> None:
    """The same tokens, but another film of the same size: each reply is about its own."""
    loss = models.loss(SftConfig())
    example = models.examples()[0]
    other = replace(example, clips=(CLIPS["v2"].reference,))
    examples = [example, other, replace(example, response_ids=[60])]
    assert by_prompt(examples) == [[examples[0], examples[2]], [other]]
    with torch.no_grad():
        alone = [loss.logprobs([[one]]) for one in examples]
        totals = batch_totals(examples)
        shared = loss(by_prompt(examples), totals)[1]["token_loss"]
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)
    assert shared == pytest.approx(-float(torch.cat(alone).sum()) / totals.tokens, rel=1e-5)


def test_a_clip_is_read_and_encoded_once_while_there_is_room(models: Models) -> None:
    """Two steps of a pass a clip: the features are those of a fresh tower; without room each pass encodes anew."""
    passes = [[group] for group in by_prompt(models.examples())]
    wanted = [models.loss(_stage_2()).rows(groups)[1] for groups in passes]
    for budget, reads in ((1.0, ["v0", "v1", "v2"]), (0.0, ["v0", "v1", "v2"] * 2)):
        loss = models.loss(_stage_2(vision_cache_gib=budget))
        models.read.clear()
        for _ in range(2):
            again = [loss.rows(groups)[1] for groups in passes]
        assert models.read == reads
        for features, others in zip(again[:3], wanted[:3], strict=True):
            assert [one.tokens.equal(other.tokens) for one, other in zip(features, others, strict=True)] == [True]


def test_features_of_a_tower_that_is_trained_are_not_kept(models: Models) -> None:
    models.policy.model.visual.merger.requires_grad_(True)
    try:
        loss, groups = models.loss(_stage_1()), by_prompt(models.examples())
        models.read.clear()
        totals = batch_totals(models.examples())
        for _ in range(2):
            gradients = models.gradients(loss(groups, totals)[0])
            assert any(name.startswith("model.visual.merger") for name in gradients)
        assert sorted(models.read) == ["v0", "v0", "v1", "v1", "v2", "v2"]
    finally:
        models.policy.model.visual.requires_grad_(False)


def test_a_reply_without_tokens_and_one_without_its_latents_are_named(models: Models) -> None:
    loss = models.loss(_stage_2())
    example = models.examples()[0]
    with pytest.raises(LearnerError, match="a reply about v0 has no token"):
        loss.rows([[replace(example, response_ids=[])]])
    example.sampled = Sampled([-1.0] * 3, 1.0)
    with pytest.raises(
        LearnerError, match=rf"about v0 needs the engine's latents of shape \[{DEPTH}, {HIDDEN}\], got none"
    ):
        loss([[example]], batch_totals([example]))


def test_a_prompt_longer_than_the_budget_is_run_once_a_reply_and_says_so(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    examples = models.examples()[:4]
    with caplog.at_level(logging.WARNING):
        passes = micro_batches(examples, 10)
    assert [[len(group) for group in groups] for groups in passes] == [[1]] * 4
    assert f"{examples[2].length} tokens, more than micro_tokens=10" in caplog.text


def test_stand_ins_of_a_pass_without_clips_or_latents_reach_the_same_modules(models: Models) -> None:
    """The ranks' rule: whatever a pass is of, the same parameters have a gradient."""
    loss = models.loss(_stage_2())
    examples = models.sampled(loss)
    totals = batch_totals(examples)
    whole = models.gradients(loss(by_prompt(examples), totals)[0])
    plain = next(example for example in examples if not example.clips)
    plain = replace(plain, target=None, sampled=replace(plain.sampled, latents=None))
    none = models.gradients(loss([[plain]], totals)[0])
    assert none.keys() == whole.keys()
    assert not any(gradient.any() for name, gradient in none.items() if name.startswith("refine_"))


def test_vision_features_survive_the_pass_that_made_them(models: Models) -> None:
    """A copy: a slice of a pass's features would keep those of all its clips in memory."""
    loss = models.loss(_stage_2())
    _, features = loss.rows(by_prompt(models.examples()))
    assert all(one.tokens.untyped_storage().nbytes() == one.tokens.nbytes for one in features)
    clip = models.processor.process(CLIPS["v1"])
    [alone] = encode_clips(models.policy.model.visual, [clip.pixels], [clip.grid])
    torch.testing.assert_close(features[1].tokens, alone.tokens, atol=1e-6, rtol=1e-5)
