"""Latents under what a busy engine does to a request: chunked prefill, pre-emption, aborts, full slots, noise."""

import asyncio
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.reference import prefill, roll_latents, token_logprobs
from vsr1.engine.engine import PolicyEngine, Reply
from vsr1.engine.latent_table import MAX_DEPTH, LatentTable, latent_noise
from vsr1.engine.latents import LatentLogitsProcessor
from vsr1.engine.request import LatentRequest
from vsr1.episode.environment import Prompt
from vsr1.model.checkpoint import load_policy
from vsr1.model.forward import Row
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.search.parse import ACCEPTS
from vsr1.search.prompts import SYSTEM_PROMPT, turn_parts
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip

QUERY = "a white cross moving down and then a cyan ring pulsing"
SIGMA = 0.05
NEW = Clip.make("new", np.full((8, 64, 64, 3), 99, np.uint8), np.arange(8.0))


def _generate(engine: PolicyEngine, clips, seed: int, **changes) -> asyncio.Future[Reply]:
    options = {"max_tokens": 24, "latents": 8, "temperature": 1.0, "seed": seed} | changes
    query = QUERY + " red" * (30 + seed % 16)  # prompts of many lengths: some outgrow a cache block while they refine
    before, after = turn_parts(query, SYSTEM_PROMPT)
    return engine.generate(Prompt([before, clips[seed % 3], after]), **options)


async def most_at_one_time(engine: PolicyEngine, clips, latents: int) -> int:
    """How many of 24 requests are in vLLM at one time."""
    inside, most, stock = 0, 0, engine._llm.generate

    async def watched(*args):
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        async for output in stock(*args):
            yield output
        inside -= 1

    engine._llm.generate = watched
    await asyncio.gather(*[_generate(engine, clips, seed, latents=latents) for seed in range(24)])
    engine._llm.generate = stock
    return most


async def cancelled_on_its_way(engine: PolicyEngine) -> Reply:
    """The reply about a clip whose first request was cancelled after vLLM had taken the clip in, before it was sent."""
    inputs = engine._llm.input_processor
    stock = inputs.process_inputs_async

    async def cancelled(*args, **kwargs):
        await stock(*args, **kwargs)
        raise asyncio.CancelledError

    inputs.process_inputs_async = cancelled
    with pytest.raises(asyncio.CancelledError):
        await _generate(engine, [NEW] * 3, 0)
    inputs.process_inputs_async = stock
    return await _generate(engine, [NEW] * 3, 0)


@pytest.fixture(scope="module")
def squeezed(policy_folder, clips):
    """Replies of an engine with small steps and a key-value cache for a few requests, and pre-emptions a request."""
    preemptions: list[int] = []

    tight = EngineConfig(
        latent_slots=24,
        max_num_batched_tokens=224,
        max_num_seqs=24,
        chunked_prefill=True,
        kv_blocks=8,
        max_model_len=512,
        log_stats=True,
    )

    async def play():
        engine = await PolicyEngine.start(policy_folder, tight)
        stock = engine._llm.generate

        async def watched(*args):
            async for output in stock(*args):
                preemptions.append(output.metrics.num_preemptions)
                yield output

        engine._llm.generate = watched
        try:
            return await asyncio.gather(
                *[_generate(engine, clips, seed, temperature=0, max_tokens=72) for seed in range(48)]
            )
        finally:
            engine.shutdown()

    return asyncio.run(play()), preemptions


@pytest.fixture(scope="module")
def roomy(on_engine, clips):
    """What an ordinary engine did: plain replies, replies by depth, noisy ones twice, and one after many aborts."""

    async def play(engine: PolicyEngine):
        played = {}
        played["plain"] = await asyncio.gather(*[_generate(engine, clips, seed) for seed in range(24)])
        depths = range(1, 9)
        played["depths"] = await asyncio.gather(
            *[_generate(engine, clips, seed, latents=depth) for depth in depths for seed in range(6)]
        )
        played["noisy"], played["again"] = [
            await asyncio.gather(*[_generate(engine, clips, seed, sigma=SIGMA) for seed in range(24)]) for _ in "12"
        ]
        played["at one time"] = [await most_at_one_time(engine, clips, latents) for latents in (0, 8)]
        chance = random.Random(0)
        for _ in range(10):
            tasks = [asyncio.ensure_future(_generate(engine, clips, seed)) for seed in range(100)]
            for task in tasks:
                await asyncio.sleep(chance.random() * 0.01)
                task.cancel()
                if chance.random() < 0.3:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        played["slots"] = engine._slots.qsize()
        played["new"], played["new again"] = [await cancelled_on_its_way(engine), await _generate(engine, [NEW] * 3, 0)]
        played["after"] = await asyncio.gather(*[_generate(engine, clips, seed) for seed in range(24)])
        return played

    return on_engine(play)


def _gaps(replies: list[Reply], folder, clips, sigma: float = 0.0) -> tuple[float, float]:
    """Largest differences of log-probs and of latents from the oracle, given each reply's own tokens and noise."""
    processor, policy = ClipProcessor(folder), load_policy(folder)
    processed = [processor.process(clip) for clip in clips]
    logprob_gap = latent_gap = 0.0
    with torch.no_grad():
        features = encode_clips(policy.model.visual, [c.pixels for c in processed], [c.grid for c in processed])
        for reply in replies:
            clip = reply.clip
            rows = [Row(reply.prompt_token_ids, reply.token_ids, (clip,), (processed[clip].grid,))]
            state = prefill(policy.model, rows, features, keep_cache=True)
            logprobs, _ = token_logprobs(policy, state, rows)
            logprob_gap = max(logprob_gap, float((logprobs - torch.tensor(reply.logprobs)).abs().max()))
            if reply.latents is not None:
                noise = sigma * _noise(reply)[None] if sigma else None
                latents = roll_latents(policy, state, len(reply.latents), noise)[0]
                latent_gap = max(latent_gap, float((latents - torch.tensor(reply.latents)).abs().max()))
    return logprob_gap, latent_gap


