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
from vsr1.rl.example_loss import ExampleLoss, VideoVectors
from vsr1.rl.objective import fetched
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
        losses = models.loss(SftConfig(retrieval_loss=settings)).retrieval_losses(targets, drawn[:2]).tolist()
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
