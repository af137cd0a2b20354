"""The loss of examples under a random policy: what it is of, and what is left out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.reference import prefill, roll_latents
from bench.toy.models import HIDDEN, write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from vsr1.engine.latent_table import latent_noise
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import Example, LatentActions, RetrievalTarget, Sampled, batch_totals, by_prompt
from vsr1.rl.example_loss import ExampleLoss
from vsr1.rl.objective import fetched
from vsr1.rl.refined import VideoVectors
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig, RetrievalLossConfig, SftConfig
from vsr1.video.clips import Clip, ClipError, ClipReference

VIDEOS, DEPTH = 4, 3
CLIPS = {
    f"v{i}": Clip.make(
        f"v{i}", np.random.default_rng(i).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8), np.arange(4) * 1.0
    )
    for i in range(2)
}


class Models:
    """Random models, and the loss of a stage under them."""

    def __init__(self, folder: Path) -> None:
        write_random_models(folder, train_tokenizer(vocabulary_texts(0, 200)))
        self.policy: VideoSearchPolicy = load_policy(folder / "policy").eval()
        self.embedder = Embedder.load(folder / "embedder")
        self.processor = ClipProcessor(folder / "policy")
        matrix = torch.randn(VIDEOS, HIDDEN, generator=torch.manual_seed(0))
        rows = {f"v{i}": i for i in range(VIDEOS)}
        self.vectors = VideoVectors(torch.nn.functional.normalize(matrix, dim=-1), rows)

    def loss(self, stage: SftConfig | GrpoConfig) -> ExampleLoss:
        return ExampleLoss(
            stage, AgentConfig(latents=DEPTH), self.policy, None, self.embedder, self.vectors, self.processor,
            lambda reference: reference.check(CLIPS[reference.video_id]),
        )  # fmt: skip

    def example(self, video: str, response: list[int], sampled: Sampled | None = None) -> Example:
        prompt = self.processor.prompt_ids(turn_prompt("a red circle", SYSTEM_PROMPT), CLIPS[video])
        return Example(prompt, response, (CLIPS[video].reference,), sampled=sampled)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("loss"))


@pytest.mark.parametrize("mined", [0, 1, VIDEOS])
def test_the_retrieval_loss_is_of_the_query_as_it_is_searched(models: Models, mined: int) -> None:
    """Latents of the turns before come first, as the environment joins them; mined negatives are near that query."""
    drawn = torch.randn(3, DEPTH, models.policy.config.refine_dim, generator=torch.Generator().manual_seed(2))
    target = RetrievalTarget("a red circle", "v0", ["v1"])
    targets = [target, replace(target, earlier_latents=drawn[2].numpy())]
    settings = RetrievalLossConfig(mined=mined)
    with torch.no_grad():
        losses = models.loss(SftConfig(retrieval_loss=settings)).refined.losses(targets, drawn[:2]).tolist()
        queries = [drawn[0], torch.cat([drawn[2], drawn[1]])]
        soft = [models.policy.soft_tokens(latents).numpy() for latents in queries]
    vectors = torch.from_numpy(models.embedder.embed_queries(["a red circle"] * 2, list(soft)))
    expected = []
    for row in vectors @ models.vectors.matrix.T / settings.temperature:  # the right video is row 0
        among = sorted({0, 1, *row.argsort(descending=True)[:mined].tolist()})
        expected.append(float(-row[among].log_softmax(dim=-1)[0]))
    assert losses == pytest.approx(expected, abs=1e-4)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_tokens_that_are_not_trained_take_no_part(models: Models) -> None:
    """With the policy's own log-probs as the engine's, a token's loss is its advantage; the means are by hand."""
    loss = models.loss(GrpoConfig(retrieval_loss=RetrievalLossConfig(weight=0.0)))
    replies, advantages = ([20, 21, 22, 23], [30, 31]), (1.0, -3.0)
    with torch.no_grad():
        plain = [models.example("v0", reply) for reply in replies]
        known = [loss.logprobs([[example]]).tolist() for example in plain]

        def numbers(*masks: list[bool] | None, shift: float = 0.0) -> dict[str, float]:
            examples = [
                replace(example, sampled=Sampled([own[0], own[1] + shift, *own[2:]], advantage, mask))
                for example, own, advantage, mask in zip(plain, known, advantages, masks, strict=True)
            ]
            return fetched([loss(by_prompt(examples), batch_totals(examples))[1]])[0]

        assert numbers(None, None)["policy_loss"] == pytest.approx(-(4 * 1.0 + 2 * -3.0) / 6, abs=1e-4)
        masked = numbers([True, False, True, True], [True, False], shift=5.0)  # of the tokens that are left out
        assert masked["policy_loss"] == pytest.approx(-(3 * 1.0 + 1 * -3.0) / 4, abs=1e-4)
        assert masked["mismatch/gap_max"] < 1e-4
        assert masked["entropy"] != pytest.approx(numbers(None, None)["entropy"], abs=1e-6)


