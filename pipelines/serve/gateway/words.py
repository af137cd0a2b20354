"""Whether the words of a query fill a model already, whatever video is shown with them: known before a search waits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from pipelines.serve.gateway.faults import ApiError
from vsr1.formats.plain import encode_plain
from vsr1.search.prompts import turn_prompt


@dataclass
class PromptWords:
    """The prompt of a model: its checkpoint, what its agent is told, and the tokens that its engine takes."""

    checkpoint: Path
    system: str
    most: int

    def check(self, query: str) -> None:
        """Raise ApiError 422 `query_too_long` for a query that leaves no room for one token of a video."""
        prompt = turn_prompt(query, self.system)
        if len(prompt.encode(errors="replace")) < self.most:  # no token is shorter than a byte
            return
        count = len(encode_plain(lambda text: self._tokenizer.encode(text, add_special_tokens=False).ids, prompt))
        if count >= self.most:
            message = f"ask in fewer words: the prompt has {count} tokens without a video, the model takes {self.most}"
            raise ApiError("query_too_long", message)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Read when it is first needed: it takes a second, and no query of 2,000 characters fills a large model."""
        return Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
