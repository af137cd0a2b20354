"""Trains the toy policy and embedder from random weights; the checkpoint that the demo starts from is made by this.

The embedder learns by contrast, half of each batch confusers of the other half. The policy starts from the embedder's
weights and learns dense traces with verdict and span, then the refined query too. Films are rendered, not encoded; the
same seed and steps give the same data.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from vsr1.agent.prompts import SYSTEM_PROMPT, assistant_text, turn_prompt
from vsr1.formats.checkpoint import save_policy
from vsr1.formats.clips import Clip
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row, prefill, roll_latents, token_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.vision import Grid, encode_clips
from vsr1.rl.losses import retrieval_loss
from vsr1.toy.models import new_embedder, new_policy
from vsr1.toy.render import FRAMES_PER_SECOND, render
from vsr1.toy.teacher import find_queried, reasoning
from vsr1.toy.tokenizer import train_tokenizer
from vsr1.toy.world import Example, make_corpus, vocabulary_texts
from vsr1.video.decode import frame_indices
from vsr1.video.processor import ClipProcessor

BATCH = 128
LATENTS = 8
EMBEDDER_RATE, POLICY_RATE = 1e-3, 8e-4
TEMPERATURE = 0.05  # of the contrastive loss
REFINE_FROM = 0.6  # share of the policy's steps after which the refined query is trained too
RETRIEVAL_WEIGHT = 0.3
TokenCache = dict[tuple[int, int], tuple[list[int], list[int]]]  # of (query, film): prompt and reply


@dataclass
class Film:
    """A rendered example, ready for training."""

    example: Example
    pixels: torch.Tensor  # float16 [patches, values], on the training device
    grid: Grid
    clip_ids: list[int]  # for the embedder
    marks: tuple[float, ...]  # seconds of each frame pair


def pretrain(
    out: Path,
    seed: int = 0,
    device: str = "cpu",
    embedder_steps: int = 1500,
    policy_steps: int = 6000,
    films: int = 8000,
) -> None:
    """Write `out/policy` and `out/embedder`.

    Args:
        seed: of the films, the weights and the batches.
        device: `cpu` or `cuda`.
        embedder_steps: optimiser steps of batch 128. policy_steps: likewise.
        films: size of the training corpus, half of them confusers.
    """
    torch.manual_seed(seed)
    base = train_tokenizer(vocabulary_texts(seed))
    embedder_model, embedder_processor = new_embedder(base, seed)
    policy, policy_processor = new_policy(base, seed)
    embedder_processor.save_pretrained(out / "embedder")
    policy_processor.save_pretrained(out / "policy")
    processor = ClipProcessor(out / "policy")
    embedder = Embedder(embedder_model.to(device), ClipProcessor(out / "embedder"), "pretraining")

    corpus = make_corpus("pretrain", films + 512, seed)
    rendered = _render_all(corpus, embedder, device)
    train, held_out = rendered[:films], rendered[films:]
    _train_embedder(embedder, train, held_out, embedder_steps, seed)
    embedder.model.to(torch.bfloat16).save_pretrained(out / "embedder")
    embedder.model.float().eval().requires_grad_(False)

    start = embedder.model.state_dict()
    table = policy.model.language_model.embed_tokens.weight.detach()
    words = start["language_model.embed_tokens.weight"]
    start["language_model.embed_tokens.weight"] = torch.cat([words.cpu(), table[len(words) :]])  # plus the refine token
    policy.model.load_state_dict(start)
    policy.to(device)
    _train_policy(policy, processor, embedder, train, held_out, policy_steps, seed)
    save_policy(out / "policy", policy.to(torch.bfloat16))


def _train_embedder(embedder: Embedder, train: list[Film], held_out: list[Film], steps: int, seed: int) -> None:
    model = embedder.model.requires_grad_(True).train()
    rng = np.random.default_rng(seed)
    optimizer, schedule = _optimizer(model, EMBEDDER_RATE, steps)
    began = time.monotonic()
    for step in range(1, steps + 1):
        batch = _pairs(train, rng, BATCH // 2)
        queries = embedder.query_vectors([film.example.query for film in batch])
        scores = queries @ _clip_vectors(embedder, batch).T / TEMPERATURE
        target = torch.arange(len(batch), device=scores.device)
        loss = functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)
        _step(loss, model, optimizer, schedule)
        if step % 250 == 0 or step == steps:
            recall = embedder_recall(embedder, held_out)
            print(
                f"embedder step {step} loss {loss.item():.3f} R@1 {recall:.3f} {time.monotonic() - began:.0f} s",
                flush=True,
            )


@torch.no_grad()
def embedder_recall(embedder: Embedder, films: list[Film]) -> float:
    """R@1 of the films' queries among all of them."""
    embedder.model.eval()
    clips = torch.cat([_clip_vectors(embedder, films[i : i + BATCH]) for i in range(0, len(films), BATCH)])
    queries = embedder.query_vectors([film.example.query for film in films])
    embedder.model.train()
    best = (queries @ clips.T).argmax(dim=1).cpu()
    return float((best == torch.arange(len(films))).float().mean())


