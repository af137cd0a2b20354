"""How well latents as actions see their reward: cosine of the policy gradient with the true one.

The reward is a smooth one, the probability of the right video among its nearest wrong ones, so that the gradient of its
smoothed form is known: the mean of exact gradients, through the embedder, over draws. The score function's estimate of
it knows rewards only, of M branches of one refinement. In k of D directions its cosine should be sqrt(M / (M + k))
times the share of the true gradient that lies in these directions. All branches are as far from the refinement in the
mean, whatever the directions. Everything is real: policy, embedder, films, and the search over their vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from bench.toy.pretrain import Film, clip_vectors, features_of, render_all
from vsr1.formats.atomic import replacing
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.forward import Row, latent_means, run_latents, run_rows
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.branches import gradient_directions, log_ranks, principal_directions, score_gradient
from vsr1.search.prompts import SYSTEM_PROMPT, assistant_text, turn_prompt
from vsr1.toy.world import make_corpus, reasoning

LATENTS = 8
NEGATIVES, TEMPERATURE = 24, 0.05  # of the reward, as in configs/toy-bench.yaml
AT_ONCE = 32  # prompts, clips or queries of one pass
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be123c", "#475569")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 840, 420, 56, 470, 36, 370  # of the picture and its plot, in user units


@dataclass
class Refinements:
    """Latents after replies that reject a wrong film, and what they are scored against."""

    policy: VideoSearchPolicy
    embedder: Embedder
    videos: torch.Tensor  # unit vectors [V, E]
    queries: list[str]  # n
    right: torch.Tensor  # row of the right film of each query, int64 [n]
    shown: torch.Tensor  # row of the film just rejected, int64 [n]
    nearest: torch.Tensor  # rows of the wrong films of the reward, int64 [n, NEGATIVES]
    latents: torch.Tensor  # [n, N, R]

    def vectors(self, at: slice, branches: torch.Tensor) -> torch.Tensor:
        """Return unit query vectors [n, M, E] of branches [n, M, N, R] of the refinements `at`."""
        count = branches.shape[1]
        soft = self.policy.soft_tokens(branches.flatten(0, 1))
        queries = [query for query in self.queries[at] for _ in range(count)]
        return self.embedder.query_vectors(queries, list(soft)).unflatten(0, (-1, count))

    def probability(self, at: slice, branches: torch.Tensor) -> torch.Tensor:
        """Return the probability of the right film among its negatives, [n, M]."""
        rows = torch.cat([self.right[at, None], self.nearest[at]], dim=1)
        scores = torch.einsum("nme,nve->nmv", self.vectors(at, branches), self.videos[rows])
        return (scores / TEMPERATURE).softmax(-1)[..., 0]

    def log_rank(self, at: slice, branches: torch.Tensor) -> torch.Tensor:
        """Return minus the logarithm of the right film's rank, [n, M]; the film just rejected is not found again."""
        scores = self.vectors(at, branches) @ self.videos.T
        hidden = self.shown[at, None, None].expand(-1, branches.shape[1], 1)
        return log_ranks(scores.scatter(2, hidden, -math.inf), self.right[at, None])


