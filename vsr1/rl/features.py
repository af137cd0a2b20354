"""What the vision tower makes of the clips of a pass; of a frozen tower it is kept, so that a clip is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vsr1.model.attention import DEFAULTS, LayerOptions
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.processor import ClipProcessor
from vsr1.model.vision import Grid, VisionFeatures, blank_clip, encode_clips
from vsr1.video.clips import Clip, ClipReference

ReadClip = Callable[[ClipReference], Clip]  # and raises where its content is not the one that is named
Seen = tuple[VisionFeatures, Grid]


class ClipFeatures:
    """Features by content hash, the least recently used ones given up beyond a budget.

    Args:
        policy: its tower encodes; features are kept while no part of it is trained.
        budget: bytes of features that stay between passes.
        options: of the tower's blocks.
    """

    def __init__(
        self,
        policy: VideoSearchPolicy,
        processor: ClipProcessor,
        read_clip: ReadClip,
        budget: int,
        options: LayerOptions = DEFAULTS,
    ) -> None:
        self._policy, self._processor, self._read_clip, self._budget = policy, processor, read_clip, budget
        self._options = options
        self._kept: dict[str, Seen] = {}  # the least recently used first
        self.encoded: list[Grid] = []  # clips that went through the tower, for who counts them

    def __call__(self, references: Iterable[ClipReference]) -> tuple[dict[ClipReference, Seen], VisionFeatures | None]:
        """Return features of each clip, and those of a blank one if none of the clips had to be encoded.

        The tower is called once in any case (the ranks' rule, `vsr1.rl`).
        """
        wanted = list(dict.fromkeys(references))
        names = dict.fromkeys(reference.content_hash for reference in wanted)
        seen = {name: self._kept.pop(name) for name in names if name in self._kept}
        missing = list({one.content_hash: one for one in wanted if one.content_hash not in seen}.values())
        clips = [self._processor.process(self._read_clip(one), self._policy.device) for one in missing]
        visual = self._policy.model.visual
        is_trained = self.is_trained
        inputs = [(clip.pixels, clip.grid) for clip in clips] or [blank_clip(visual)]
        grids = [grid for _, grid in inputs]
        with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
            pixels = [pixels.to(self._policy.dtype) for pixels, _ in inputs]
            features = encode_clips(visual, pixels, grids, self._options)
        for one, feature, grid in zip(missing, features, grids, strict=False):  # the blank clip has no name
            seen[one.content_hash] = feature if is_trained else feature.clone(), grid
        self.encoded += [clip.grid for clip in clips]
        if not is_trained:
            self._keep(seen)
        return {one: seen[one.content_hash] for one in wanted}, None if missing else features[0]

    @property
    def is_trained(self) -> bool:
        """Tell whether a part of the tower is trained."""
        return any(parameter.requires_grad for parameter in self._policy.model.visual.parameters())

    def _keep(self, seen: dict[str, Seen]) -> None:
        self._kept |= seen
        total = sum(feature.nbytes for feature, _ in self._kept.values())
        while total > self._budget:
            feature, _ = self._kept.pop(next(iter(self._kept)))
            total -= feature.nbytes