def test_replies_of_an_episode_have_in_one_pass_the_loss_that_they_have_one_by_one(models: Models) -> None:
    """Two replies, [20, 21] and [30], with [end, 40, 41] between them that only says where the first one ends."""
    loss = models.loss(SftConfig(retrieval_loss=RetrievalLossConfig(weight=0.0)))
    end = int(models.processor.tokenizer.eos_token_id)
    first, last = models.example("v0", [20, 21]), models.example("v0", [30])
    last.prompt_ids = [*first.prompt_ids, 20, 21, end, 40, 41]
    whole = replace(first, response_ids=[20, 21, end, 40, 41, 30], learnt=[True, True, True, False, False, True])

    def total(*examples: Example) -> float:
        totals = batch_totals(list(examples))
        return float(loss(by_prompt(list(examples)), totals)[0]) * totals.tokens

    with torch.no_grad():
        assert total(whole) == pytest.approx(total(first) + total(last), rel=1e-4)


def test_the_noise_of_latents_follows_from_the_seed_of_the_request(models: Models) -> None:
    """A ratio of one, and with it no clip, says that the latents are their means and that noise."""
    stage = GrpoConfig.model_validate({"retrieval_loss": {"weight": 0.0}, "latents": {"sigma": 0.3}})
    loss, seed = models.loss(stage), 11
    example = models.example("v1", [20, 21], Sampled([-5.0, -5.0], 0.0))
    noise = torch.stack([latent_noise(seed, k, models.policy.config.refine_dim) for k in range(DEPTH)])
    with torch.no_grad():
        [[row]], features = loss.rows([[example]])
        state = prefill(models.policy.model, [row], features, keep_cache=True)
        latents = roll_latents(models.policy, state, DEPTH, 0.3 * noise[None])[0].numpy()
        ratios = []
        for told in (seed, seed + 1):
            example.sampled = Sampled([-5.0, -5.0], 0.0, latents=LatentActions(latents, told, 1.0))
            ratios.append(loss([[example]], batch_totals([example]))[1]["latents/log_ratio_max"])
    assert ratios[0] < 1e-4 < 1e-2 < ratios[1]


def test_a_prompt_may_show_several_clips(models: Models) -> None:
    """Each of them counts, and so does their order."""
    loss, processor = models.loss(SftConfig()), models.processor
    tokens = {video: processor.clip_tokens(processor.grid(clip), (0.5, 2.5)) for video, clip in CLIPS.items()}
    words = processor.tokenizer.encode("a red circle")

    def logprobs(*videos: str) -> list[float]:
        prompt = [token for video in videos for token in [*tokens[video], *words]]
        example = Example(prompt, [20, 21], tuple(CLIPS[video].reference for video in videos))
        with torch.no_grad():  # in a pass with another example, which shows one of the clips
            return loss.logprobs([[models.example("v1", [30])], [example]]).tolist()[1:]

    assert len({round(logprobs(*videos)[0], 5) for videos in (("v0", "v1"), ("v1", "v0"), ("v1", "v1"))}) == 3


def test_a_clip_of_other_content_is_named_with_both_hashes_and_what_to_do(models: Models) -> None:
    example = replace(models.example("v0", [20]), clips=(ClipReference("v0", "0" * 64),))
    with pytest.raises(ClipError) as refused:
        models.loss(SftConfig()).logprobs([[example]])
    for part in ("'v0'", "0" * 64, CLIPS["v0"].content_hash, "rebuild the dataset"):
        assert part in str(refused.value)


