"""Attention over segments: the reads of a GPU's kernel, played in plain tensors, against a call a sequence."""

import logging

import pytest
import torch

from vsr1.model import attention
from vsr1.model.attention import Segments, _Read

HEADS, KEY_HEADS, WIDTH, SCALE = 4, 2, 8, 0.3
PROMPT, REPLIES, ALONE = 9, [3, 5, 2], 7


def _scores(query: torch.Tensor, key: torch.Tensor, is_causal: bool) -> torch.Tensor:
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(HEADS // KEY_HEADS, 1)) * SCALE
    return scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf) if is_causal else scores


def _runs(read: _Read) -> list[tuple[slice, slice]]:
    own, keys = (part.tolist() for part in (read.query_starts, read.key_starts))
    return [(slice(*own[i : i + 2]), slice(*keys[i : i + 2])) for i in range(len(own) - 1)]


def _forward(query, key, value, read: _Read, scale: float):
    result, sums = torch.zeros_like(query), query.new_zeros(HEADS, len(query))
    for own, keys in _runs(read):
        scores = _scores(query[own], key[keys], read.is_causal)
        sums[:, own] = scores.logsumexp(-1)
        values = value[keys].repeat_interleave(HEADS // KEY_HEADS, 1)
        result[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return result, sums


def _backward(gradient, query, key, value, result, sums, read: _Read, scale: float):
    """The kernel's formula: probabilities from the sum that it is told."""
    into = [torch.zeros_like(part) for part in (query, key, value)]
    for own, keys in _runs(read):
        parts = [part.detach().requires_grad_() for part in (query[own], key[keys])]
        with torch.enable_grad():
            scores = _scores(*parts, read.is_causal)
        weights = (scores.detach() - sums[:, own, None]).exp()
        wide = value[keys].repeat_interleave(HEADS // KEY_HEADS, 1)
        of_weights = torch.einsum("qhd,khd->hqk", gradient[own], wide)
        of_result = (gradient[own] * result[own]).sum(-1).T[..., None]
        scores.backward((weights * (of_weights - of_result)).nan_to_num())
        into[0][own] = parts[0].grad
        into[1][keys] = parts[1].grad
        of_values = torch.einsum("hqk,qhd->khd", weights, gradient[own])
        into[2][keys] = of_values.view(len(wide), KEY_HEADS, -1, WIDTH).sum(2)
    return tuple(into)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's kernel on the CPU; what is under test is which reads are asked of it, and how they are joined."""
    monkeypatch.setattr(attention, "_has_flash", lambda device, dtype: True)
    monkeypatch.setattr(attention, "_flash_forward", _forward)
    monkeypatch.setattr(attention, "_flash_backward", _backward)


def _results(segments: Segments, sizes: list[int], has_earlier: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS, KEY_HEADS, KEY_HEADS)
    inputs = [
        torch.randn(size, count, WIDTH, generator=generator, requires_grad=True)
        for size, count in zip(sizes, heads, strict=True)
    ]
    earlier = (inputs[3], inputs[4]) if has_earlier else None
    result = segments.attend(*inputs[:3], earlier, SCALE)
    (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    return [result, *(part.grad for part in inputs[: 5 if has_earlier else 3])]


def _segments(case: str) -> tuple[Segments, list[int], bool]:
    """A pass of a prompt that replies share and a row alone; and one of latents that go on from it."""
    lengths = [PROMPT, *REPLIES, ALONE]
    if case == "first pass":
        pieces = [[0], *[[0, 1 + i] for i in range(len(REPLIES))], [len(REPLIES) + 1]]
        return Segments(lengths, pieces, lengths, torch.device("cpu")), [sum(lengths)] * 5, False
    after = [[0, 1, 5], [0, 3, 6], [4, 7]]
    if case == "going on from rows alone":  # all keys and all queries, in their order
        lengths, after = [4, ALONE, 5], [[0, 3], [1, 4], [2, 5]]
    segments = Segments([2, 2, 2], after, [*lengths, 2, 2, 2], torch.device("cpu"))
    return segments, [6, 6, 6, sum(lengths), sum(lengths)], True


@pytest.mark.parametrize("case", ["first pass", "going on", "going on from rows alone"])
def test_reads_joined_equal_a_call_a_sequence(case: str, request: pytest.FixtureRequest) -> None:
    wanted = _results(*_segments(case))
    request.getfixturevalue("kernel")
    for one, other in zip(_results(*_segments(case)), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["first pass", "going on"])
def test_under_autocast_attention_is_that_of_its_dtype(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, asked = _results(*_segments(case)), set[torch.dtype]()
    monkeypatch.setattr(attention, "_has_flash", lambda _device, dtype: asked.add(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        results = _results(*_segments(case))
    assert results[0].dtype == torch.bfloat16 and asked == {torch.bfloat16}
    for one, other in zip(results, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.03, rtol=0.03)


def test_a_gpu_without_flash_attention_goes_the_slower_way_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 7 else (9, 0))
    with caplog.at_level(logging.WARNING):
        assert not attention._has_flash(torch.device("cuda", 7), torch.bfloat16)
        assert not attention._has_flash(torch.device("cuda", 6), torch.float32)
    assert caplog.text.count("attention runs a sequence at a time, which is slower") == 2
    assert attention._has_flash(torch.device("cuda", 6), torch.bfloat16)
