"""The frozen Qwen3-VL embedder: queries, refined queries and clips to unit vectors.

A refined query is the templated text with the soft tokens put in six tokens before its end (method.md §1.5). Texts with
and without soft tokens share one batch.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3VLModel

from vsr1.formats.digest import weights_fingerprint
from vsr1.formats.plain import plain
from vsr1.model.attention import DEFAULTS, LayerOptions, Segments, run_layers
from vsr1.model.forward import Row, run_rows
from vsr1.model.processor import ClipProcessor, ProcessedClip
from vsr1.model.upload import upload
from vsr1.model.vision import encode_clips
from vsr1.video.clips import Clip

INSTRUCTION = "Represent the user's input."
TAIL_TOKENS = 6  # soft tokens go in before these
MAX_QUERY_TOKENS = 128


class Embedder:
    """Unit vectors, float32 [n, dim]. Build it with `load`."""

    def __init__(self, model: Qwen3VLModel, processor: ClipProcessor, fingerprint: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.dim = int(model.config.text_config.hidden_size)
        self.fingerprint = fingerprint
        self._query_ids = lru_cache(maxsize=65_536)(
            lambda query: (processor.encode(template(plain(query))) + processor.tokenizer.encode(""))[:MAX_QUERY_TOKENS]
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: str = "float32") -> Embedder:
        """Read a Hugging Face folder with safetensors weights.

        Raises:
            FileNotFoundError: the folder or its weights are missing.
        """
        folder = Path(folder)
        fingerprint = weights_fingerprint(folder)
        # For the whole process, a learner too: cuDNN attention builds a plan for every new shape, and most are new.
        torch.backends.cuda.enable_cudnn_sdp(False)
        model = Qwen3VLModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        return cls(model, ClipProcessor(folder), fingerprint)

    def embed_queries(self, queries: list[str], soft_tokens: list[np.ndarray | None] | None = None) -> np.ndarray:
        """Vectors of texts, float32 [n, dim].

        Args:
            queries: n texts; each is cut to 128 tokens.
            soft_tokens: per text None or float32 [N, dim], embeddings to put in.
        """
        soft = None if soft_tokens is None else [None if s is None else torch.tensor(s) for s in soft_tokens]
        with torch.no_grad():
            return self.query_vectors(queries, soft).cpu().numpy()

    def query_vectors(
        self,
        queries: list[str],
        soft_tokens: list[torch.Tensor | None] | None = None,
        options: LayerOptions = DEFAULTS,
    ) -> torch.Tensor:
        """As `embed_queries`, on tensors; gradients flow through to `soft_tokens`."""
        text, device = self.model.language_model, self.model.device
        rows: list[list[int]] = []  # token ids of each text
        places: list[int] = []  # of soft tokens among the tokens of all texts
        start = 0
        for i, query in enumerate(queries):
            ids = self._query_ids(query)
            soft = soft_tokens[i] if soft_tokens is not None else None
            if soft is not None:
                if soft.ndim != 2 or soft.shape[1] != self.dim:
                    raise ValueError(f"soft tokens of query {i} have shape {tuple(soft.shape)}, not [N, {self.dim}]")
                at = max(len(ids) - TAIL_TOKENS, 0)
                ids = [*ids[:at], *[0] * len(soft), *ids[at:]]
                places += range(start + at, start + at + len(soft))
            rows.append(ids)
            start += len(ids)
        lengths = [len(ids) for ids in rows]
        hidden = text.embed_tokens(upload(list(chain(*rows)), device))
        if places:
            soft_rows = torch.cat([soft for soft in soft_tokens or [] if soft is not None])
            hidden = hidden.index_copy(0, upload(places, device), soft_rows.to(hidden))
        positions = upload(np.concatenate([np.arange(count) for count in lengths]), device).expand(3, -1)
        segments = Segments(lengths, [[i] for i in range(len(rows))], lengths, device)
        _, states, _ = run_layers(text, hidden, positions, segments, options=options)
        ends = upload(np.cumsum(lengths) - 1, device)
        return torch.nn.functional.normalize(states[ends].float(), dim=-1)

    def embed_clips(self, clips: list[Clip]) -> np.ndarray:
        """Vectors of clips, float32 [n, dim]."""
        with torch.no_grad():
            return self.clip_vectors(clips).cpu().numpy()

    def clip_vectors(self, clips: list[Clip]) -> torch.Tensor:
        """As `embed_clips`, on tensors."""
        processed = [self.processor.process(clip, self.model.device) for clip in clips]
        dtype = self.model.dtype
        features = encode_clips(
            self.model.visual, [clip.pixels.to(dtype) for clip in processed], [clip.grid for clip in processed]
        )
        groups = [[Row(self.clip_ids(clip), [], (i,), (clip.grid,))] for i, clip in enumerate(processed)]
        states = run_rows(self.model, groups, features)
        return torch.nn.functional.normalize(states.after_norm[states.last(list(range(len(groups))))].float(), dim=-1)

    def clip_ids(self, clip: ProcessedClip) -> list[int]:
        """The prompt that a clip is embedded with."""
        ids = self.processor.expand(template("<|video_pad|>"), clip.grid, clip.marks)
        end = self.processor.tokenizer.encode("")  # what the tokenizer appends to every text
        return ids + end


def template(query: str) -> str:
    """The embedder's chat markup around a text."""
    return f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
