"""Which of vLLM's tokens are the reply, and whether it has latents: one answer for both processes."""

import re
from types import SimpleNamespace

import pytest

from vsr1.engine.request import LatentRequest, ReplyReader

REFINE, END = 90, 91
WORDS = {REFINE: "<REFINE>", END: "<end>"}


def reader() -> ReplyReader:
    """Of a tokenizer with a word for every number."""
    tokenizer = SimpleNamespace(
        eos_token_id=END,
        get_vocab=lambda: {"<REFINE>": REFINE},
        convert_tokens_to_ids=lambda token: REFINE,
        decode=lambda ids, skip_special_tokens: " ".join(WORDS.get(token, f"w{token}") for token in ids),
    )
    return ReplyReader(tokenizer)


def request(depth: int, latents_unless: str | None = None) -> LatentRequest:
    return LatentRequest(slot=3, depth=depth, latents_unless=latents_unless, text_limit=4, seed=5, sigma=0.5)


@pytest.mark.parametrize(
    ("depth", "latents_unless", "ids", "sampled", "reason"),
    [
        (2, None, [1, 2, END], [1, 2, END], "stop"),
        (2, None, [1, 2, 3, 4, END], [1, 2, 3, 4], "length"),
        (2, None, [1, REFINE, 100, END], [1, REFINE], "refined"),
        (2, None, [1, 2, 3, REFINE, 100, END], [1, 2, 3, REFINE], "refined"),  # at the limit
        (2, "w2", [1, REFINE, 100, END], [1, REFINE], "refined"),
        (2, "w1 <REF", [1, REFINE, END], [1, REFINE], "stop"),
        (2, "w1", [1, 2, 3, REFINE, END], [1, 2, 3, REFINE], "stop"),  # not for its length
        (0, None, [1, REFINE, 2, END], [1, REFINE, 2, END], "stop"),  # a word like any other
        (0, None, [1, 2, 3, REFINE, END], [1, 2, 3, REFINE], "length"),
        (2, None, [], [], "stop"),
    ],
)
def test_what_was_sampled_and_how_it_ended(depth, latents_unless, ids, sampled, reason) -> None:
    text = " ".join(WORDS.get(token, f"w{token}") for token in sampled)
    assert reader().read(ids, request(depth, latents_unless)) == (sampled, text, reason)


def test_a_request_travels_in_extra_args() -> None:
    sent = request(8, "x+")
    assert LatentRequest.of(sent.extra_args()) == sent
    assert LatentRequest.of(None) is None
    assert LatentRequest.of({"another": 1}) is None


def test_a_pattern_that_is_none_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(re.error):
        request(8, "(")