def _train_policy(
    policy: VideoSearchPolicy,
    processor: ClipProcessor,
    embedder: Embedder,
    train: list[Film],
    held_out: list[Film],
    steps: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed + 1)
    policy.train()
    policy.refine_gate.requires_grad_(False)
    optimizer, schedule = _optimizer(policy, POLICY_RATE, steps)
    vectors = _all_vectors(embedder, train)
    near = _nearest(embedder, train, vectors)
    ids: TokenCache = {}
    began = time.monotonic()
    for step in range(1, steps + 1):
        wanted = rng.integers(0, len(train), BATCH)
        shown = [_shown(int(i), near, rng, len(train)) for i in wanted]
        rows, distinct = _rows(processor, train, wanted, shown, ids)
        features = encode_clips(policy.model.visual, [f.pixels.float() for f in distinct], [f.grid for f in distinct])
        refine = step > steps * REFINE_FROM
        state = prefill(policy.model, rows, features, keep_cache=refine)
        logprobs, _ = token_logprobs(policy, state, rows)
        loss = -logprobs.mean()
        if refine:
            latents = roll_latents(policy, state, LATENTS)
            queries = embedder.query_vectors(
                [train[i].example.query for i in wanted], list(policy.soft_tokens(latents))
            )
            losses = [
                retrieval_loss(query, vectors[i], vectors[near[i]], 0.1)
                for query, i in zip(queries, wanted, strict=True)
            ]
            loss = loss + RETRIEVAL_WEIGHT * torch.stack(losses).mean()
        _step(loss, policy, optimizer, schedule)
        if step % 500 == 0 or step == steps:
            unseen = held_out_loss(policy, processor, held_out)
            seconds = time.monotonic() - began
            print(f"policy step {step} loss {loss.item():.3f} held-out {unseen:.3f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(policy: VideoSearchPolicy, processor: ClipProcessor, films: list[Film]) -> float:
    """Mean token loss of the true replies, half of them about the confuser."""
    films = films[:256]
    wanted, shown = np.arange(len(films)), [i if i % 4 < 2 else i ^ 1 for i in range(len(films))]
    rows, distinct = _rows(processor, films, wanted, shown, {})
    policy.eval()
    features = encode_clips(policy.model.visual, [f.pixels.float() for f in distinct], [f.grid for f in distinct])
    logprobs, _ = token_logprobs(policy, prefill(policy.model, rows, features, keep_cache=False), rows)
    policy.train()
    return -float(logprobs.mean())


def _rows(
    processor: ClipProcessor, films: list[Film], wanted: np.ndarray, shown: list[int], ids: TokenCache
) -> tuple[list[Row], list[Film]]:
    places: dict[int, int] = {}
    rows = []
    for query, video in zip(wanted.tolist(), shown, strict=True):
        key = (query, video)
        if key not in ids:
            ids[key] = _tokens(processor, films[query].example, films[video])
        prompt, reply = ids[key]
        at = places.setdefault(video, len(places))
        rows.append(Row(prompt, reply, at, films[video].grid))
    return rows, [films[video] for video in places]


def _tokens(processor: ClipProcessor, wanted: Example, film: Film) -> tuple[list[int], list[int]]:
    shown = film.example.film.events
    span = find_queried(shown, wanted.queried)
    reply = assistant_text(reasoning(shown, wanted.queried, span is not None), span is not None, span)
    prompt = processor.insert(_prompt_ids(processor, wanted.query), processor.clip_tokens(film.grid, film.marks))
    return prompt, processor.tokenizer.encode(reply, add_special_tokens=False)


@cache
def _prompt_ids(processor: ClipProcessor, query: str) -> list[int]:
    return processor.tokenizer.encode(turn_prompt(query, SYSTEM_PROMPT), add_special_tokens=False)


def _shown(query: int, near: torch.Tensor, rng: np.random.Generator, count: int) -> int:
    """Half the time the right film, else its confuser, a near miss or any film."""
    draw = rng.random()
    if draw < 0.5:
        return query
    if draw < 0.75:
        return query ^ 1
    return int(near[query, rng.integers(0, near.shape[1])]) if draw < 0.9 else int(rng.integers(0, count))


def _pairs(films: list[Film], rng: np.random.Generator, count: int) -> list[Film]:
    first = rng.choice(len(films) // 2, count, replace=False) * 2
    return [films[i + k] for i in first for k in (0, 1)]


def _clip_vectors(embedder: Embedder, films: list[Film]) -> torch.Tensor:
    features = encode_clips(embedder.model.visual, [f.pixels.float() for f in films], [f.grid for f in films])
    rows = [Row(film.clip_ids, [], i, film.grid) for i, film in enumerate(films)]
    state = prefill(embedder.model, rows, features, keep_cache=False)
    return functional.normalize(state.after_norm[:, -1].float(), dim=-1)


@torch.no_grad()
def _all_vectors(embedder: Embedder, films: list[Film]) -> torch.Tensor:
    return torch.cat([_clip_vectors(embedder, films[i : i + BATCH]) for i in range(0, len(films), BATCH)])


@torch.no_grad()
def _nearest(embedder: Embedder, films: list[Film], vectors: torch.Tensor, count: int = 24) -> torch.Tensor:
    """The nearest wrong films of each query, [films, count]."""
    picks = []
    for i in range(0, len(films), 512):
        scores = embedder.query_vectors([film.example.query for film in films[i : i + 512]]) @ vectors.T
        own = torch.arange(len(scores), device=scores.device)
        scores[own, own + i] = -2
        picks.append(scores.topk(count).indices)
    return torch.cat(picks)


def _render_all(corpus: list[Example], embedder: Embedder, device: str) -> list[Film]:
    processor = embedder.processor
    films = []
    with ProcessPoolExecutor() as pool:
        for example, (frames, times) in zip(corpus, pool.map(_render, corpus, chunksize=64), strict=True):
            clip = Clip(example.film.video_id, frames, times, example.film.video_id)
            processed = processor.process(clip)
            pixels = processed.pixels.to(device, torch.float16)
            films.append(Film(example, pixels, processed.grid, embedder.clip_ids(processed), processed.marks))
    return films


def _render(example: Example) -> tuple[np.ndarray, np.ndarray]:
    total = int(example.film.duration * FRAMES_PER_SECOND)
    indices = frame_indices(total, float(example.film.duration), 1.0, 64)
    indices += indices[-1:] * (len(indices) % 2)
    times = np.array(indices) / FRAMES_PER_SECOND
    return render(example.film, times), times


def _optimizer(model: torch.nn.Module, rate: float, steps: int) -> tuple[Optimizer, OneCycleLR]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.05)
    return optimizer, schedule


def _step(loss: torch.Tensor, model: torch.nn.Module, optimizer: Optimizer, schedule: OneCycleLR) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    schedule.step()