def near_refinement(
    models: Models, latents: dict[str, object], retrieval: float = 0.0
) -> tuple[ExampleLoss, Example, torch.Tensor]:
    """Return a refinement, its loss against videos that are all near the refined query, and the query's scores."""
    stage = GrpoConfig.model_validate({"retrieval_loss": {"weight": retrieval}, "latents": latents})
    drawn = torch.randn(1, DEPTH, models.policy.config.refine_dim, generator=torch.Generator().manual_seed(3))
    soft = models.policy.soft_tokens(drawn[0]).detach().numpy()
    query = torch.from_numpy(models.embedder.embed_queries(["a red circle"], [soft]))
    near = query + 0.01 * torch.randn(VIDEOS, HIDDEN, generator=torch.Generator().manual_seed(4))
    vectors = VideoVectors(torch.nn.functional.normalize(near, dim=-1), models.vectors.rows)
    loss = ExampleLoss(
        stage, AgentConfig(latents=DEPTH), models.policy, None, models.embedder, vectors, models.processor,
        lambda reference: CLIPS[reference.video_id],
    )  # fmt: skip
    example = models.example("v1", [20, 21], Sampled([-5.0, -5.0], 0.0))
    example.target = RetrievalTarget("a red circle", "v0", ["v1"], latents=drawn[0].numpy())
    return loss, example, (query @ vectors.matrix.T)[0]


def test_branches_score_refinements_by_the_search_and_move_them_towards_the_right_video(models: Models) -> None:
    """A video that was just rejected is not in the way."""
    loss, example, scores = near_refinement(models, {"branches": 32, "directions": 0, "branch_sigma": 9})
    total, counted = loss([[example]], batch_totals([example]))
    assert counted["latents/branch_spread"] > 0
    total.backward()
    heads = models.policy.refine_projector[0].weight.grad
    assert heads is not None and heads.abs().sum() > 0
    models.policy.zero_grad()
    target = example.target
    assert target is not None and target.latents is not None
    branches = torch.from_numpy(target.latents)[None, None]
    for shown in (set(), {"v1"}, {"v1", "v2", "v3"}):
        rivals = [i for i in range(1, VIDEOS) if f"v{i}" not in shown]
        wanted = -np.log(1 + int((scores[rivals] > scores[0]).sum()))
        assert loss.refined.branch_rewards([target], [shown], branches).item() == pytest.approx(wanted)


def test_a_pass_without_refinements_has_no_loss_of_branches(models: Models) -> None:
    stage = GrpoConfig.model_validate({"retrieval_loss": {"weight": 0.0}, "latents": {"branches": 4}})
    example = models.example("v1", [20, 21], Sampled([-5.0, -5.0], 1.0))
    numbers = fetched([models.loss(stage)([[example]], batch_totals([example]))[1]])[0]
    assert numbers["loss"] == pytest.approx(numbers["policy_loss"])


def test_the_search_and_the_retrieval_loss_may_have_different_embedders(models: Models) -> None:
    """The loss is of the known one, the rewards of branches of that which is searched."""
    known = VideoVectors(models.vectors.matrix.flip(0), models.vectors.rows)
    loss = ExampleLoss(
        GrpoConfig(), AgentConfig(latents=DEPTH), models.policy, None, models.embedder, models.vectors,
        models.processor, lambda reference: CLIPS[reference.video_id], known=(models.embedder, known),
    )  # fmt: skip
    drawn = torch.randn(1, DEPTH, models.policy.config.refine_dim, generator=torch.Generator().manual_seed(2))
    target = RetrievalTarget("a red circle", "v0", ["v1", "v2", "v3"])
    flipped = replace(target, positive="v3", negatives=["v2", "v1", "v0"])  # the same rows of the other matrix
    with torch.no_grad():
        own = models.loss(GrpoConfig())
        assert loss.refined.losses([target], drawn).item() == pytest.approx(
            own.refined.losses([flipped], drawn).item(), abs=1e-5
        )
        rewards = [one.refined.branch_rewards([target], [set()], drawn[:, None]) for one in (loss, own)]
    assert rewards[0] == rewards[1]


def test_branches_may_be_guided_by_the_retrieval_loss_and_get_its_gradient(models: Models) -> None:
    """At twice the weight the loss of the branches has twice the gradient, whatever it had of itself."""
    scales = []
    for weight in (1.0, 2.0):
        loss, example, _ = near_refinement(
            models,
            {"branches": 32, "guided": True, "weigh": "gradient", "weight": weight, "branch_sigma": 9},
            retrieval=0.5,
        )
        torch.manual_seed(0)
        total, counted = loss([[example]], batch_totals([example]))
        scales.append(float(counted["latents/scale_max"]) * weight)
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in models.policy.head_parameters())
        models.policy.zero_grad()
    assert scales[0] > 0 and scales[1] == pytest.approx(2 * scales[0], rel=1e-3)
