"""The policy's own forward passes against stock Hugging Face code on a tiny random model."""

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.reference import prefill, roll_latents, token_logprobs
from bench.toy.models import write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from vsr1.model.checkpoint import CheckpointError, copy_processor, load_policy, policy_sizes, save_policy
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row, rotary_positions
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import VisionFeatures, encode_clips
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.video.clips import Clip

REPLY = "<think> 0 red circle moving left. not found. </think> <answer>not_matched</answer> <REFINE>"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_random_models(tmp_path_factory.mktemp("models"), train_tokenizer(vocabulary_texts(0, 200)))


@pytest.fixture(scope="module")
def batch(models):
    policy, processor = load_policy(models[0]).eval(), ClipProcessor(models[0])
    rng = np.random.default_rng(0)
    clips = [
        processor.process(Clip.make("v", rng.integers(0, 255, (n, h, 64, 3), dtype=np.uint8), np.arange(n) * 1.0))
        for n, h in [(8, 64), (12, 64), (6, 96)]
    ]
    reply = processor.tokenizer.encode(REPLY, add_special_tokens=False)
    prompt = turn_prompt("a red circle", SYSTEM_PROMPT)
    rows = [Row(processor.expand(prompt, c.grid, c.marks), reply, (i,), (c.grid,)) for i, c in enumerate(clips)]
    return policy, processor, clips, rows


@pytest.mark.parametrize(("count", "height", "width"), [(8, 64, 64), (2, 20, 300), (200, 90, 160), (6, 96, 33)])
def test_the_grid_is_known_without_the_pixels(models, count, height, width):
    processor = ClipProcessor(models[0])
    clip = Clip.make("v", np.zeros((count, height, width, 3), np.uint8), np.arange(count) * 1.0)
    assert processor.grid(clip) == processor.process(clip).grid


def test_vision_features_equal_the_stock_tower(batch):
    policy, _, clips, _ = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    for clip, feature in zip(clips, features, strict=True):
        stock = policy.model.get_video_features(clip.pixels, torch.tensor([clip.grid]), return_dict=True)
        torch.testing.assert_close(feature.tokens, stock.pooler_output[0], atol=1e-5, rtol=1e-5)
        for level, (expected,) in zip(feature.deepstack, stock.deepstack_features, strict=True):
            torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-5)


def test_positions_logprobs_and_states_equal_the_stock_forward(batch):
    policy, processor, clips, rows = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    state = prefill(policy.model, rows, features, keep_cache=False)
    logprobs, _ = token_logprobs(policy, state, rows)
    for i, (row, clip) in enumerate(zip(rows, clips, strict=True)):
        ids = torch.tensor([row.prompt + row.response])
        kinds = (ids == processor.video_token).int() * 2
        grid = torch.tensor([clip.grid])
        positions, _ = policy.model.get_rope_index(ids, kinds, video_grid_thw=grid)
        assert torch.equal(positions[:, 0], rotary_positions(row, processor.video_token, processor.merge))
        out = policy(input_ids=ids, pixel_values_videos=clip.pixels, video_grid_thw=grid, mm_token_type_ids=kinds)
        count = len(row.response)
        expected = out.logits[0, -count - 1 : -1].log_softmax(-1).gather(1, ids[0, -count:, None])[:, 0]
        torch.testing.assert_close(logprobs[i * count : (i + 1) * count], expected, atol=1e-4, rtol=1e-4)


