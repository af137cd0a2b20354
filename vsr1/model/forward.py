"""Forward passes of the policy over prompts with clips and their replies, and the latents that follow these.

Replies to one prompt share it: it is run once, and each attends to it and to itself. Latents are computed side by side
from the inputs that are taken to come before them; sampled latents are known, so for these that is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1.model.attention import DEFAULTS, KeysValues, LayerOptions, Segments, run_layers
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.upload import upload
from vsr1.model.vision import Grid, VisionFeatures


@dataclass
class Row:
    """One sequence, and which clips of the batch the video tokens of its prompt show, in their order.

    Video tokens that were sampled are text. `positions` are those of `rotary_positions`, for a caller that keeps them.
    """

    prompt: list[int]
    response: list[int]
    clips: tuple[int, ...] = ()
    grids: tuple[Grid, ...] = ()  # of these clips
    positions: torch.Tensor | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class States:
    """What a pass leaves: T tokens, of each group the prompt and then its replies, each with its latents' columns.

    Rows are numbered through all groups, in their order. What says where things are is of the host.
    """

    before_norm: torch.Tensor  # [T, H] residual stream before the final norm
    after_norm: torch.Tensor  # [T, H]
    sources: list[np.ndarray]  # of each row where the states are that its response follows from
    ends: list[int]  # of each row where its last token is
    columns: torch.Tensor  # int64 [rows with latents, latents] where those are, on the device
    next_positions: list[int]  # of each row the rotary position after its last token, equal on all three axes
    keys_values: list[KeysValues]
    piece_lengths: list[int]  # of the keys: they add up to T
    prefixes: list[list[int]]  # of each row the pieces up to its last token
    _followers: dict[tuple[int, ...], _Followers] = field(default_factory=dict)

    def last(self, rows: list[int]) -> torch.Tensor:
        """Return where the last tokens of rows are, int64 [n], on the device."""
        return upload([self.ends[row] for row in rows], self.before_norm.device)

    def followers(self, rows: list[int], columns: int) -> _Followers:
        """Return where `columns` tokens after each of `rows` lie; it is made once."""
        if (key := (columns, *rows)) not in self._followers:
            device, pieces, count = self.before_norm.device, self.piece_lengths, len(rows)
            keys = [[*self.prefixes[row], len(pieces) + i] for i, row in enumerate(rows)]
            segments = Segments([columns] * count, keys, [*pieces, *[columns] * count], device)
            places = np.array([self.next_positions[row] for row in rows])[:, None] + np.arange(columns)
            self._followers[key] = _Followers(segments, upload(places.flatten(), device).expand(3, -1))
        return self._followers[key]


@dataclass(frozen=True)
class _Followers:
    """What tokens after the rows of a pass attend to, and their rotary positions [3, n]."""

    segments: Segments
    positions: torch.Tensor


def rotary_positions(row: Row, video_token: int, merge: int) -> torch.Tensor:
    """Return positions on the three rotary axes, int64 [3, T]; equal to the stock `get_rope_index` (tested).

    A word advances all three by one. A frame pair of h x w merged patches stands at one place in time, its patches at
    their row and column from there, and advances all three by the longer side once it is over.

    Raises:
        ValueError: the prompt has more or fewer video tokens than its clips' grids ask for.
    """
    is_video = np.asarray(row.prompt) == video_token
    clips = [np.zeros((3, 0), np.int64)]
    for pairs, height, width in row.grids:
        rows, columns = height // merge, width // merge
        pair = np.zeros((3, rows * columns), np.int64)  # of each patch its row, its column and what it advances by
        pair[:2] = np.indices((rows, columns)).reshape(2, -1)
        pair[2, -1] = max(rows, columns)
        clips.append(np.tile(pair, pairs))
    patches = np.concatenate(clips, axis=1)
    if is_video.sum() != patches.shape[1]:
        raise ValueError(
            f"a row has {is_video.sum()} video tokens, the grids {row.grids} of its clips ask for {patches.shape[1]}"
        )
    tokens = np.zeros((3, len(is_video)), np.int64)
    tokens[2] = 1
    tokens[:, is_video] = patches
    down, across, advance = tokens
    base = np.cumsum(advance) - advance
    response = np.arange(len(row.response)) + advance.sum()
    axes = [np.concatenate([base + offset, response]) for offset in (0, down, across)]
    return torch.from_numpy(np.stack(axes))


def run_rows(
    model: Qwen3VLModel,
    groups: list[list[Row]],
    features: list[VisionFeatures],
    *,
    latents: tuple[list[int], torch.Tensor] | None = None,
    keep: bool = False,
    options: LayerOptions = DEFAULTS,
) -> States:
    """Run the language model over rows of any length.

    Args:
        model: the Qwen3-VL body, of the policy or of the embedder.
        groups: rows that share their prompt and its clips, which is run once; a row alone is a group.
        features: vision features of the clips that rows name. Features that no row shows change nothing, but they are
            in the graph, with gradients of zero, where shown ones would be.
        latents: rows, and the input embeddings that follow each of them [n, columns, H].
        keep: keep keys and values for `run_latents` (gradients flow through them).
        options: of the layers.
    """
    text, config = model.language_model, model.config
    device = text.embed_tokens.weight.device
    followed, inputs = latents or ([], None)
    layout = _Layout(groups, followed, 0 if inputs is None else inputs.shape[1], config)
    columns = torch.tensor(layout.columns, dtype=torch.int64)
    ids, is_video, columns = (upload(part, device) for part in (layout.ids, layout.is_video, columns))
    hidden = text.embed_tokens(ids)
    if inputs is not None:
        hidden = hidden.index_copy(0, columns.flatten(), inputs.flatten(0, 1).to(hidden.dtype))
    clips = [features[clip] for group in groups for clip in group[0].clips] or [part.empty() for part in features[:1]]
    shown = None
    if clips:
        hidden = hidden.index_copy(0, is_video, torch.cat([clip.tokens for clip in clips]).to(hidden.dtype))
        levels = range(len(clips[0].deepstack))
        shown = is_video, [torch.cat([clip.deepstack[level] for clip in clips]) for level in levels]
    segments = Segments(layout.segments, layout.segment_keys, layout.segments, device)
    before, after, kept = run_layers(
        text, hidden, upload(layout.positions, device), segments, shown=shown, keep=keep, options=options
    )
    return States(
        before, after, layout.sources, layout.ends, columns, layout.next_positions, kept, layout.piece_lengths,
        layout.prefixes,
    )  # fmt: skip


def run_latents(
    policy: VideoSearchPolicy,
    states: States,
    rows: list[int],
    latents: torch.Tensor,
    options: LayerOptions = DEFAULTS,
) -> torch.Tensor:
    """Return the means of the latents after rows whose last token is the refine token, float32 [n, depth, R].

    Args:
        states: kept with their keys and values.
        rows: n of them.
        latents: [n, depth - 1, R], taken to come before the second, the third, ... latent.
        options: of the layers.
    """
    text, (count, columns, _) = policy.model.language_model, latents.shape
    if not columns:
        return latent_means(policy, states, rows)
    hidden = policy.latent_input(latents).flatten(0, 1).to(states.after_norm.dtype)
    at = states.followers(rows, columns)
    _, after, _ = run_layers(text, hidden, at.positions, at.segments, earlier=states.keys_values, options=options)
    return latent_means(policy, states, rows, after.view(count, columns, -1))


def latent_means(
    policy: VideoSearchPolicy, states: States, rows: list[int], later: torch.Tensor | None = None
) -> torch.Tensor:
    """Return latents from the states that they follow, float32 [n, depth, R].

    The first comes from the state before the final norm, the others from states after it (method.md §1.4).

    Args:
        later: states after the norm where the second, the third, ... latent comes from [n, depth - 1, H]; None: those
            of the columns of `states`, which are of these rows.
    """
    later = states.after_norm[states.columns] if later is None and len(states.columns) else later
    first = states.before_norm[states.last(rows)][:, None]
    return policy.latent(first if later is None else torch.cat([first, later], dim=1)).float()


def token_logprobs(
    policy: VideoSearchPolicy, states: States, rows: list[Row], temperature: float = 1.0, end: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probs of every row's response, and the entropies of their distributions.

    Only these columns meet the vocabulary, some at a time (`VocabularyHead`), so no table over all of them is held.

    Args:
        rows: of all groups, one after another.
        end: a token whose log-prob after each row is appended; its entropy is, too.

    Returns:
        logprobs and entropies, float32 [response tokens of all rows], rows one after another.
    """
    places = np.concatenate([*states.sources, *([] if end is None else [states.ends])]).astype(np.int64)
    targets = [token for row in rows for token in row.response] + ([] if end is None else [end] * len(rows))
    device = states.after_norm.device
    at = upload(places, device)
    chosen, entropies = policy.lm_head(states.after_norm[at], upload(targets, device), temperature)
    return chosen, entropies