def bench_gradient(
    policy: Path,
    embedder: Path,
    prompts: int,
    films: int,
    draws: list[int],
    radius: float,
    seed: int,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Measure the cosine by draws and directions, and draw it if a file is named.

    Args:
        policy: after Stage 1; its checkpoint, as `embedder` is that of the search.
        prompts: refinements of which the principal directions are taken; the first quarter is measured.
        films: of the corpus, those of a training split.
        draws: numbers of branches, the largest a multiple of all others.
        radius: mean distance of a branch from the refinement, as a share of the latents' norm.
        seed: of films and draws.
        picture: an SVG file.
    """
    about = refinements(policy, embedder, prompts, films, seed)
    generator = torch.Generator().manual_seed(seed)
    measured, size = max(2, prompts // 4), about.latents[0].numel()
    norm = float(about.latents.flatten(1).norm(dim=1).mean())
    distance = radius * norm
    exact = torch.cat([_exact(about, part, distance, generator) for part in _parts(prompts)])
    true = exact[:measured]
    shared = torch.eye(size // LATENTS).repeat(1, LATENTS) / math.sqrt(LATENTS)
    mixed = torch.linalg.qr(torch.randn(size, 32, generator=generator)).Q.T
    others = exact[measured:].unflatten(1, (LATENTS, -1))  # of prompts that are not measured
    ways = {
        f"all {size} numbers": (torch.eye(size), about.probability),
        f"one draw shared by the {LATENTS} latents": (shared, about.probability),
        "32 random directions": (mixed, about.probability),
        "32 principal directions of the latents": (principal_directions(about.latents, 32), about.probability),
        "32 of the latents, rewarded by the rank": (principal_directions(about.latents, 32), about.log_rank),
        "32 principal directions of others' gradients": (gradient_directions(others, 32), about.probability),
    }
    lines = {}
    for name, (directions, reward) in ways.items():
        sigma = distance / math.sqrt(len(directions))
        share = (true @ directions.T).norm(dim=1) / true.norm(dim=1)
        cosines = _cosines(about, true, directions, draws, sigma, reward, generator)
        theory = {count: float(share.mean()) * math.sqrt(count / (count + len(directions))) for count in draws}
        lines[name] = {"directions": len(directions), "share": float(share.mean()), "cosine": cosines, "theory": theory}
    if picture:
        with replacing(picture) as part:
            part.write_text(drawn(lines, draws), encoding="utf-8")
    return {"prompts": measured, "dimensions": size, "norm": norm, "radius": radius, "lines": lines}


@torch.no_grad()
def refinements(policy_folder: Path, embedder_folder: Path, prompts: int, films: int, seed: int) -> Refinements:
    """Return the latents of a policy after replies that reject the nearest wrong film of each query."""
    policy, embedder = load_policy(policy_folder).eval(), Embedder.load(embedder_folder)
    processor = ClipProcessor(policy_folder)
    corpus = make_corpus("train", films, seed)
    shown = render_all(corpus, embedder.processor, "cpu")
    videos = torch.cat([clip_vectors(embedder, shown[i : i + AT_ONCE]) for i in range(0, films, AT_ONCE)])
    queries, right = [example.query for example in corpus[:prompts]], torch.arange(prompts)
    scores = (embedder.query_vectors(queries) @ videos.T).scatter(1, right[:, None], -math.inf)
    nearest = scores.topk(NEGATIVES).indices
    latents = []
    for part in _parts(prompts):
        groups, clips = list[list[Row]](), list[Film]()
        for example, number in zip(corpus[part], nearest[part, 0].tolist(), strict=True):
            film = shown[number]
            reply = assistant_text(reasoning(film.example.film.events, example.queried, False), False, None)
            words = processor.tokenizer.encode(turn_prompt(example.query, SYSTEM_PROMPT), add_special_tokens=False)
            prompt = processor.insert(words, processor.clip_tokens(film.grid, film.marks))
            response = processor.tokenizer.encode(reply, add_special_tokens=False)
            groups.append([Row(prompt, response, (len(clips),), (film.grid,))])
            clips.append(film)
        states = run_rows(policy.model, groups, features_of(policy.model, clips), keep=True)
        rows = list(range(len(groups)))
        values = latent_means(policy, states, rows).expand(-1, LATENTS, -1)
        for _ in range(1, LATENTS):
            values = run_latents(policy, states, rows, values[:, :-1])
        latents.append(values)
    return Refinements(policy, embedder, videos, queries, right, nearest[:, 0], nearest, torch.cat(latents))


def _exact(
    about: Refinements, part: slice, distance: float, generator: torch.Generator, count: int = 32
) -> torch.Tensor:
    """Return gradients of the smoothed reward [n, D]: means over draws in all dimensions of exact ones."""
    values = about.latents[part]
    noise = torch.randn(len(values), count, *values.shape[1:], generator=generator)
    moved = values[:, None] + distance / math.sqrt(values[0].numel()) * noise
    moved.requires_grad_(True)
    (gradient,) = torch.autograd.grad(about.probability(part, moved).sum(), moved)
    return gradient.mean(1).flatten(1)


@torch.no_grad()
def _cosines(
    about: Refinements,
    true: torch.Tensor,
    directions: torch.Tensor,
    counts: list[int],
    sigma: float,
    reward: Callable[[slice, torch.Tensor], torch.Tensor],
    generator: torch.Generator,
) -> dict[int, float]:
    """Return by number of branches the mean cosine of estimates with true gradients [n, D].

    The largest number is drawn once; a smaller one takes these branches in so many parts.
    """
    cosines: dict[int, list[torch.Tensor]] = {count: [] for count in counts}
    for part in _parts(len(true), 4):
        values = about.latents[part]
        draws = torch.randn(len(values), max(counts), len(directions), generator=generator)
        earned = reward(part, values[:, None] + sigma * (draws @ directions).unflatten(-1, values.shape[1:]))
        for count, found in cosines.items():
            for start in range(0, max(counts), count):
                own = slice(start, start + count)
                estimate = score_gradient(draws[:, own], earned[:, own], sigma) @ directions
                found.append(cosine_similarity(estimate, true[part]))
    return {count: float(torch.cat(found).mean()) for count, found in cosines.items()}


def _parts(count: int, size: int = AT_ONCE) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def drawn(lines: dict[str, Any], draws: list[int]) -> str:
    """Return an SVG picture: cosine by draws on a logarithmic axis, measured with marks, theory dashed."""
    low, high = math.log(draws[0]), math.log(draws[-1])

    def at(count: int, value: float) -> tuple[float, float]:
        across = (math.log(count) - low) / (high - low or 1)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - max(0.0, value) * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        _, y = at(draws[0], tenth / 10)
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10}</text>')
    for count in draws:
        x, _ = at(count, 0)
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{count}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{BOTTOM + 38}" text-anchor="middle">branches of one refinement</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 16}">cosine of the estimate with the true gradient</text>')
    ends = sorted(lines, key=lambda name: -lines[name]["cosine"][draws[-1]])
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        for kind, style in (("theory", 'stroke-dasharray="5 4" stroke-width="1"'), ("cosine", 'stroke-width="2"')):
            points = " ".join("{:.1f},{:.1f}".format(*at(count, line[kind][count])) for count in draws)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" {style}/>')
        for count in draws:
            x, y = at(count, line["cosine"][count])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        row = TOP + 20 + 24 * ends.index(name)
        parts.append(f'<rect x="{RIGHT + 16}" y="{row - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{RIGHT + 34}" y="{row}">{name}</text>')
    parts.append(f'<text x="{RIGHT + 16}" y="{TOP + 34 + 24 * len(lines)}" fill="#555">dashed: theory</text>')
    return "\n".join([*parts, "</svg>", ""])
