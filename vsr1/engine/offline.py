"""A batch engine for an ordinary chat model that sees a video: vLLM's offline `LLM`, one reply a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsr1 import compat
from vsr1.engine.options import engine_options, set_environment, video_inputs
from vsr1.engine.plugin import register
from vsr1.settings.parts import EngineConfig
from vsr1.video.clips import Clip


@dataclass(frozen=True)
class VideoPrompt:
    """One exchange to be answered: the system's words, the user's, and the clip that follows them."""

    system: str
    user: str
    clip: Clip


@dataclass(frozen=True)
class OfflineReply:
    """The sampled text. `thinking`: the prompt had already opened `<think>`, so the text begins inside it."""

    text: str
    finish_reason: str  # stop | length | another word of vLLM's
    thinking: bool
    prompt_tokens: int = 0  # those of the clip among them


class OfflineEngine:
    """Holds one model; the engine process ends with this object."""

    def __init__(self, folder: Path, config: EngineConfig, *, device: str = "cpu", dtype: str = "auto") -> None:
        set_environment(config, device)
        register()
        from vllm import LLM, ModelRegistry
        from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

        if device == "cpu":  # the class itself, not its name, for the reason given in `register`
            ModelRegistry.register_model("Qwen3VLForConditionalGeneration", Qwen3VLForConditionalGeneration)

        with compat.prepared_children():
            self._llm = LLM(str(folder), dtype=dtype, **engine_options(config, device))

    def generate(
        self, prompts: Sequence[VideoPrompt], *, max_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[OfflineReply]:
        """Sample one reply a prompt, in their order.

        Raises:
            ValueError: vLLM's, where a prompt is longer than the engine's `max_model_len`.
        """
        from vllm import SamplingParams

        params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
        texts = [self._chat(prompt) for prompt in prompts]
        requests = [{"prompt": text} | video_inputs([prompt.clip]) for text, prompt in zip(texts, prompts, strict=True)]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        replies = []
        for text, output in zip(texts, outputs, strict=True):
            completion, is_thinking = output.outputs[0], text.rstrip().endswith("<think>")
            tokens = len(output.prompt_token_ids or [])
            replies.append(OfflineReply(completion.text, str(completion.finish_reason), is_thinking, tokens))
        return replies

    def _chat(self, prompt: VideoPrompt) -> str:
        """Write the prompt in the model's own chat markup, with one video placeholder."""
        messages = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": [{"type": "text", "text": prompt.user}, {"type": "video"}]},
        ]
        tokenizer = self._llm.get_tokenizer()
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
