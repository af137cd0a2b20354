"""What backward keeps: chunked log-probs and recomputed layers save memory and change no value."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.toy.models import HIDDEN, write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from vsr1.model.attention import LayerOptions
from vsr1.model.checkpoint import load_policy
from vsr1.model.forward import Row, States, run_latents, run_rows, token_logprobs
from vsr1.model.policy import LOGPROB_CHUNK, VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import encode_clips
from vsr1.video.clips import Clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_models(tmp_path_factory.mktemp("models"), train_tokenizer(vocabulary_texts(0, 200)))[0]


def _saved_bytes(loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the loss, and the bytes of distinct storages that its graph keeps, parameters included."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    return value, sum(sizes.values())


def _grads(policy: VideoSearchPolicy) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return gradients


def test_chunked_logprobs_equal_one_table_and_keep_none(folder):
    policy = load_policy(folder)
    vocabulary = policy.config.text_config.vocab_size
    counts = [LOGPROB_CHUNK + 7, 3, LOGPROB_CHUNK]  # chunks that span rows
    torch.manual_seed(0)
    states = torch.randn(3, max(counts) + 1, HIDDEN, requires_grad=True)
    rows = [Row([1], torch.randint(vocabulary, (n,)).tolist()) for n in counts]
    lengths = [counts[0] + 1, counts[1] + 1, counts[2] + 1]
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    at = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    packed = torch.cat([states[i, -length:] for i, length in enumerate(lengths)])
    none = torch.zeros(0, dtype=torch.int64)
    state = States(packed, packed, at, none, none, none, [], [], [])

    def chunked() -> torch.Tensor:
        logprobs, entropies = token_logprobs(policy, state, rows, 0.7)
        return (logprobs + 0.1 * entropies).sum()

    def whole() -> torch.Tensor:
        seen = torch.cat([states[i, -n - 1 : -1] for i, n in enumerate(counts)])
        table = (policy.lm_head(seen).float() / 0.7).log_softmax(-1)
        chosen = table.gather(1, torch.tensor([t for row in rows for t in row.response])[:, None])[:, 0]
        return (chosen - 0.1 * (table.exp() * table).sum(-1)).sum()

    in_chunks, bytes_chunked = _saved_bytes(chunked)
    at_once, bytes_whole = _saved_bytes(whole)
    torch.testing.assert_close(in_chunks, at_once, rtol=1e-5, atol=1e-3)
    gradients = [torch.autograd.grad(value, [states, policy.lm_head.weight]) for value in (in_chunks, at_once)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    table = sum(counts) * vocabulary * 4
    assert bytes_whole > 2 * table
    assert bytes_chunked < LOGPROB_CHUNK * vocabulary * 4 < table


def test_recomputed_layers_give_the_same_gradients_from_fewer_bytes(folder):
    processor = ClipProcessor(folder)
    rng = np.random.default_rng(0)
    clips = [
        processor.process(Clip.make("v", rng.integers(0, 255, (4, h, 64, 3), dtype=np.uint8), np.arange(4) * 1.0))
        for h in (64, 96)
    ]
    rows = [
        Row(processor.expand("<|video_pad|> a red circle", clip.grid, clip.marks), [30, 31, 32], (i,), (clip.grid,))
        for i, clip in enumerate(clips)
    ]

    def loss(policy: VideoSearchPolicy, recompute: bool) -> torch.Tensor:
        features = encode_clips(policy.model.visual, [c.pixels for c in clips], [c.grid for c in clips])
        states = run_rows(policy.model, [[row] for row in rows], features, keep=True, options=LayerOptions(recompute))
        latents = run_latents(policy, states, [0, 1], torch.zeros(2, 3, HIDDEN), LayerOptions(recompute))
        return token_logprobs(policy, states, rows)[0].sum() + policy.soft_tokens(latents).sum()

    results = []
    for recomputed in (False, True):
        policy = load_policy(folder)
        policy.model.visual.requires_grad_(False)
        value, size = _saved_bytes(lambda policy=policy, recomputed=recomputed: loss(policy, recomputed))
        value.backward()
        results.append((value.detach(), size, _grads(policy)))
    (plain, bytes_plain, gradients), (recomputed_loss, size, again) = results
    assert plain.equal(recomputed_loss)
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    weights = sum(p.numel() * 4 for p in load_policy(folder).parameters())
    assert size - weights < 0.4 * (bytes_plain - weights), (size, bytes_plain, weights)
