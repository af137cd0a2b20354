"""Qwen3-VL with the heads of Soft Query Refinement.

The state dict is the released contract (method.md §1.3): plain Qwen3-VL keys plus `refine_projector`, `refine_gate`,
`refine_latent_input_projector` and `refine_append_input_projector` at top level, so that released checkpoints load here
and ours load in stock Hugging Face.

H is the policy's hidden width, R the latent width, E the embedder's hidden width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

HEAD_NAMES = ("refine_projector", "refine_gate", "refine_latent_input_projector", "refine_append_input_projector")
REFINE_TOKEN = "<REFINE>"
START_SCALE = 0.1  # of the latent's part in a new soft token, in sizes of a word
LOGPROB_CHUNK = 512  # tokens that meet the vocabulary at one time: 0.3 GB of float32 with 152 thousand words


def build_heads(hidden: int, latent: int, embedder: int) -> dict[str, nn.Module]:
    """Return the four heads by their checkpoint names; the engine's copy of the policy has the same.

    Args:
        hidden: H.
        latent: R.
        embedder: E.
    """
    return {
        "refine_projector": nn.Sequential(
            nn.Linear(hidden, latent), nn.LayerNorm(latent), nn.GELU(), nn.Linear(latent, latent)
        ),
        "refine_gate": nn.Linear(hidden, 1),
        "refine_latent_input_projector": nn.Sequential(nn.LayerNorm(latent), nn.Linear(latent, hidden)),
        "refine_append_input_projector": nn.Sequential(nn.LayerNorm(latent), nn.Linear(latent, embedder)),
    }


@torch.no_grad()
def init_heads(policy: VideoSearchPolicy, embedding_rms: float, neutral: torch.Tensor) -> None:
    """Set start values of the heads of a policy that has none yet: soft tokens that change a query little.

    A soft token starts as the embedding of a neutral word plus a latent's direction, `START_SCALE` of a word in size.
    The reference starts from zero latents under a LayerNorm of weight one, so its soft tokens jump from zero to many
    times a word's size with the first step (method.md §3.4). All of it fits the released keys: the LayerNorm's weight
    is the size, the linear map the identity where it can be, its bias the word.

    Args:
        policy: its four heads are overwritten, `refine_projector` with torch's default values.
        embedding_rms: root mean square of the embedder's word table.
        neutral: embedding [E] of the neutral word in the embedder's table.
    """
    for layer in (*policy.refine_projector, policy.refine_gate):
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    own_rms = float(policy.get_input_embeddings().weight.float().square().mean().sqrt())
    starts = [
        (policy.refine_latent_input_projector, own_rms, torch.zeros(policy.config.text_config.hidden_size)),
        (policy.refine_append_input_projector, START_SCALE * embedding_rms, neutral),
    ]
    for (norm, linear), rms, bias in starts:
        norm.weight.fill_(rms)
        norm.bias.zero_()
        nn.init.eye_(linear.weight)
        linear.bias.copy_(bias)


class VocabularyHead(nn.Linear):
    """The output table: logits of states as stock, and log-probs of chosen tokens without a table over all of them.

    Both are one module call whatever the number of tokens is (the ranks' rule, `vsr1.rl`).
    """

    def forward(
        self, states: torch.Tensor, targets: torch.Tensor | None = None, temperature: float = 1.0
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits [..., vocabulary], or with targets their log-probs and the entropies.

        Args:
            states: [..., H]; with targets [tokens, H].
            targets: token ids, int64 [tokens].
            temperature: divides the logits; with targets only.

        Returns:
            logits in the dtype of the states, or log-probs and entropies, float32 [tokens]. Backward recomputes the
            logits of `LOGPROB_CHUNK` tokens at a time.
        """
        if targets is None:
            return super().forward(states)
        parts = [
            checkpoint(self._chosen, part, target, temperature, use_reentrant=False, preserve_rng_state=False)
            for part, target in zip(states.split(LOGPROB_CHUNK), targets.split(LOGPROB_CHUNK), strict=True)
        ]
        chosen, entropies = zip(*parts, strict=True)
        return torch.cat(chosen), torch.cat(entropies)

    def _chosen(
        self, states: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        table = (super().forward(states).float() / temperature).log_softmax(dim=-1)
        return table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)


class PatchProjection(nn.Conv3d):
    """The convolution over patches as what it is, one product: PyTorch's own kernel takes ten times as long."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return [n, D, 1, 1, 1] of patches [n, channels, frames, height, width]."""
        return nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class VideoSearchPolicy(Qwen3VLForConditionalGeneration):
    """The policy. `config.refine_dim` is R and `config.refine_embedder_dim` is E.

    The gate is kept for the checkpoint contract; nothing reads it (reference behaviour, method.md §1.3).
    """

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__(config)
        stock = self.model.visual.patch_embed.proj
        projection = PatchProjection(stock.in_channels, stock.out_channels, stock.kernel_size, stock.stride)
        self.model.visual.patch_embed.proj = projection
        self.lm_head = VocabularyHead(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        heads = build_heads(config.text_config.hidden_size, config.refine_dim, config.refine_embedder_dim)
        for name, head in heads.items():
            setattr(self, name, head)
        self.post_init()

    def latent(self, state: torch.Tensor) -> torch.Tensor:
        """Turn a hidden state [..., H] into a latent [..., R] (method.md §1.4)."""
        return _apply(self.refine_projector, state)

    def latent_input(self, latent: torch.Tensor) -> torch.Tensor:
        """Turn a latent [..., R] into the policy's next input embedding [..., H]."""
        return _apply(self.refine_latent_input_projector, latent)

    def soft_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents [..., N, R] into input embeddings of the frozen embedder [..., N, E]."""
        return _apply(self.refine_append_input_projector, latents)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what is trained of the heads."""
        return [p for name in HEAD_NAMES if name != "refine_gate" for p in getattr(self, name).parameters()]


def _apply(head: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """Apply a head to an input of any dtype; the result has the head's."""
    return head(value.to(next(head.parameters()).dtype))
