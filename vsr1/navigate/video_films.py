"""Real films: video files, the tree of each, and a chat model that describes their nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolResult, clip_node, node_clip
from vsr1.navigate.captioner import captioner_name, described, start_chat, words_of
from vsr1.navigate.files import NavigateFileError, Question
from vsr1.navigate.tree import ClipTree, Node
from vsr1.settings.navigate import CaptionerConfig, ToolsConfig
from vsr1.storage import fetched
from vsr1.video.clips import Clip, ClipMeta, read_meta
from vsr1.video.container import open_video, stated_lengths
from vsr1.video.decode import differs
from vsr1.video.part import read_part

PIECES, PIECE = 16, 1 << 16  # pieces of a file, and bytes of each, that name its content


@dataclass(frozen=True)
class VideoFilms:
    """The films of a split (`vsr1.navigate.plane.Films`); nothing is decoded before somebody looks."""

    films: Mapping[str, tuple[Path, ClipTree]]
    captioner: CaptionerConfig
    frames: int  # of a look
    max_pixels: int  # of a frame of a look
    device: str

    @classmethod
    def of_questions(
        cls, questions: Iterable[Question], place: Path, pools: ToolsConfig, max_pixels: int, device: str
    ) -> VideoFilms:
        """Return the films that questions are about, each with the tree that they say.

        Args:
            place: folder of video files; a film is a file's name without its ending.

        Raises:
            NavigateFileError: a film without a file or with several, whose length is another one in its file, or of
                whose length or scenes two questions differ.
            VideoError: a file that is no video.
        """
        trees: dict[str, ClipTree] = {}
        for question in questions:
            tree = ClipTree.of(question.seconds, question.scenes)
            if trees.setdefault(question.film, tree) != tree:
                raise NavigateFileError(f"film {question.film!r}: two questions differ in its seconds or scenes")
        return cls(
            {film: (_file(place, film, tree.borders[-1]), tree) for film, tree in trees.items()},
            pools.captioner, pools.frames, max_pixels, device,
        )  # fmt: skip

    @classmethod
    def of_clips(
        cls, folder: DatasetFolder, split: str, pools: ToolsConfig, max_pixels: int, device: str
    ) -> VideoFilms:
        """Return all videos of a split, each with the length and the file that its clip was made from.

        Raises:
            ClipError: the split has no clips.
        """
        rows = read_meta(folder.clips(split))
        films = {video: (folder.root / row["source_video_path"], tree_of(row)) for video, row in rows.items()}
        return cls(films, pools.captioner, pools.frames, max_pixels, device)

    @property
    def model(self) -> str:
        return captioner_name(self.captioner)

    def digest(self, film: str) -> str:
        path = fetched(self.films[film][0])
        return _content_name(path, path.stat().st_size, path.stat().st_mtime_ns)

    def tree(self, film: str) -> ClipTree:
        return self.films[film][1]

    def start(self) -> None:
        start_chat(self.captioner, self.device)

    def answer(self, call: ToolCall) -> ToolResult:
        tree, node = self.tree(call.film), call.node or ()
        clip = self._part(call.film, node, self.captioner.frames, self.captioner.max_pixels)
        words = words_of(call, tree.span(node), tree.borders[-1])
        return described(call, words, clip, self.captioner, self.device)

    def read(self, video_id: str) -> Clip:
        return self._part(*clip_node(video_id), self.frames, self.max_pixels)

    def _part(self, film: str, node: Node, frames: int, max_pixels: int) -> Clip:
        source, tree = self.films[film]
        path = fetched(source)
        name, span = node_clip(film, node), tree.span(node)
        return read_part(path, name, span, frames=frames, max_pixels=max_pixels, length=tree.borders[-1])


def tree_of(row: ClipMeta) -> ClipTree:
    """Return the tree of the video that a clip was made from, as long as `Clip.seconds` says."""
    return ClipTree.of(max(row["source_duration_sec"], row["sampled_timestamps_sec"][-1]))


@lru_cache(maxsize=4096)
def _content_name(path: Path, size: int, changed_ns: int) -> str:
    """Return what names the content of a large file, whenever it changed: a hash of its bytes' number and of pieces."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for piece in range(PIECES):
            file.seek(max(0, size - PIECE) * piece // (PIECES - 1))
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def _file(place: Path, film: str, seconds: float) -> Path:
    files = [path for path in place.rglob("*") if path.is_file() and film in (path.stem, path.name)]
    if len(files) != 1:
        problem = f"has {len(files)} files" if files else "has no file"
        raise NavigateFileError(f"film {film!r} {problem} in {place}; set data.videos to the folder with one of it")
    container, stream = open_video(files[0])
    with container:
        stated, last = stated_lengths(container, stream)
    length = stated or last
    if length is not None and differs(float(length), seconds):
        raise NavigateFileError(
            f"film {film!r} has {float(length):.1f} s in {files[0]}, its questions say {seconds:.1f} s"
        )
    return files[0]
