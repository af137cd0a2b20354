"""The policy as vLLM runs it: stock Qwen3-VL plus the refinement heads and the latent table.

The final norm is deferred to `compute_logits`, so that a sampled row's state is at hand before and after it. The
vocabulary is longer than the checkpoint's by the handle tokens; their rows are zero, their logits minus infinity, and
no checkpoint ever holds them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import functional

from vsr1 import compat

compat.prepare()

from transformers import Qwen3VLVideoProcessor  # noqa: E402
from vllm.config import VllmConfig  # noqa: E402
from vllm.model_executor.layers.layernorm import RMSNorm  # noqa: E402
from vllm.model_executor.models.qwen3_vl import (  # noqa: E402
    Qwen3_VisionPatchEmbed,
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402

from vsr1.engine.latent_table import LatentTable  # noqa: E402
from vsr1.model.policy import build_heads  # noqa: E402

_VOCABULARY_KEYS = ("model.language_model.embed_tokens.weight", "lm_head.weight")


class DeferredNorm(RMSNorm):
    """A final norm that only adds the residual; `finish` applies the norm."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return x if residual is None else (x + residual, residual)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        return RMSNorm.forward(self, x)


class BytePatches(Qwen3_VisionPatchEmbed):
    """Patches that come as bytes [n, C * values], rescaled and normalised here as the checkpoint's processor would.

    The processor's floats take four times as long to make, to send and to keep. The formula is that of transformers,
    in float32; every dtype of a model holds a byte exactly.
    """

    def take_scale(self, video: Qwen3VLVideoProcessor) -> None:
        """Take mean and deviation of each channel, in bytes."""
        size = 1 / video.rescale_factor if video.do_rescale else 1.0
        exact = {"dtype": torch.float32, "device": "cpu"}  # vLLM has set the model's as the default
        mean = torch.tensor(video.image_mean if video.do_normalize else [0.0] * 3, **exact)
        deviation = torch.tensor(video.image_std if video.do_normalize else [1.0] * 3, **exact)
        self.scale = mean[:, None] * size, deviation[:, None] * size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = (part.to(x.device, non_blocking=True) for part in self.scale)
        values = (x.float().view(len(x), len(mean), -1) - mean) / deviation
        return super().forward(values.view_as(x).to(x.dtype))


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class VideoSearchPolicyForVllm(Qwen3VLForConditionalGeneration):
    """Reads `refine_dim`, `refine_embedder_dim`, `first_handle`, `latent_slots` from the overridden configuration."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        hidden = config.text_config.hidden_size
        heads = build_heads(hidden, config.refine_dim, config.refine_embedder_dim)
        for name, head in heads.items():
            setattr(self, name, head.float())
        self.language_model.model.norm.__class__ = DeferredNorm
        self.vocabulary = config.text_config.vocab_size
        self.visual.patch_embed.__class__ = BytePatches
        self.visual.patch_embed.take_scale(Qwen3VLVideoProcessor.from_pretrained(vllm_config.model_config.model))
        self.latent_table = LatentTable(heads, config.latent_slots, config.first_handle, (hidden, config.refine_dim))

    def embed_input_ids(self, input_ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.latent_table.embed(input_ids, super().embed_input_ids(input_ids, *args, **kwargs))

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        table = self.latent_table
        table.before_norm = hidden_states
        table.after_norm = self.language_model.model.norm.finish(hidden_states)
        logits = super().compute_logits(table.after_norm)
        if logits is not None:
            logits[:, table.first_handle :] = float("-inf")
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(self._with_handle_rows(weights))

    def _with_handle_rows(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if name in _VOCABULARY_KEYS and len(tensor) < self.vocabulary:
                tensor = functional.pad(tensor, (0, 0, 0, self.vocabulary - len(tensor)))
            yield name, tensor
