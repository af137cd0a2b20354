"""Train the toy base models from random weights: they stand in for released ones, which cannot be made small.

The policy learns to name the events of the shown film, to judge and to give the span; it knows nothing of refinement
yet, which is Stage 1's to teach. The embedder starts from the policy's weights and learns by contrast from coarse
captions, films of other families first, then more and more of one family in a batch. The benchmark's queries are new to
it, as fine-grained queries are to a general engine, but what they name is in its video vectors.

Films are rendered, not encoded. The same seed and steps give the same data.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from bench.toy.captions import caption
from bench.toy.models import MERGE, PATCH, new_embedder, new_policy
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from vsr1.formats.atomic import write_json
from vsr1.model.checkpoint import load_policy, save_policy
from vsr1.model.embedder import Embedder, template
from vsr1.model.forward import Row, rotary_positions, run_rows, token_logprobs
from vsr1.model.new_policy import start_heads
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor, pair_marks
from vsr1.model.vision import Grid, VisionFeatures, encode_clips
from vsr1.search.prompts import SYSTEM_PROMPT, assistant_text, turn_prompt
from vsr1.toy.render import FRAMES_PER_SECOND, render
from vsr1.toy.world import FAMILY, Example, find_queried, make_corpus, reasoning
from vsr1.video.decode import frame_indices

BATCH = 128
HELD_OUT = 512  # films of the validation split that progress is measured on
CORPUS = 2048  # films in which a query has one answer; pretraining takes several such corpora
EMBEDDER_RATE, POLICY_RATE = 4e-4, 1e-3  # a higher rate destroys what the embedder starts with
TEMPERATURE = 0.05  # of the contrastive loss
CURRICULUM = ((0.3, 1), (0.65, 2), (1.0, FAMILY))  # up to this share of the steps, films of one family in a batch
READERS = 8  # processes that prepare rows, at most


@dataclass
class Film:
    """A rendered example, ready for training."""

    example: Example
    frames: torch.Tensor  # uint8 [T, side, side, 3], on the training device
    marks: tuple[float, ...]  # seconds of each frame pair
    clip_row: Row  # for the embedder

    @property
    def grid(self) -> Grid:
        return _grid(self.frames)


def pretrain(
    out: Path,
    seed: int = 0,
    device: str = "cpu",
    policy_steps: int = 2500,
    embedder_steps: int = 750,
    corpora: int = 12,
    start: Path | None = None,
) -> None:
    """Train both models, or one of them, and write `out/policy` and `out/embedder`.

    Args:
        out: a folder.
        seed: of the films, the weights and the batches.
        device: `cpu` or `cuda`.
        policy_steps: optimiser steps of batch 128.
        embedder_steps: likewise; they decide how hard retrieval is.
        corpora: of 2,048 films each to train on.
        start: folder of a policy and an embedder; that of no steps is taken from it, and their tokenizers are.

    Raises:
        ValueError: no steps of a model, and no `start`.
    """
    if start is None and not (policy_steps and embedder_steps):
        raise ValueError("a model of no steps is taken from another folder; name it with --start")
    torch.manual_seed(seed)
    words = train_tokenizer(vocabulary_texts(seed)) if start is None else start
    embedder_model, embedder_processor = new_embedder(words, seed)
    policy, policy_processor = new_policy(words, seed)
    embedder_processor.save_pretrained(out / "embedder")
    policy_processor.save_pretrained(out / "policy")
    processor = ClipProcessor(out / "policy")
    embedder = Embedder(embedder_model.to(device), ClipProcessor(out / "embedder"), "pretraining")
    if start is not None and not policy_steps:
        policy = load_policy(start / "policy")

    splits = [make_corpus(f"pretrain-{i}", CORPUS, seed) for i in range(corpora)]
    train = render_all(list(chain.from_iterable(splits)), embedder.processor, device)
    held_out = render_all(make_corpus("val", HELD_OUT, seed), embedder.processor, device)
    policy.to(device)
    if policy_steps:
        _train_policy(policy, processor, train, held_out, policy_steps, seed)
    if embedder_steps:
        weights = policy.model.state_dict()
        table = "language_model.embed_tokens.weight"
        weights[table] = weights[table][: embedder_model.language_model.embed_tokens.num_embeddings]  # no refine token
        embedder_model.load_state_dict(weights)
        _train_embedder(embedder, train, held_out, embedder_steps, seed)
        embedder.model.to(torch.bfloat16).save_pretrained(out / "embedder")
    if policy_steps:
        policy.to("cpu")
        own = out if embedder_steps or start is None else start
        start_heads(policy, own / "embedder", seed=seed)
        save_policy(out / "policy", policy.to(torch.bfloat16))
    write_json(out / "model.json", {"seed": seed, "policy_steps": policy_steps, "embedder_steps": embedder_steps})


def _grid(frames: torch.Tensor) -> Grid:
    count, height, width, _ = frames.shape
    return count // 2, height // PATCH, width // PATCH


def patches(frames: torch.Tensor) -> torch.Tensor:
    """Cut frames [T, H, W, 3] in 0..255, T even, into the video processor's float32 [patches, values] (tested)."""
    pairs, rows, cols = frames.shape[0] // 2, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    shape = (pairs, 2, rows // MERGE, MERGE, PATCH, cols // MERGE, MERGE, PATCH, 3)
    ordered = frames.view(shape).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(pairs * rows * cols, -1).float() / 127.5 - 1


