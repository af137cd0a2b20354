"""The engine against its oracle, on a tiny policy with video: the same prompt tokens, log-probs and latents."""

import asyncio

import pytest
import torch
from safetensors.torch import load_file, save_file

from vsr1.engine.engine import PolicyEngine, PushError, Reply
from vsr1.model.checkpoint import load_policy
from vsr1.model.forward import Row, prefill, roll_latents, token_logprobs
from vsr1.model.manifest import record
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

LIMIT = 24
CACHES = ["reset_mm_cache", "reset_encoder_cache", "reset_prefix_cache"]
LEFT_OUT = [
    "model.language_model.layers.1.mlp.up_proj.weight",
    "model.language_model.layers.0.self_attn.v_proj.weight",
    "model.language_model.layers.2.input_layernorm.weight",
    "model.language_model.embed_tokens.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "model.visual.patch_embed.proj.weight",
    "refine_projector.0.weight",
]
QUERY = "a red circle moving left and then a blue ring moving up"


async def _replies(engine: PolicyEngine, clips: list[Clip], seed: int) -> list[Reply]:
    prompt = turn_prompt(QUERY, SYSTEM_PROMPT)
    wanted = [
        engine.generate(prompt, clips[i % 3], max_tokens=LIMIT, latents=8, temperature=1.0, seed=seed + i)
        for i in range(12)
    ]
    return list(await asyncio.gather(*wanted))


def _noted(reset, emptied: list[str]):
    """The reset itself, and a note that it was done."""

    async def noted(*args):
        emptied.append(reset.__name__)
        return await reset(*args)

    return noted


@pytest.fixture(scope="module")
def played(policy_folder, clips):
    """Replies of one engine before and after a push of changed weights, and the weights pushed."""

    async def play():
        engine = await PolicyEngine.start(policy_folder, EngineConfig(latent_slots=5))
        before = await _replies(engine, clips, seed=0)
        changed = load_file(policy_folder / "model.safetensors")
        pushed = {name: tensor * 1.1 for name, tensor in changed.items()}
        manifest = {name: record(tensor) for name, tensor in pushed.items()}
        path = policy_folder / "pushed.part"  # not *.safetensors: the folder stays the checkpoint it was
        save_file(pushed, path)
        emptied = []
        for name in CACHES:
            setattr(engine._llm, name, _noted(getattr(engine._llm, name), emptied))
        await engine.push_weights("receive_file", (str(path),), 1, manifest)
        once = list(emptied)
        after = await _replies(engine, clips, seed=0)
        refused = []
        for left_out in LEFT_OUT:
            save_file({k: v * (1.0 if k == left_out else 0.9) for k, v in pushed.items()}, path)
            wanted = {name: record(tensor * 0.9) for name, tensor in pushed.items()}
            try:
                await engine.push_weights("receive_file", (str(path),), 2, wanted)
            except PushError as error:
                refused.append(str(error))
        engine.shutdown()
        return before, after, pushed, refused, once

    return asyncio.run(play())


def _gaps(replies: list[Reply], policy, folder, clips) -> tuple[float, float]:
    """Largest differences of log-probs and of latents between engine and oracle."""
    processor = ClipProcessor(folder)
    processed = [processor.process(clip) for clip in clips]
    logprob_gap = latent_gap = 0.0
    with torch.no_grad():
        features = encode_clips(policy.model.visual, [c.pixels for c in processed], [c.grid for c in processed])
        for i, reply in enumerate(replies):
            clip = processed[i % 3]
            assert reply.prompt_token_ids == processor.expand(turn_prompt(QUERY, SYSTEM_PROMPT), clip.grid, clip.marks)
            rows = [Row(reply.prompt_token_ids, reply.token_ids, (i % 3,), (clip.grid,))]
            state = prefill(policy.model, rows, features, keep_cache=True)
            logprobs, _ = token_logprobs(policy, state, rows)
            logprob_gap = max(logprob_gap, float((logprobs - torch.tensor(reply.logprobs)).abs().max()))
            if reply.latents is not None:
                latents = roll_latents(policy, state, 8)[0]
                latent_gap = max(latent_gap, float((latents - torch.tensor(reply.latents)).abs().max()))
    return logprob_gap, latent_gap


def test_replies_equal_the_oracle_with_video(played, policy_folder, clips):
    before, *_ = played
    assert sum(reply.latents is not None for reply in before) >= 4
    logprob_gap, latent_gap = _gaps(before, load_policy(policy_folder), policy_folder, clips)
    assert logprob_gap < 1e-3
    assert latent_gap < 1e-4


def test_pushed_weights_are_the_ones_that_answer(played, policy_folder, clips):
    _, after, pushed, *_ = played
    policy = load_policy(policy_folder)
    logprob_gap, _ = _gaps(after, policy, policy_folder, clips)
    assert logprob_gap > 1e-2, "the old weights still answer"
    policy.load_state_dict(pushed, strict=False)
    logprob_gap, latent_gap = _gaps(after, policy, policy_folder, clips)
    assert logprob_gap < 1e-3
    assert latent_gap < 1e-4
    assert {reply.weight_version for reply in after} == {1}


def test_an_ordinary_reply_ends_at_its_limit_without_latents(played):
    before, *_ = played
    for reply in before:
        assert (reply.finish_reason == "refined") == (reply.latents is not None)
        assert len(reply.token_ids) <= LIMIT
        assert len(reply.logprobs) == len(reply.token_ids)


def test_a_tensor_that_did_not_arrive_is_named(played):
    """Each time one tensor keeps its old values: a fused part, a norm, the tied table, the vision tower, a head."""
    *_, refused, _ = played
    assert len(refused) == len(LEFT_OUT)
    for message, name in zip(refused, LEFT_OUT, strict=True):
        named = {part.split(":")[0].split()[-1] for part in message.split("did not arrive: ")[1].split("; ")}
        assert named == {name}


def test_a_push_empties_every_cache(played):
    """Stale vision features or prompts also show in the log-probs of `after`: the same clips, prompts and seeds."""
    assert played[-1] == CACHES
