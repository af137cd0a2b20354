"""The learner group takes the same step with every ZeRO stage, and hands out whole weights."""

import threading

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load

from actors.learner import LearnerGroup
from vsr1.config import Config
from vsr1.formats.atomic import write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import load_policy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import Example, LearnerError
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.toy.models import HIDDEN, write_random_models
from vsr1.toy.tokenizer import train_tokenizer, vocabulary_texts

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
VIDEOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random models, and vectors of a corpus."""
    folder = tmp_path_factory.mktemp("learner")
    write_random_models(folder, train_tokenizer(vocabulary_texts(0, 200)))
    data = DatasetFolder(folder / "data")
    data.video_embeddings("train").parent.mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(VIDEOS, HIDDEN)).astype(np.float32)
    np.save(data.video_embeddings("train"), vectors)
    write_json(data.docid2row("train"), {f"v{i}": i for i in range(VIDEOS)})
    return folder


def _examples(folder, clips) -> list[Example]:
    processor = ClipProcessor(folder / "policy")
    refine = processor.tokenizer.convert_tokens_to_ids("<REFINE>")
    examples = []
    for i in range(6):
        seen = processor.process(clips[i % 3])
        prompt = processor.expand(turn_prompt("a blue ring pulsing", SYSTEM_PROMPT), seen.grid, seen.marks)
        reply = [20 + i, 40, 60 + i][: 2 + i % 2] + ([refine] if i % 2 else [])
        negatives = [f"v{(i + k) % VIDEOS}" for k in (1, 2)]
        examples.append(
            Example(
                "a blue ring pulsing", clips[i % 3], prompt, reply, i % 2 == 1, f"v{i}", negatives,
                [-5.0] * len(reply), 1.0 - i / 2,
            )
        )  # fmt: skip
    return examples


def _step(
    folder, clips, zero_stage: int, dtype: str = "float32"
) -> tuple[dict[str, torch.Tensor], dict, dict[str, float]]:
    """Weights, manifest and numbers of one step; the saved folder is `folder/zero<stage>`."""
    config = Config.model_validate(
        {
            "data": {"root": folder / "data"},
            "model": {"policy": folder / "policy", "embedder": folder / "embedder", "dtype": dtype},
            "grpo": {"learner": {"ranks": 2, "zero_stage": zero_stage, "learning_rate": 1e-3, "micro_tokens": 700}},
        }
    )
    group = LearnerGroup(config)
    try:
        ray.get(group.setup())
        numbers = group.step(_examples(folder, clips), 1e-3)
        weights, manifest = ray.get(group.weights())
        group.save(folder / (f"zero{zero_stage}" if dtype == "float32" else dtype))
    finally:
        group.close()
    return load(weights), manifest, numbers


@pytest.fixture(scope="module")
def first(folder, clips):
    return _step(folder, clips, 1)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_every_zero_stage_takes_the_same_step(folder, clips, first, zero_stage):
    weights, manifest, numbers = _step(folder, clips, zero_stage)
    wanted, wanted_manifest, wanted_numbers = first
    assert weights.keys() == wanted.keys() == manifest.keys() == wanted_manifest.keys()
    # Adam's first step is the learning rate times the gradient's sign: where that is noise, whole steps differ.
    apart = {name: float((tensor - wanted[name]).abs().gt(2e-5).float().mean()) for name, tensor in weights.items()}
    assert max(apart.values()) < 0.02, apart
    for name in ("policy_loss", "retrieval_loss", "grad_norm"):
        assert numbers[name] == pytest.approx(wanted_numbers[name], rel=1e-3, abs=1e-5)
    saved = load_policy(folder / f"zero{zero_stage}").state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(saved[name], tensor, atol=0, rtol=0, msg=name)


def test_bfloat16_takes_the_same_step_but_for_its_precision(folder, clips, first):
    weights, _, numbers = _step(folder, clips, 1, "bfloat16")
    wanted, _, wanted_numbers = first
    assert weights.keys() == wanted.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for name in ("policy_loss", "retrieval_loss"):
        assert numbers[name] == pytest.approx(wanted_numbers[name], rel=0.05)


def test_a_rank_that_dies_is_named(folder, clips):
    """The other rank fails too, on its broken connection; it is not the one to look at."""
    learner = {"ranks": 2, "micro_tokens": 1}
    model = {"policy": folder / "policy", "embedder": folder / "embedder"}
    group = LearnerGroup(
        Config.model_validate({"data": {"root": folder / "data"}, "model": model, "grpo": {"learner": learner}})
    )
    try:
        ray.get(group.setup())
        killer = threading.Timer(1.0, ray.kill, [group._ranks[1]])
        killer.start()
        with pytest.raises(LearnerError, match="learner rank 1 died"):
            while True:
                group.step(_examples(folder, clips), 1e-3)
    finally:
        group.close()


def test_what_is_handed_out_is_all_that_was_trained(folder, first):
    weights, manifest, _ = first
    before = load_policy(folder / "policy").state_dict()
    after = load_policy(folder / "zero1").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if name != "lm_head.weight" and not before[name].equal(after[name])}
    assert changed <= weights.keys()
    assert {name for name in weights if name not in changed} <= {
        name for name in weights if "refine_latent_input_projector" in name or "refine_append" in name
    }
    assert not any("visual" in name or "refine_gate" in name for name in weights)
    assert all(manifest[name].shape == tuple(tensor.shape) for name, tensor in weights.items())
