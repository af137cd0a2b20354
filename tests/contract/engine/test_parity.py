"""The engine against its oracle, on a tiny policy with video: the same prompt tokens, log-probs and latents."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.reference import prefill, roll_latents, token_logprobs
from vsr1.engine.engine import PolicyEngine, Reply
from vsr1.engine.gate import MixedWeightsError, PushError
from vsr1.episode.environment import Part, Prompt, PromptError
from vsr1.model.checkpoint import load_policy
from vsr1.model.forward import Row
from vsr1.model.manifest import record
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.search.prompts import SYSTEM_PROMPT, VIDEO_PLACEHOLDER, turn_parts, turn_prompt
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
BEFORE, AFTER = turn_parts(QUERY, SYSTEM_PROMPT)
BETWEEN = [100, 101, 102]  # tokens that were sampled before: they go in as they are


def _about(*parts: Part) -> Prompt:
    return Prompt([BEFORE, *parts, AFTER])


async def _replies(engine: PolicyEngine, clips: list[Clip], seed: int) -> list[Reply]:
    wanted = [
        engine.generate(_about(clips[i % 3]), max_tokens=LIMIT, latents=8, temperature=1.0, seed=seed + i)
        for i in range(12)
    ]
    return list(await asyncio.gather(*wanted))


async def _pairs(engine: PolicyEngine, clips: list[Clip]) -> list[Reply]:
    """Replies about two clips each: clips 0 and 1, 1 and 2, 2 and 0, twice."""
    options = {"max_tokens": LIMIT, "latents": 8, "temperature": 1.0}
    wanted = [
        engine.generate(_about(clips[i % 3], BETWEEN, clips[(i + 1) % 3]), seed=i, **options) for i in range(6)
    ]  # fmt: skip
    return list(await asyncio.gather(*wanted))


def _noted(reset, emptied: list[str]):
    """The reset itself, and a note that it was done."""

    async def noted(*args):
        emptied.append(reset.__name__)
        return await reset(*args)

    return noted


@pytest.fixture(scope="module")
def played(on_engine, policy_folder, clips):
    """What the engine did: replies before and after a push of changed weights, failed pushes, one that mends them."""

    async def play(engine: PolicyEngine):
        before = await _replies(engine, clips, seed=0)
        pairs = await _pairs(engine, clips)
        for refused_prompt in (_about(clips[0], VIDEO_PLACEHOLDER), _about(*clips)):
            with pytest.raises(PromptError):
                await engine.generate(refused_prompt, max_tokens=LIMIT, latents=8, temperature=1.0, seed=0)
        changed = load_file(policy_folder / "model.safetensors")
        pushed = {name: tensor * 1.1 for name, tensor in changed.items()}
        manifest = {name: record(tensor) for name, tensor in pushed.items()}
        path = policy_folder / "pushed.part"  # not *.safetensors: the folder stays the checkpoint it was
        save_file(pushed, path)
        emptied = []
        for name in CACHES:
            setattr(engine._llm, name, _noted(getattr(engine._llm, name), emptied))
        await engine.push_weights("file", [str(path)], 1, manifest)
        once = list(emptied)
        after = await _replies(engine, clips, seed=0)
        refused = []
        for left_out in LEFT_OUT:
            save_file({k: v * (1.0 if k == left_out else 0.9) for k, v in pushed.items()}, path)
            wanted = {name: record(tensor * 0.9) for name, tensor in pushed.items()}
            try:
                await engine.push_weights("file", [str(path)], 2, wanted)
            except PushError as error:
                refused.append(str(error))
        with pytest.raises(MixedWeightsError, match="push all weights again, or restart the engine: PushError: 1 of"):
            await _replies(engine, clips, seed=0)
        save_file(pushed, path)
        versions, mended = [], []

        async def manifest_of_the_sender():
            """As with NCCL: it comes when all is sent. Until then nobody is answered, and the version is the old."""
            versions.append(engine.weight_version)
            early = asyncio.ensure_future(_replies(engine, clips, seed=0))
            await asyncio.sleep(0.2)
            assert not early.done()
            mended.append(early)
            return manifest

        await engine.push_weights("file", [str(path)], 3, manifest_of_the_sender())
        versions.append(engine.weight_version)
        again = await mended[0]
        return SimpleNamespace(
            before=before, pairs=pairs, after=after, again=again, pushed=pushed, refused=refused, once=once,
            versions=versions,
        )  # fmt: skip

    return on_engine(play)


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
    assert sum(reply.latents is not None for reply in played.before) >= 4
    logprob_gap, latent_gap = _gaps(played.before, load_policy(policy_folder), policy_folder, clips)
    assert logprob_gap < 1e-3
    assert latent_gap < 1e-4


def test_pushed_weights_are_the_ones_that_answer(played, policy_folder, clips):
    policy = load_policy(policy_folder)
    logprob_gap, _ = _gaps(played.after, policy, policy_folder, clips)
    assert logprob_gap > 1e-2, "the old weights still answer"
    policy.load_state_dict(played.pushed, strict=False)
    logprob_gap, latent_gap = _gaps(played.after, policy, policy_folder, clips)
    assert logprob_gap < 1e-3
    assert latent_gap < 1e-4
    assert {reply.weight_version for reply in played.after} == {1}


def test_an_ordinary_reply_ends_at_its_limit_without_latents(played):
    for reply in played.before:
        assert (reply.finish_reason == "refined") == (reply.latents is not None)
        assert len(reply.token_ids) <= LIMIT
        assert len(reply.logprobs) == len(reply.token_ids)


def test_a_tensor_that_did_not_arrive_is_named(played):
    """Each time one tensor keeps its old values: a fused part, a norm, the tied table, the vision tower, a head."""
    assert len(played.refused) == len(LEFT_OUT)
    for message, name in zip(played.refused, LEFT_OUT, strict=True):
        named = {part.split(":")[0].split()[-1] for part in message.split("did not arrive: ")[1].split("; ")}
        assert named == {name}


def test_a_push_empties_every_cache(played):
    """Stale vision features or prompts also show in the log-probs of `after`: the same clips, prompts and seeds."""
    assert played.once == CACHES


def test_a_push_that_passes_its_check_mends_those_that_failed(played):
    """A request that came meanwhile is answered by the whole weights, as after the first push, under their version."""
    assert played.versions == [1, 3]
    assert {reply.weight_version for reply in played.again} == {3}
    for reply, wanted in zip(played.again, played.after, strict=True):
        assert reply.token_ids == wanted.token_ids


@torch.no_grad()
def test_two_clips_in_one_prompt_equal_stock_hugging_face(played, policy_folder, clips):
    policy, processor = load_policy(policy_folder), ClipProcessor(policy_folder)
    processed = [processor.process(clip) for clip in clips]
    features = encode_clips(policy.model.visual, [c.pixels for c in processed], [c.grid for c in processed])
    refined = 0
    for i, reply in enumerate(played.pairs):
        pair = (i % 3, (i + 1) % 3)
        shown = [processed[clip] for clip in pair]
        first, second = (processor.clip_tokens(clip.grid, clip.marks) for clip in shown)
        before, after = (processor.tokenizer.encode(text, add_special_tokens=False) for text in (BEFORE, AFTER))
        prompt = [*before, *first, *BETWEEN, *second, *after]
        assert reply.prompt_token_ids == prompt
        ids = torch.tensor([prompt + reply.token_ids])
        logits = policy(
            input_ids=ids,
            pixel_values_videos=torch.cat([clip.pixels for clip in shown]),
            video_grid_thw=torch.tensor([clip.grid for clip in shown]),
            mm_token_type_ids=(ids == processor.video_token).int() * 2,
        ).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(reply.logprobs), logprobs, atol=1e-3, rtol=0)
        if reply.latents is not None:
            refined += 1
            row = Row(prompt, reply.token_ids, pair, tuple(clip.grid for clip in shown))
            latents = roll_latents(policy, prefill(policy.model, [row], features, keep_cache=True), 8)[0]
            torch.testing.assert_close(torch.tensor(reply.latents), latents, atol=1e-4, rtol=0)
    assert refined
