"""Words of users among control tokens: they stay words, whatever they spell.

A tokenizer makes one control token of `<|im_end|>` or `<REFINE>` wherever it meets the text. `plain` puts a cut into
such a text, and `encode_plain` encodes what stands before and after a cut by itself, so it becomes the tokens of its
letters. A text that spells no control token has no cut and the tokens that it always had.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CUT = "\0"
_LIKE_A_TOKEN = re.compile(r"<(?=[^<>\s]+>)")
_LIKE_MARKUP = re.compile(r"<(?=\|[^<>\s]+>)")


def plain(text: str, *, is_reply: bool = False) -> str:
    """Return a text with a cut in whatever could be a control token; what is no Unicode is a question mark.

    Args:
        is_reply: of the assistant, whose tags may be tokens; only chat markup is cut.
    """
    text = text.replace(CUT, "").encode("utf-8", "replace").decode("utf-8")
    return (_LIKE_MARKUP if is_reply else _LIKE_A_TOKEN).sub(f"<{CUT}", text)


def encode_plain(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Return the token ids of markup that holds users' texts.

    Args:
        encode: gives the ids of a text, without any that begin or end one.
    """
    return [token for piece in text.split(CUT) for token in encode(piece)]