def _noise(reply: Reply) -> torch.Tensor:
    """The noise on a reply's latents, which follows from the request's seed."""
    depth, width = reply.latents.shape
    return torch.stack([latent_noise(reply.seed, step, width) for step in range(depth)])


def _with_clip(replies: list[Reply], seeds) -> list[Reply]:
    for reply, seed in zip(replies, seeds, strict=True):
        reply.clip = seed % 3
    return replies


def test_chunks_and_preemption_change_nothing(squeezed, policy_folder, clips):
    replies, preemptions = squeezed
    assert sum(preemptions) >= 5
    assert sum(reply.latents is not None for reply in replies) >= 5
    logprob_gap, latent_gap = _gaps(_with_clip(replies, range(48)), policy_folder, clips)
    assert logprob_gap < 1e-3
    assert latent_gap < 1e-4


def test_every_depth_equals_the_oracle(roomy, policy_folder, clips):
    replies = _with_clip(roomy["depths"], [seed for _ in range(8) for seed in range(6)])
    refined = {len(reply.latents) for reply in replies if reply.latents is not None}
    assert refined == set(range(1, 9))
    _, latent_gap = _gaps(replies, policy_folder, clips)
    assert latent_gap < 1e-4


def test_noise_is_added_to_every_latent_and_repeats_with_the_seed(roomy, policy_folder, clips):
    noisy, again = roomy["noisy"], roomy["again"]
    _, latent_gap = _gaps(_with_clip(noisy, range(24)), policy_folder, clips, SIGMA)
    assert latent_gap < 1e-4
    drawn = []
    for one, two in zip(noisy, again, strict=True):
        assert one.seed == two.seed
        if one.latents is not None:
            np.testing.assert_allclose(one.latents, two.latents, atol=1e-5)
            drawn.append(_noise(one).numpy())
    assert abs(np.mean(drawn)) < 0.05 and abs(np.std(drawn) - 1) < 0.05
    assert not np.allclose(drawn[0], drawn[1])


def test_only_requests_that_may_refine_take_a_slot(roomy):
    assert roomy["at one time"] == [24, 7]


def test_a_thousand_aborts_lose_no_slot(roomy, policy_folder, clips):
    assert roomy["slots"] == 7
    for before, after in zip(roomy["plain"], roomy["after"], strict=True):
        assert before.token_ids == after.token_ids
        if before.latents is not None:
            np.testing.assert_allclose(before.latents, after.latents, atol=1e-5)


def test_a_clip_whose_request_was_cancelled_is_sent_again(roomy):
    reply, again = roomy["new"], roomy["new again"]
    assert reply.token_ids
    assert reply.token_ids == again.token_ids


def test_a_reply_that_accepts_ends_at_its_refine_token(policy_folder, monkeypatch):
    tokenizer = ClipProcessor(policy_folder).tokenizer
    vocabulary, end = len(tokenizer), tokenizer.eos_token_id
    wrote = []
    table = SimpleNamespace(
        first_handle=vocabulary, before_norm=torch.zeros(3, 4), after_norm=None, latents=torch.zeros(24, 4),
        write=lambda rows, cells, *_: wrote.append((rows.tolist(), cells.tolist())),
    )  # fmt: skip
    monkeypatch.setattr(LatentTable, "current", table)
    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(policy_folder)))
    processor = LatentLogitsProcessor(config, torch.device("cpu"), is_pin_memory=False)
    added = []
    for slot, (answer, unless) in enumerate([("matched", ACCEPTS), ("not_matched", ACCEPTS), ("matched", None)]):
        output = tokenizer.encode(f"<answer>{answer}</answer> <REFINE>", add_special_tokens=False)
        request = LatentRequest(slot, depth=8, latents_unless=unless, text_limit=64, seed=0, sigma=0.0)
        added.append((slot, SimpleNamespace(extra_args=request.extra_args()), None, output))
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    chosen = processor.apply(torch.zeros(3, vocabulary + 3 * MAX_DEPTH)).argmax(-1).tolist()
    assert chosen == [end, vocabulary + MAX_DEPTH, vocabulary + 2 * MAX_DEPTH]
    assert wrote == [([1, 2], [MAX_DEPTH, 2 * MAX_DEPTH])]


def test_a_step_begun_before_the_end_was_seen_changes_no_latent(policy_folder, monkeypatch):
    """A GPU's next step is prepared before the tokens of the one before are read: a row may run on after its end."""
    tokenizer = ClipProcessor(policy_folder).tokenizer
    vocabulary = len(tokenizer)
    wrote = []
    table = SimpleNamespace(
        first_handle=vocabulary, before_norm=None, after_norm=None, write=lambda *written: wrote.append(written)
    )
    monkeypatch.setattr(LatentTable, "current", table)
    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(policy_folder)))
    processor = LatentLogitsProcessor(config, torch.device("cpu"), is_pin_memory=False)
    words = tokenizer.encode("<answer>not_matched</answer> <REFINE>", add_special_tokens=False)
    request = LatentRequest(0, depth=2, latents_unless=None, text_limit=len(words), seed=0, sigma=0.0)
    params = SimpleNamespace(extra_args=request.extra_args())
    over = [*words, vocabulary, tokenizer.eos_token_id]
    processor.update_state(SimpleNamespace(removed=[], added=[(0, params, None, over)], moved=[]))
    logits = torch.zeros(1, vocabulary + MAX_DEPTH)
    assert torch.equal(processor.apply(logits.clone()), logits)
    assert not wrote