def _train_policy(
    policy: VideoSearchPolicy,
    processor: ClipProcessor,
    train: list[Film],
    held_out: list[Film],
    steps: int,
    seed: int,
) -> None:
    policy.train()
    for parameter in [*policy.head_parameters(), *policy.refine_gate.parameters()]:
        parameter.requires_grad_(False)
    optimizer, schedule = _optimizer(policy, POLICY_RATE, steps)
    workers = min(READERS, max(1, (os.cpu_count() or 1) // 2))
    replies = DataLoader(
        _Replies(processor, train, steps, seed + 1),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork",
        prefetch_factor=4,
    )
    began = time.monotonic()
    for step, (rows, shown) in enumerate(replies, 1):
        loss = _reply_loss(policy, rows, [train[i] for i in shown])
        _step(loss, policy, optimizer, schedule)
        if step % 500 == 0 or step == steps:
            unseen = held_out_loss(policy, processor, held_out)
            seconds = time.monotonic() - began
            print(f"policy step {step} loss {loss.item():.3f} held-out {unseen:.3f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(policy: VideoSearchPolicy, processor: ClipProcessor, films: list[Film]) -> float:
    """Return the mean token loss of the true replies, half of them about a confuser."""
    films = films[:256]
    shown = [i if i % 4 < 2 else i ^ 1 for i in range(len(films))]
    rows, distinct = _rows(processor, films, range(len(films)), shown)
    policy.eval()
    loss = float(_reply_loss(policy, rows, [films[i] for i in distinct]))
    policy.train()
    return loss


def _reply_loss(policy: VideoSearchPolicy, rows: list[Row], films: list[Film]) -> torch.Tensor:
    """Return the mean token loss of the rows' responses; their clips number the films."""
    with _half(policy.device):
        states = run_rows(policy.model, [[row] for row in rows], features_of(policy.model, films))
        logprobs, _ = token_logprobs(policy, states, rows)
    return -logprobs.mean()


def _half(device: torch.device) -> torch.autocast:
    """Return a context in which a GPU computes in bfloat16, for which it has FlashAttention; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _train_embedder(embedder: Embedder, train: list[Film], held_out: list[Film], steps: int, seed: int) -> None:
    model = embedder.model.requires_grad_(True).train()
    rng = np.random.default_rng(seed)
    optimizer, schedule = _optimizer(model, EMBEDDER_RATE, steps)
    began = time.monotonic()
    for step in range(1, steps + 1):
        members = next(count for until, count in CURRICULUM if step <= until * steps)
        families = rng.choice(len(train) // FAMILY, BATCH // members, replace=False) * FAMILY
        batch = [train[first + i] for first in families for i in rng.permutation(FAMILY)[:members]]
        with _half(model.device):
            queries = embedder.query_vectors([caption(film.example, rng) for film in batch])
        scores = queries @ clip_vectors(embedder, batch).T / TEMPERATURE
        target = torch.arange(len(batch), device=scores.device)
        loss = functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)
        _step(loss, model, optimizer, schedule)
        if step % 100 == 0 or step == steps:
            recall, by_family = embedder_recall(embedder, held_out)
            print(
                f"embedder step {step} loss {loss.item():.3f} R@1 {recall:.3f}, of the errors {by_family:.3f} "
                f"in the family, {time.monotonic() - began:.0f} s",
                flush=True,
            )


@torch.no_grad()
def embedder_recall(embedder: Embedder, films: list[Film]) -> tuple[float, float]:
    """Return R@1 of the films' queries among all of them, and the share of its errors that stay in the family."""
    embedder.model.eval()
    clips = torch.cat([clip_vectors(embedder, films[i : i + BATCH]) for i in range(0, len(films), BATCH)])
    with _half(embedder.model.device):
        queries = embedder.query_vectors([film.example.query for film in films])
    embedder.model.train()
    best = (queries @ clips.T).argmax(dim=1).cpu()
    right = torch.arange(len(films))
    wrong = best != right
    related = wrong & (best // FAMILY == right // FAMILY)
    return 1 - float(wrong.float().mean()), float(related.sum() / wrong.sum().clamp(min=1))


def features_of(model: torch.nn.Module, films: list[Film]) -> list[VisionFeatures]:
    grids = [film.grid for film in films]
    pixels = patches(torch.cat([film.frames for film in films])).split([math.prod(grid) for grid in grids])
    return encode_clips(model.visual, list(pixels), grids)


class _Replies(Dataset[tuple[list[Row], list[int]]]):
    """One batch a step, by the step's own seed: true replies about films, and which films they show."""

    def __init__(self, processor: ClipProcessor, films: list[Film], steps: int, seed: int) -> None:
        self._processor, self._films, self._steps, self._seed = processor, films, steps, seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[list[Row], list[int]]:
        rng = np.random.default_rng([self._seed, step])
        queries = rng.integers(0, len(self._films), BATCH).tolist()
        return _rows(self._processor, self._films, queries, [_shown(i, rng, len(self._films)) for i in queries])


def _rows(
    processor: ClipProcessor, films: list[Film], queries: Sequence[int], shown: list[int]
) -> tuple[list[Row], list[int]]:
    """Return the rows of films' queries about the films shown, and the distinct ones, which the rows' clips number."""
    places = {video: place for place, video in enumerate(dict.fromkeys(shown))}
    pairs = zip(queries, shown, strict=True)
    rows = [_row(processor, films[query].example, films[video], places[video]) for query, video in pairs]
    return rows, list(places)


def _row(processor: ClipProcessor, example: Example, film: Film, clip: int) -> Row:
    events = film.example.film.events
    span = find_queried(events, example.queried)
    reply = assistant_text(reasoning(events, example.queried, span is not None), span is not None, span)
    prompt = processor.insert(_prompt_ids(processor, example.query), processor.clip_tokens(film.grid, film.marks))
    row = Row(prompt, processor.tokenizer.encode(reply, add_special_tokens=False), (clip,), (film.grid,))
    return replace(row, positions=rotary_positions(row, processor.video_token, processor.merge).numpy())


@cache
def _prompt_ids(processor: ClipProcessor, query: str) -> list[int]:
    return processor.tokenizer.encode(turn_prompt(query, SYSTEM_PROMPT), add_special_tokens=False)


def _shown(query: int, rng: np.random.Generator, count: int) -> int:
    """Draw the right film half the time, else mostly one of its family, else any film."""
    draw = rng.random()
    if draw < 0.5:
        return query
    if draw < 0.9:
        return query - query % FAMILY + (query + int(rng.integers(1, FAMILY))) % FAMILY
    return int(rng.integers(0, count))


def clip_vectors(embedder: Embedder, films: list[Film]) -> torch.Tensor:
    rows = [[replace(film.clip_row, clips=(i,))] for i, film in enumerate(films)]
    with _half(embedder.model.device):
        states = run_rows(embedder.model, rows, features_of(embedder.model, films))
    return functional.normalize(states.after_norm[states.ends].float(), dim=-1)


def render_all(corpus: list[Example], processor: ClipProcessor, device: str) -> list[Film]:
    """Render the films of a corpus.

    Args:
        corpus: of examples.
        processor: the embedder's, which appends a token to every text.
        device: where the frames go.
    """
    markup = processor.tokenizer.encode(template("<|video_pad|>"))
    films = []
    with ProcessPoolExecutor() as pool:
        for example, (frames, times) in zip(corpus, pool.map(_render, corpus, chunksize=64), strict=True):
            shown, marks = torch.from_numpy(frames).to(device), pair_marks(times)
            row = Row(processor.insert(markup, processor.clip_tokens(_grid(shown), marks)), [], (), (_grid(shown),))
            row = replace(row, positions=rotary_positions(row, processor.video_token, processor.merge))
            films.append(Film(example, shown, marks, row))
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
