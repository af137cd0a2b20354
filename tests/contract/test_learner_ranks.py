"""Learner ranks as plain processes: what ZeRO-3, bfloat16 and broken numbers must not do, and what latents train."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.reference import prefill, roll_latents
from bench.toy.models import HIDDEN, toy_config, toy_processor, write_random_models
from bench.toy.tokenizer import policy_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.engine.latent_table import latent_noise
from vsr1.model.checkpoint import load_policy, save_policy
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import Example, LatentActions, LearnerError, RetrievalTarget, Sampled
from vsr1.rl.learner import Learner, on_rank_0
from vsr1.rl.refined import VideoVectors
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import AgentConfig, ModelConfig
from vsr1.settings.training import (
    GrpoConfig,
    LatentActionConfig,
    LearnerConfig,
    ObjectiveConfig,
    RetrievalLossConfig,
    SftConfig,
)
from vsr1.video.clips import Clip

pytestmark = pytest.mark.timeout(500)
VIDEOS, DEPTH = 4, 3
SIGMA, SEED = 0.3, 71  # of sampled latents
WIDE = 640  # latent width with which DeepSpeed splits the heads over ranks: it keeps smaller weights whole
LIMIT_S = 240
Job = Callable[[Path, int], Any]

# A server that has imported everything and runs no thread yet: its forks start at once.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__, "deepspeed"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    base = train_tokenizer(vocabulary_texts(0, 200))
    write_random_models(folder, base)
    tokenizer = policy_tokenizer(base)
    torch.manual_seed(0)
    save_policy(folder / "wide", VideoSearchPolicy(toy_config(tokenizer, refine_dim=WIDE)), toy_processor(tokenizer))
    return folder


def _rank(job: Job, folder: Path, rank: int, ranks: int, port: int, answer: Path) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT_S - 20)
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    torch.save(job(folder, rank), answer)
    torch.distributed.barrier()  # a rank that leaves early breaks the others' last collective


def _run(job: Job, folder: Path, ranks: int = 2) -> list[Any]:
    """What each rank returned; fails when one fails or hangs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = [folder / f"{job.__name__}-{rank}.pt" for rank in range(ranks)]
    started = [
        processes.Process(target=_rank, args=(job, folder, rank, ranks, port, answer))
        for rank, answer in enumerate(answers)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + LIMIT_S
    while any(process.is_alive() for process in started) and time.monotonic() < deadline:
        if any(process.exitcode for process in started):
            break
        time.sleep(0.1)
    ended = [process.exitcode for process in started]
    for process in started:
        process.kill()
        process.join()
    assert ended == [0] * ranks, f"exit codes of the ranks, None where one hung: {ended}"
    return [torch.load(answer, weights_only=False) for answer in answers]


def _learner(folder: Path, policy: str = "policy", dtype: str = "float32", **settings: Any) -> Learner:
    return _learner_of(
        SftConfig(learner=LearnerConfig(**{"ranks": 2, "learning_rate": 1e-3, **settings})),
        ModelConfig(policy=folder / policy, embedder=folder / "embedder", dtype=dtype),
    )


def _learner_of(stage: SftConfig | GrpoConfig, model: ModelConfig) -> Learner:
    vectors = torch.nn.functional.normalize(torch.randn(VIDEOS, HIDDEN, generator=torch.manual_seed(0)), dim=-1)
    videos = VideoVectors(vectors, {f"v{i}": i for i in range(VIDEOS)})
    return Learner(stage, model, AgentConfig(latents=DEPTH), videos, lambda reference: _clip(reference.video_id))


def _clip(height: str) -> Clip:
    frames = np.random.default_rng(int(height)).integers(0, 255, (4, int(height), 64, 3), dtype=np.uint8)
    return Clip.make(height, frames, np.arange(4) * 1.0)


def _example(folder: Path, height: int | None, words: int, refined: bool = True) -> Example:
    """A reply of `words` tokens about a clip of frames that high, or about none."""
    processor = ClipProcessor(folder / "policy")
    response = [20 + i % 7 for i in range(words)]
    target = RetrievalTarget("a red circle", "v0", ["v1"] if height is None else ["v1", "v2"]) if refined else None
    if height is None:
        return Example(processor.tokenizer.encode("a red circle"), response, target=target)
    clip = _clip(str(height))
    prompt = processor.prompt_ids(turn_prompt("a red circle", SYSTEM_PROMPT), clip)
    return Example(prompt, response, (clip.reference,), target)


Step = tuple[dict[str, float], dict[str, torch.Tensor] | None]  # numbers and, of rank 0, whole weights


def _uneven_steps(folder: Path, rank: int) -> list[Step]:
    """Rank 0 sees clips of two sizes and long replies; rank 1 has neither clip nor target nor, in its last pass, work.

    With ZeRO-1, with ZeRO-3, and with ZeRO-3 and recomputed layers.
    """
    parts = [
        [_example(folder, 64, 9), _example(folder, 96, 520), _example(folder, 96, 4, refined=False)],
        [_example(folder, None, 5, refined=False), _example(folder, None, 3, refined=False)],
    ]
    steps = []
    for settings in ({"zero_stage": 1}, {"zero_stage": 3}, {"zero_stage": 3, "gradient_checkpointing": True}):
        learner = _learner(folder, "wide", micro_tokens=1300, **settings)
        steps.append((learner.step(parts[rank], 1e-3), on_rank_0(learner.full_weights())))
    return steps


def test_ranks_of_uneven_work_stay_in_step_under_zero_3(folder: Path) -> None:
    """No video on a rank, other clip sizes, other numbers of refined rows and of chunks: the same step as ZeRO-1."""
    first, second = _run(_uneven_steps, folder)
    for (numbers, _), (others, weights) in zip(first, second, strict=True):
        assert numbers == others, "the ranks give the numbers of the whole batch"
        assert {"retrieval_loss", "latents/norm", "token_loss", "grad_norm"} <= numbers.keys()
        assert numbers["tokens"] == 9 + 520 + 4 + 5 + 3
        assert weights is None
    _check_same_steps(first)


def _check_same_steps(steps: list[Step]) -> None:
    """All took the step of the first one."""
    (wanted_numbers, wanted_weights), *others = steps
    for numbers, weights in others:
        for name, value in wanted_numbers.items():
            if name.startswith(("seconds/", "learner/")):
                continue
            assert numbers[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert weights.keys() == wanted_weights.keys()
        # Adam's first step is the rate times the gradient's sign: where that is noise, whole steps differ.
        for name, tensor in weights.items():
            apart = float((tensor - wanted_weights[name]).abs().gt(2e-5).float().mean())
            assert apart < 0.02, (name, apart)


def _stage_2_steps(folder: Path, rank: int) -> list[Step]:
    """Steps of replies that share prompts, with KL, latents and InfoNCE: with ZeRO-1, 2 and 3, with a pass for each
    reply instead, and with ZeRO-1 in bfloat16; the policy after the third is saved, too."""
    refine = ClipProcessor(folder / "policy").tokenizer.convert_tokens_to_ids("<REFINE>")
    drawn = np.random.default_rng(0).normal(size=(6, DEPTH, HIDDEN)).astype(np.float32)
    examples = []
    for i in range(rank, 6, 2):
        example = _example(folder, (64, 96)[i % 2], 2 + i % 2, refined=i % 4 != 2)
        reply = [*example.response_ids, refine]
        sampled = Sampled([-5.0] * len(reply), 1.0 - i / 2)
        if example.target:
            example.target.latents = drawn[i]
            sampled.latents = LatentActions(drawn[i], SEED + i, 0.5 - i / 4)
        examples.append(replace(example, response_ids=reply, sampled=sampled))
    assert len({example.shared for example in examples}) == 1
    steps = []
    ways = [(1, 700, "float32"), (2, 700, "float32"), (3, 700, "float32"), (3, 1, "float32"), (1, 700, "bfloat16")]
    for zero_stage, micro_tokens, dtype in ways:
        learner = _learner_of(
            GrpoConfig(
                learner=LearnerConfig(zero_stage=zero_stage, learning_rate=1e-3, micro_tokens=micro_tokens),
                objective=ObjectiveConfig(kl="k3", kl_weight=0.1),
                latents=LatentActionConfig(sigma=SIGMA),
            ),
            ModelConfig(policy=folder / "policy", embedder=folder / "embedder", dtype=dtype),
        )
        steps.append((learner.step(examples, 1e-3), on_rank_0(learner.full_weights())))
        if zero_stage == 3:
            learner.save(folder / "zero3")
    return steps


def test_every_zero_stage_unshared_prompts_and_bfloat16_take_the_same_step(folder: Path) -> None:
    [*steps, (numbers, weights)], _ = _run(_stage_2_steps, folder)
    _check_same_steps(steps)
    assert {"kl", "latents/policy_loss", "retrieval_loss", "seconds/learn/backward"} <= numbers.keys()
    saved = load_policy(folder / "zero3").state_dict()
    assert all(saved[name].equal(tensor) for name, tensor in steps[-1][1].items())
    wanted, wanted_weights = steps[0]
    assert weights.keys() == wanted_weights.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for name in ("policy_loss", "retrieval_loss"):
        assert numbers[name] == pytest.approx(wanted[name], rel=0.05)


DRIFT_STEPS, DRIFT = 40, 1.5e-4


def _drift(folder: Path, zero_stage: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of one before and after many steps of Adam, each `DRIFT` long, in bfloat16."""
    learner = _learner(folder, dtype="bfloat16", zero_stage=zero_stage, learning_rate=DRIFT, head_learning_rate=DRIFT)
    probe = "refine_projector.1.weight"  # a LayerNorm: ones

    def weight() -> torch.Tensor:
        return next(tensor.clone() for name, tensor in learner.full_weights() if name == probe)

    def loss() -> torch.Tensor:
        return learner.policy.refine_projector[1](torch.ones(HIDDEN, dtype=torch.bfloat16).cumsum(0)).sum() * 1e3

    before = weight()
    for _ in range(DRIFT_STEPS):
        learner.engine.set_gradient_accumulation_boundary(True)
        learner.engine.backward(learner.engine(loss))
        learner.engine.step()
    return before, weight()


def _drifts(folder: Path, rank: int) -> Any:
    return [_drift(folder, zero_stage) for zero_stage in (1, 2, 3)]


def test_steps_below_bfloat16_resolution_add_up(folder: Path) -> None:
    """Between 1 and the next bfloat16 lie 2^-7: a step of 1.5e-4 alone would be rounded away each time."""
    [stages] = _run(_drifts, folder, ranks=1)
    for before, after in stages:
        assert before.dtype == after.dtype == torch.bfloat16
        assert (before + DRIFT).equal(before)
        moved = (after.float() - before.float()).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, DRIFT * DRIFT_STEPS), atol=2**-8, rtol=0)
        assert (moved > 0).float().mean() > 0.9


def _broken_numbers(folder: Path, rank: int) -> Any:
    """Errors and whether weights and state stayed, of a loss and of a gradient norm that are not finite."""
    learner = _learner_of(
        GrpoConfig(learner=LearnerConfig(zero_stage=2, learning_rate=1e-3)),
        ModelConfig(policy=folder / "policy", embedder=folder / "embedder"),
    )

    def step(advantage: float) -> None:
        example = _example(folder, 64, 5, refined=False)
        learner.step([replace(example, sampled=Sampled([-5.0] * 5, advantage))], 1e-3)

    step(1.0)
    before = {name: tensor.clone() for name, tensor in learner.full_weights()}
    errors = []
    for advantage in (float("nan"), 1e38):  # the second gives a finite loss and an infinite norm
        try:
            step(advantage)
            errors.append("no error")
        except LearnerError as error:
            errors.append(str(error))
    same = all(tensor.equal(before[name]) for name, tensor in learner.full_weights())
    step(1.0)
    return errors, same, learner.steps


def test_numbers_that_are_not_finite_stop_the_step_and_are_named(folder: Path) -> None:
    for rank, (errors, same, steps) in enumerate(_run(_broken_numbers, folder)):
        assert f"rank {rank}, step 2: the loss of pass 0 is nan" in errors[0]
        assert f"rank {rank}, step 2: the gradient norm is not finite" in errors[1]
        assert same, "weights changed"
        assert steps == 2


def _step_and_weights(learner: Learner, folder: Path, rank: int) -> dict[str, torch.Tensor]:
    learner.step([_example(folder, 64, 5 + rank)], 1e-3)
    return {name: tensor.clone() for name, tensor in learner.full_weights()}


def _three_steps(folder: Path, rank: int) -> Any:
    learner = _learner(folder, "wide", dtype="bfloat16", zero_stage=3)
    for _ in range(2):
        _step_and_weights(learner, folder, rank)
    if rank == 0:
        (folder / "state").mkdir()
    torch.distributed.barrier()
    learner.save_state(folder / "state")
    drawn = torch.rand(3)
    return drawn, _step_and_weights(learner, folder, rank)


def _third_step(folder: Path, rank: int) -> Any:
    torch.manual_seed(9)
    learner = _learner(folder, "wide", dtype="bfloat16", zero_stage=3)
    learner.load_state(folder / "state")
    assert learner.steps == 2
    drawn = torch.rand(3)
    return drawn, _step_and_weights(learner, folder, rank)


def test_a_state_goes_on_to_the_bit_under_zero_3_in_bfloat16(folder: Path) -> None:
    """Stage 1 does the same with ZeRO-1 in float32 in test_sft_resume.py."""
    for wanted, found in zip(_run(_three_steps, folder), _run(_third_step, folder), strict=True):
        assert wanted[0].equal(found[0]), "random numbers"
        assert [name for name, tensor in wanted[1].items() if not tensor.equal(found[1][name])] == []


def _examples_of(folder: Path, rank: int, ranks: int) -> list[Example]:
    return [_example(folder, 64, 5 + number) for number in range(rank, 2, ranks)]


def _state_of(folder: Path, rank: int, dtype: str) -> Any:
    """Two steps, a state after them, then another step; the state is taken by others."""
    ranks, learner = torch.distributed.get_world_size(), _learner(folder, "wide", dtype=dtype)
    for _ in range(2):
        learner.step(_examples_of(folder, rank, ranks), 1e-3)
    if rank == 0:
        (folder / f"state-{ranks}-{dtype}").mkdir()
    torch.distributed.barrier()
    learner.save_state(folder / f"state-{ranks}-{dtype}")
    before = {name: tensor.clone() for name, tensor in learner.full_weights()}
    learner.step(_examples_of(folder, rank, ranks), 1e-3)
    return before, {name: tensor.clone() for name, tensor in learner.full_weights()}


def _states_of(folder: Path, rank: int) -> Any:
    return [_state_of(folder, rank, dtype) for dtype in ("float32", "bfloat16")]


def _states_of_others(folder: Path, rank: int) -> Any:
    """Go on from the states of the other number of ranks."""
    ranks, weights = torch.distributed.get_world_size(), []
    for dtype in ("float32", "bfloat16"):
        learner = _learner(folder, "wide", dtype=dtype)
        learner.load_state(folder / f"state-{3 - ranks}-{dtype}")
        assert learner.steps == 2
        before = {name: tensor.clone() for name, tensor in learner.full_weights()}
        learner.step(_examples_of(folder, rank, ranks), 1e-3)
        weights.append((before, {name: tensor.clone() for name, tensor in learner.full_weights()}))
    return weights


def test_a_state_goes_on_with_another_number_of_ranks(folder: Path) -> None:
    """One rank takes that of two and the reverse: the same weights, and the next step is that of those who wrote it."""
    of_one, of_two = (_run(_states_of, folder, ranks)[0] for ranks in (1, 2))
    by_one, by_two = (_run(_states_of_others, folder, ranks)[0] for ranks in (1, 2))
    for wanted, taken in ((of_two, by_one), (of_one, by_two)):
        for (before, after), (same, stepped) in zip(wanted, taken, strict=True):
            assert [name for name, tensor in before.items() if not tensor.equal(same[name])] == []
            for name, tensor in after.items():  # without the moments nearly all would be apart, by some 1e-4
                apart = (tensor - stepped[name]).abs().gt(2e-5).float().mean()
                assert float(apart) < 0.1, name


Moves = dict[str, torch.Tensor]


def _moves(folder: Path, advantage: float, sigma: float, train_heads: bool = True) -> Moves:
    """What one step moves that only latents answer for: tokens have no advantage, and there is no retrieval loss."""
    stage = GrpoConfig(
        learner=LearnerConfig(ranks=1, learning_rate=1e-3, head_learning_rate=1e-3),
        retrieval_loss=RetrievalLossConfig(weight=0.0),
        latents=LatentActionConfig(sigma=sigma),
        train_heads=train_heads,
    )
    learner = _learner_of(stage, ModelConfig(policy=folder / "policy", embedder=folder / "embedder"))
    example = replace(_example(folder, 64, 5), sampled=Sampled([-5.0] * 5, 0.0))
    if sigma:  # as the engine samples them
        noise = torch.stack([latent_noise(SEED, k, learner.policy.config.refine_dim) for k in range(DEPTH)])
        with torch.no_grad():
            [rows], features = learner.loss.rows([[example]])
            state = prefill(learner.policy.model, rows, features, keep_cache=True)
            latents = roll_latents(learner.policy, state, DEPTH, sigma * noise[None])
        example.sampled.latents = LatentActions(latents[0].numpy(), SEED, advantage)
    before = {name: tensor.clone() for name, tensor in learner.policy.named_parameters()}
    numbers = learner.step([example], 1e-3)
    assert ("latents/policy_loss" in numbers) == bool(sigma)
    if sigma:
        assert numbers["latents/policy_loss"] == pytest.approx(-advantage, abs=1e-4)
        assert numbers["latents/clip_fraction"] == 0.0
    return {name: tensor.detach() - before[name] for name, tensor in learner.policy.named_parameters()}


def _latent_steps(folder: Path, rank: int) -> list[Moves]:
    return [
        _moves(folder, 1.0, SIGMA),
        _moves(folder, -1.0, SIGMA),
        _moves(folder, 1.0, 0.0),
        _moves(folder, 1.0, SIGMA, train_heads=False),
    ]


def _moved(moves: Moves) -> set[str]:
    """The parts of the policy that moved."""
    moved = {name for name, move in moves.items() if move.any()}
    return {".".join(name.split(".")[:4]) if "layers" in name else name.split(".")[0] for name in moved}


def test_the_advantage_of_latents_reaches_what_made_them(folder: Path) -> None:
    [(better, worse, without, frozen)] = _run(_latent_steps, folder, ranks=1)
    layers = {".".join(name.split(".")[:4]) for name in better if "language_model.layers" in name}
    assert len(layers) > 1
    # The embedder's input head is behind the latents; it learns from the retrieval loss alone.
    assert layers | {"refine_projector", "refine_latent_input_projector"} <= _moved(better)
    assert "refine_append_input_projector" not in _moved(better)
    assert not any(better[name].any() for name in better if "visual" in name)
    assert not any(move.any() for move in without.values())
    # Adam's first step is the rate against the gradient's sign: the opposite advantage takes the opposite step.
    for name, move in better.items():
        if name.startswith(("refine_projector", "refine_latent_input_projector")):
            assert move.abs().max() > 5e-4, name
            torch.testing.assert_close(worse[name], -move, atol=1e-6, rtol=0, msg=name)
    assert not any(move.any() for name, move in frozen.items() if name.startswith("refine_"))
    assert layers <= _moved(frozen)
