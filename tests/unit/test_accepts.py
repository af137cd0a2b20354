"""`ACCEPTS`, the engine's pattern for a reply that accepts its video, says what `read_verdict` says."""

import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vsr1.search.parse import ACCEPTS, read_verdict

PIECES = [
    "<answer>",
    "</answer>",
    "matched",
    "match",
    "Match",
    "MATCHED",
    "not_matched",
    "_",
    " ",
    "\n",
    "\x1c",
    "\u2003",
]
PIECES += ["<think>", "</think>", "<REFINE>", "<ANSWER>", "ed", "İ", "x"]


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ("<think>a</think> <answer> Matched\n</answer> <start>1</start> <REFINE>", True),
        ("<answer>not_matched</answer> <answer>match</answer>", True),
        ("<answer>match</answer> <answer>not_matched</answer>", False),
        ("<answer>match</answer> <answer>unfinished", True),
        ("<answer>match</answer> stray</answer>", True),
        ("<answer>match <answer>match</answer>", True),
        ("<answer>not_matched</answer> <REFINE>", False),
        ("matched", False),
    ],
)
def test_replies(text: str, is_accepted: bool) -> None:
    assert (re.search(ACCEPTS, text) is not None) == is_accepted == (read_verdict(text) == "matched")


@settings(max_examples=1000)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=14).map("".join))
@example("<answer>match</answer><answer><answer></answer>")
@example("<answer>match</answer></answer><answer>")
def test_it_agrees_with_the_verdict(text: str) -> None:
    assert (re.search(ACCEPTS, text) is not None) == (read_verdict(text) == "matched")


def test_no_other_letter_counts_as_one_of_the_word() -> None:
    """Python's case-insensitive match and `str.lower` part ways for some letters; none is in these words."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    for letter in "matched":
        assert set(re.findall(f"(?i:{letter})", every)) == {letter, letter.upper()}
