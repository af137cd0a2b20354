"""How many floating-point operations a step takes, from the sizes of the models: a product and a sum count as two.

Counted are matrix products and attention of the language model, the scored words and the vision tower, each as the
mathematics asks for: attention over the pairs that are allowed, backward as twice the forward pass, nothing for what is
computed again. Norms, the heads and the frozen embedder are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a driver does without
    from transformers import Qwen3VLConfig

TRAINED = 3  # forward passes that a forward and a backward pass are worth


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one forward pass, by what it is of."""

    token: float  # all layers of the language model
    pair: float  # a query token and a key token, in all layers
    word: float  # a row of scores over the vocabulary
    patch: float  # all blocks of the vision tower, for one patch before merging
    patch_pair: float
    merged: float  # the mergers, for one video token
    merge: int  # patches of a video token, in one direction

    @classmethod
    def of(cls, config: Qwen3VLConfig) -> ModelFlops:
        """Read the sizes of a Qwen3-VL."""
        text, vision = config.text_config, config.vision_config
        heads, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
        layer = text.hidden_size * (2 * heads + 2 * keys + 3 * text.intermediate_size)
        block = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        joined = vision.hidden_size * vision.spatial_merge_size**2
        mergers = 1 + len(vision.deepstack_visual_indexes)
        return cls(
            token=2.0 * text.num_hidden_layers * layer,
            pair=4.0 * text.num_hidden_layers * heads,
            word=2.0 * text.hidden_size * text.vocab_size,
            patch=2.0 * (vision.depth * block + pixels * vision.hidden_size),
            patch_pair=4.0 * vision.depth * vision.hidden_size,
            merged=2.0 * mergers * joined * (joined + vision.out_hidden_size),
            merge=vision.spatial_merge_size,
        )

    def prompt(self, prompt: int, replies: Iterable[tuple[int, int]]) -> float:
        """Return the operations of a prompt that its replies share.

        Args:
            prompt: its tokens.
            replies: tokens of each, latents included, and how many of its words are scored.
        """
        total = self.token * prompt + self.pair * prompt * (prompt + 1) / 2
        for tokens, words in replies:
            total += self.token * tokens + self.pair * tokens * (prompt + (tokens + 1) / 2) + self.word * words
        return total

    def clip(self, grid: tuple[int, int, int], *, is_trained: bool = False) -> float:
        """Return the operations of a clip in the vision tower, which attends inside each frame pair.

        Args:
            grid: frame pairs, patch rows, patch columns.
            is_trained: the mergers are, and their backward pass counts.
        """
        pairs, height, width = grid
        window = height * width
        merged = self.merged * (TRAINED if is_trained else 1)
        return pairs * (self.patch * window + self.patch_pair * window * window + merged * window / self.merge**2)


def learner_speed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return what a driver shows of a step's numbers: tokens a second, and the share of the GPUs if it is known."""
    names = {"learner/tokens_per_second": "learner tokens/s", "mfu": "mfu", "mfu_effective": "mfu effective"}
    return {label: numbers[name] for name, label in names.items() if name in numbers}