class _Layout:
    """Where the tokens of a pass lie, in arrays of the host.

    A row alone is one segment; of rows that share a prompt, the prompt and every reply are one each. `piece_lengths`
    cut finer, before the latents, so that a later pass can attend to a row without them (`prefixes`).

    Args:
        groups: as `run_rows`.
        followed: rows that latents follow, and how many columns these take.
    """

    def __init__(self, groups: list[list[Row]], followed: list[int], columns: int, config: Qwen3VLConfig) -> None:
        self.segments: list[int] = []
        self.segment_keys: list[list[int]] = []
        self.piece_lengths: list[int] = []
        self.prefixes: list[list[int]] = []
        self.sources: list[np.ndarray] = []
        self.ends: list[int] = []
        self.next_positions: list[int] = []
        self._followed, self._columns, self._config = set(followed), columns, config
        self._ids: list[int] = []
        self._positions: list[np.ndarray] = []
        self._is_video: list[np.ndarray] = []
        for group in groups:
            self._add(group)
        self.columns = [list(range(self.ends[row] + 1, self.ends[row] + 1 + columns)) for row in followed]
        self.ids = torch.tensor(self._ids)
        self.positions = torch.from_numpy(np.concatenate(self._positions, axis=1))
        self.is_video = torch.from_numpy(np.concatenate(self._is_video))

    def _add(self, group: list[Row]) -> None:
        prompt, video_token = group[0].prompt, self._config.video_token_id
        counts = [self._columns if len(self.ends) + i in self._followed else 0 for i in range(len(group))]
        lengths = [len(row.response) + count for row, count in zip(group, counts, strict=True)]
        table = group[0].positions
        if table is None:
            merge = self._config.vision_config.spatial_merge_size
            table = rotary_positions(replace(group[0], response=[0] * max(lengths)), video_token, merge)
        table = np.asarray(table)
        start, shared, is_alone = len(self._ids), len(self.piece_lengths), len(group) == 1
        self._is_video.append(start + np.flatnonzero(np.asarray(prompt) == video_token))
        self._ids += prompt
        self._positions.append(table[:, : len(prompt)])
        if not is_alone:
            self.piece_lengths.append(len(prompt))
            self._segment(len(prompt), [])
        first = len(self.segments) - 1
        for row, count, length in zip(group, counts, lengths, strict=True):
            reply, words = len(self._ids), len(row.response)
            self._ids += [*row.response, *[0] * count]
            self._positions.append(table[:, len(prompt) : len(prompt) + length])
            self.sources.append(np.array([start + len(prompt) - 1, *range(reply, reply + words - 1)])[:words])
            self.ends.append(reply + words - 1)
            self.next_positions.append(int(table[0, len(row) - 1]) + 1)
            own = len(self.piece_lengths)
            self.prefixes.append([own] if is_alone else [shared, own])
            self.piece_lengths += [words + is_alone * len(prompt), *([count] if count else [])]
            self._segment(length + is_alone * len(prompt), [] if is_alone else [first])

    def _segment(self, length: int, keys: list[int]) -> None:
        self.segment_keys.append([*keys, len(self.segments)])
        self.segments.append(length)
