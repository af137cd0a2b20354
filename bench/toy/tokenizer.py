"""The toy models' tokenizer: a byte-level BPE of the toy world's language with Qwen's special tokens.

Digits stay single tokens, so that a time is spelt the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bench.toy.captions import caption
from vsr1.model.policy import REFINE_TOKEN
from vsr1.search.prompts import SYSTEM_PROMPT, assistant_text, user_text
from vsr1.toy.world import make_corpus, reasoning

END_OF_TEXT, TURN_END = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT, "<|im_start|>", TURN_END, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
_TAGS = (
    "<think>", "</think>", "<answer>", "</answer>", "<start>", "</start>", "<end>", "</end>", "<query>", "</query>",
    " seconds>",
)  # fmt: skip
_WORDS = Regex(r" ?[A-Za-z]+| ?[0-9]|[^\sA-Za-z0-9]+|\s+")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|video_pad|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary_texts(seed: int, count: int = 3000) -> Iterator[str]:
    """Yield texts in the language of the world, prompts and replies, to train a tokenizer on."""
    rng = np.random.default_rng(seed)
    for example in make_corpus("vocabulary", count, seed):
        events = list(example.film.events)
        yield user_text(example.query)
        yield caption(example, rng)
        yield assistant_text(reasoning(events, example.queried, True), True, (0.0, float(example.film.duration)))
        yield assistant_text(reasoning(events[:1], example.queried, False), False, None)
    yield from [SYSTEM_PROMPT] * 20


def train_tokenizer(texts: Iterable[str], size: int = 700) -> Tokenizer:
    """Train a byte-level BPE of at most `size` tokens, special ones included; the same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(_WORDS, "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(_TAGS) - 1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in _TAGS])
    return tokenizer


def policy_tokenizer(base: Tokenizer) -> PreTrainedTokenizerFast:
    """Make the policy's tokenizer: the base plus the refine token."""
    return _wrap(Tokenizer.from_str(base.to_str()), extra=[REFINE_TOKEN])


def embedder_tokenizer(base: Tokenizer) -> PreTrainedTokenizerFast:
    """Make the embedder's tokenizer: it ends every text with the end-of-text token, as Qwen's for embedding do."""
    copy = Tokenizer.from_str(base.to_str())
    end = copy.token_to_id(END_OF_TEXT)
    copy.post_processor = processors.TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)])
    return _wrap(copy, extra=[])


def _wrap(tokenizer: Tokenizer, extra: list[str]) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS[1:], *extra]})
    return wrapped