def test_two_videos_in_one_prompt_equal_the_stock_forward(batch):
    """Of other lengths and frame sizes, beside a row with one video and a row without."""
    policy, processor, clips, rows = batch
    token, reply = processor.video_token, rows[0].response
    texts = [processor.tokenizer.encode(text) for text in ("which of", "or the taller", "shows a red circle?")]
    first, second = (processor.clip_tokens(clip.grid, clip.marks) for clip in (clips[1], clips[2]))
    both = Row([*texts[0], *first, *texts[1], *second, *texts[2]], reply, (1, 2), (clips[1].grid, clips[2].grid))
    batch_rows = [rows[0], both, Row(texts[2], reply)]
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    state = prefill(policy.model, batch_rows, features, keep_cache=True)
    logprobs, _ = token_logprobs(policy, state, batch_rows)
    ids = torch.tensor([both.prompt + both.response])
    kinds, grids = (ids == token).int() * 2, torch.tensor(both.grids)
    positions, _ = policy.model.get_rope_index(ids, kinds, video_grid_thw=grids)
    assert torch.equal(positions[:, 0], rotary_positions(both, token, processor.merge))
    out = policy(
        input_ids=ids, pixel_values_videos=torch.cat([clips[1].pixels, clips[2].pixels]), video_grid_thw=grids,
        mm_token_type_ids=kinds,
    )  # fmt: skip
    count = len(reply)
    expected = out.logits[0, -count - 1 : -1].log_softmax(-1).gather(1, ids[0, -count:, None])[:, 0]
    torch.testing.assert_close(logprobs[count : 2 * count], expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        joined = VisionFeatures(
            torch.cat([features[1].tokens, features[2].tokens]),
            [torch.cat(levels) for levels in zip(features[1].deepstack, features[2].deepstack, strict=True)],
        )
        latents = _recomputed_latents(policy, processor, both, joined, 3)
        torch.testing.assert_close(roll_latents(policy, state, 3)[1], latents, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="video tokens, the grids"):
        rotary_positions(replace(both, grids=both.grids[:1]), token, processor.merge)


def _recomputed_latents(policy, processor, row: Row, feature, depth: int) -> torch.Tensor:
    """Whole forward passes over prompt, video, text and the latents so far (method.md §1.4)."""
    text = policy.model.language_model
    ids = torch.tensor([row.prompt + row.response])
    is_video = ids == processor.video_token
    embeds = text.embed_tokens(ids).masked_scatter(is_video[..., None], feature.tokens)
    positions = rotary_positions(row, processor.video_token, processor.merge)[:, None]
    before = []
    hook = text.norm.register_forward_pre_hook(lambda _module, args: before.append(args[0]))
    latents: list[torch.Tensor] = []
    for _ in range(depth):
        after = text(
            inputs_embeds=embeds, position_ids=positions, use_cache=False,
            visual_pos_masks=is_video, deepstack_visual_embeds=feature.deepstack,
        ).last_hidden_state  # fmt: skip
        latents.append(policy.latent(after[:, -1] if latents else before[0][:, -1]))
        embeds = torch.cat([embeds, policy.latent_input(latents[-1])[:, None]], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
        is_video = torch.nn.functional.pad(is_video, (0, 1))
    hook.remove()
    return torch.cat(latents)


def test_cached_latents_equal_full_recomputation(batch):
    policy, processor, clips, rows = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    with torch.no_grad():
        cached = roll_latents(policy, prefill(policy.model, rows, features, keep_cache=True), 8)
        for i, row in enumerate(rows):
            expected = _recomputed_latents(policy, processor, row, features[i], 8)
            torch.testing.assert_close(cached[i], expected, atol=1e-5, rtol=1e-4)


def test_sampled_latents_have_the_means_that_they_were_sampled_from(batch):
    policy, _, clips, rows = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    noise = 0.5 * torch.randn(len(rows), 8, policy.config.refine_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = prefill(policy.model, rows, features, keep_cache=True)
        plain = roll_latents(policy, state, 8)
        sampled = roll_latents(policy, state, 8, noise)
        means = roll_latents(policy, state, 8, actions=sampled)
        torch.testing.assert_close(means + noise, sampled, atol=1e-5, rtol=0)
        torch.testing.assert_close(means[:, 0], plain[:, 0], atol=1e-5, rtol=0)
        assert (means[:, 1:] - plain[:, 1:]).abs().amax(dim=-1).min() > 1e-3  # a latent follows from those before it


def test_a_state_can_be_rolled_again(batch):
    policy, _, clips, rows = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    with torch.no_grad():
        state = prefill(policy.model, rows, features, keep_cache=True)
        first = roll_latents(policy, state, 8)
        assert torch.equal(roll_latents(policy, state, 8), first)
        assert torch.equal(roll_latents(policy, state, 3), first[:, :3])
        assert torch.equal(roll_latents(policy, state, 8), first)


def test_latents_need_the_cache(batch):
    policy, _, clips, rows = batch
    features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
    with pytest.raises(ValueError, match="keep_cache=True"):
        roll_latents(policy, prefill(policy.model, rows, features, keep_cache=False), 8)


def test_sampled_video_tokens_are_text(batch):
    _, processor, _, rows = batch
    row = Row(rows[0].prompt, [processor.video_token, *rows[0].response], (0,), rows[0].grids)
    positions = rotary_positions(row, processor.video_token, processor.merge)
    assert (positions[:, -len(row.response) :].diff(dim=1) == 1).all()


def test_refined_queries_share_a_batch_with_plain_ones(models):
    embedder = Embedder.load(models[1])
    soft = np.random.default_rng(0).normal(size=(8, embedder.dim)).astype(np.float32)
    together = embedder.embed_queries(["a red circle", "a blue ring moving up"], [None, soft])
    alone = embedder.embed_queries(["a red circle"])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    plain = embedder.embed_queries(["a blue ring moving up"])
    assert np.abs(together[1] - plain[0]).max() > 1e-3


def test_a_refined_query_equals_the_reference_formula(models):
    """Soft tokens before the last 6 of at most 128 text tokens, one unpadded pass, last state (method.md §1.5)."""
    embedder = Embedder.load(models[1])
    rng = np.random.default_rng(1)
    queries = ["a red circle", "a blue ring moving up and then a white square " * 12, "x"]
    soft = [rng.normal(size=(n, embedder.dim)).astype(np.float32) for n in (8, 8, 1)]
    together = embedder.embed_queries(queries, list(soft))
    text = embedder.model.language_model
    for query, tokens, found in zip(queries, soft, together, strict=True):
        ids = embedder.processor.tokenizer.encode(
            "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
            f"<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
        )[:128]
        embeds = text.embed_tokens(torch.tensor(ids))
        joined = torch.cat([embeds[:-6], torch.from_numpy(tokens), embeds[-6:]])
        with torch.no_grad():
            state = text(inputs_embeds=joined[None], use_cache=False).last_hidden_state[0, -1]
        np.testing.assert_allclose(found, (state / state.norm()).numpy(), atol=1e-5)


def test_checkpoint_round_trip_is_bit_exact(models, tmp_path):
    policy = load_policy(models[0])
    save_policy(tmp_path, policy)
    copy_processor(models[0], tmp_path)
    again = load_policy(tmp_path)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_sharded_folders_load(models, tmp_path):
    policy = load_policy(models[0])
    shutil.copytree(models[0], tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    policy.save_pretrained(tmp_path / "sharded", max_shard_size="2MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    again = load_policy(tmp_path / "sharded")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    next((tmp_path / "sharded").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="are missing: model-"):
        load_policy(tmp_path / "sharded")


def test_bin_files_load_only_where_that_is_allowed(models, tmp_path):
    shutil.copytree(models[0], tmp_path / "bin")
    weights = load_file(tmp_path / "bin" / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.allow_bin=true"):
        load_policy(tmp_path / "bin")
    again = load_policy(tmp_path / "bin", allow_bin=True).state_dict()
    for name, tensor in weights.items():
        assert torch.equal(tensor, again[name]), name
    torch.save({"model.norm": os.getcwd}, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        load_policy(tmp_path / "bin", allow_bin=True)


def test_every_mismatch_is_in_one_message(models, tmp_path):
    shutil.copytree(models[0], tmp_path / "odd")
    weights = load_file(tmp_path / "odd" / "model.safetensors")
    del weights["refine_gate.weight"]
    weights["refine_projector.3.weight"] = weights["refine_projector.3.weight"][:, :-8].contiguous()
    table = "model.language_model.embed_tokens.weight"
    weights[table] = weights[table][:-3].contiguous()
    weights["model.extra"] = torch.zeros(1)
    save_file(weights, tmp_path / "odd" / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(models[1] / name, tmp_path / "odd" / name)  # the embedder's, without the refine token
    with pytest.raises(CheckpointError) as refused:
        policy_sizes(tmp_path / "odd", embedder_width=7)
    for part in (
        "missing refine_gate.weight", "unknown model.extra", "refine_projector.3.weight is [", f"{table} is [",
        "no <REFINE>", "the embedder takes 7", "the tokenizer has",
    ):  # fmt: skip
        assert part in str(refused.value), part


def test_a_folder_without_heads_is_refused(models):
    with pytest.raises(CheckpointError, match="refine_projector"):
        load_policy(models[1])
