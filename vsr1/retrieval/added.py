"""Videos that a server added to a built corpus, and those of the build that it removed; the build stays as it is.

    incoming/<video id>/   a video on its way: `source` and `video.json`
    videos/<video id>/     one that can be searched: also its clip with `meta.jsonl`, and `vector.npy`
    deleted/<video id>/    one that is gone, kept until the searches that found it have ended
    receiving/             bytes that still come in
    removed.json           ids of the build's videos that are not searched any more; take one out to have it back

A folder moves from one of these to the next in one step, so a video is in one state after any kill.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vsr1.formats.arrays import read_array
from vsr1.formats.atomic import replacing, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import Corpus, make_catalogue
from vsr1.retrieval.request import RetrievalError
from vsr1.settings.serving import CorpusConfig
from vsr1.video.clips import Clip, ClipError, ClipFolder

LONGEST_ID = 200  # bytes in UTF-8: a file's name may have 255, and ours have more in them than the id
SOURCE = "source"
NOT_PRINTED = {"Cc", "Cn", "Co", "Cs", "Zl", "Zp"}  # joiners (Cf) and every space (Zs) belong into words
FORBIDDEN = {"/", "\\", "\ufeff", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))}  # those turn text around
State = Literal["incoming", "videos", "deleted"]


class Fault(BaseModel):
    """Says why a video did not come in."""

    code: str
    message: str


class AddedVideo(BaseModel):
    """What `video.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    video_id: str
    sha256: str  # of the source file
    media_type: str
    embedder: str | None = None  # fingerprint of the weights that made the vector
    fault: Fault | None = None


def video_id_problem(video_id: str) -> str | None:
    """Return why an id cannot name a video, None if it can: printable characters of any script, as files may have."""
    if not video_id or video_id != video_id.strip() or video_id.startswith("."):
        return "is empty, begins with a dot, or begins or ends with a space"
    if len(video_id.encode("utf-8", "surrogatepass")) > LONGEST_ID:
        return f"is longer than {LONGEST_ID} bytes in UTF-8"
    if set(video_id) & FORBIDDEN or {unicodedata.category(character) for character in video_id} & NOT_PRINTED:
        return "has a slash or a character that cannot be printed"
    if unicodedata.normalize("NFC", video_id) != video_id:
        return "is not in Unicode's composed form (NFC)"
    return None


@dataclass(frozen=True)
class AddedFolder:
    """One corpus's folder, which need not exist yet."""

    root: Path

    @classmethod
    def of(cls, corpus: CorpusConfig) -> AddedFolder:
        """Return the folder that a served corpus names, or its own in the dataset folder."""
        return cls(corpus.added or DatasetFolder(corpus.root).added(corpus.split))

    @property
    def receiving(self) -> Path:
        return self.root / "receiving"

    def incoming(self, video_id: str) -> Path:
        return self._place("incoming", video_id)

    def video(self, video_id: str) -> Path:
        return self._place("videos", video_id)

    def _place(self, state: State, video_id: str) -> Path:
        if problem := video_id_problem(video_id):
            raise ClipError(f"video id {video_id!r} {problem}; name the video otherwise")
        return self.root / state / video_id

    def has(self, video_id: str, state: State = "videos") -> bool:
        """Say whether a video is in a state; any text may be asked for."""
        return video_id_problem(video_id) is None and self._place(state, video_id).is_dir()

    def read(self, video_id: str, state: State = "videos") -> AddedVideo:
        """Read a video that is in a state; raises as `read_all`."""
        return _read(self._place(state, video_id) / "video.json")

    def read_all(self, state: State) -> dict[str, AddedVideo]:
        """Read the videos in a state by id, sorted.

        Raises:
            ClipError: a `video.json` that is not one.
        """
        return {name: _read(self.root / state / name / "video.json") for name in self.ids(state)}

    def ids(self, state: State) -> list[str]:
        """Return the ids of the videos in a state, sorted."""
        return sorted(file.parent.name for file in (self.root / state).glob("[!.]*/video.json"))

    def write(self, folder: Path, video: AddedVideo) -> None:
        write_json(folder / "video.json", video.model_dump())

    def accept(self, received: Path, video: AddedVideo) -> None:
        """Make a folder of `receiving` that holds the whole source a video on its way, in place of a failed one."""
        self.write(received, video)
        _move(received, self.incoming(video.video_id))

    def finish(self, video: AddedVideo, vector: np.ndarray) -> None:
        """Make a video on its way, whose clip is in its folder, one that can be searched; `vector` float32 [dim]."""
        place = self.incoming(video.video_id)
        with replacing(place / "vector.npy") as part:
            np.save(part, vector, allow_pickle=False)
        self.write(place, video)
        _move(place, self.video(video.video_id))

    def fail(self, video: AddedVideo, fault: Fault) -> None:
        """Keep only why a video did not come in."""
        place = self.incoming(video.video_id)
        if self.has(video.video_id):
            _move(self.video(video.video_id), place)
        for path in place.iterdir():  # first, because the disk may be full
            if path.name != "video.json":
                path.unlink()
        self.write(place, video.model_copy(update={"fault": fault}))

    def delete(self, video_id: str) -> None:
        """Take a video out of those that can be searched, or off its way; nothing happens if it is neither."""
        if self.has(video_id, "incoming"):
            _forget(self.incoming(video_id))
        if self.has(video_id):
            _move(self.video(video_id), self._place("deleted", video_id))

    def purge(self, video_id: str) -> None:
        """Free the disk of a deleted video."""
        if self.has(video_id, "deleted"):
            _forget(self._place("deleted", video_id))

    def purge_all(self) -> None:
        """Free the disk of all deleted videos, of what was never received whole, and of what a kill left of them."""
        for path in [self.root / "deleted", self.receiving, *self.root.glob("*/.*.gone"), *self.root.glob(".*.gone")]:
            if path.is_dir():
                shutil.rmtree(path)

    def removed(self) -> list[str]:
        """Return the ids of the build's videos that are not searched any more."""
        path = self.root / "removed.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []

    def remove(self, video_id: str) -> None:
        """Leave a video of the build out from now on."""
        write_json(self.root / "removed.json", sorted({*self.removed(), video_id}))


class LibraryClips:
    """Reads the clips of a built corpus and of what was added to it.

    A clip of a deleted video can still be read, for the searches that found it before.
    """

    def __init__(self, built: ClipFolder, added: AddedFolder) -> None:
        self.built, self._added = built, added

    def read(self, video_id: str) -> Clip:
        """Read one clip from disk.

        Raises:
            ClipError: as `ClipFolder.read`.
        """
        return self._folder(video_id).read(video_id)

    def _folder(self, video_id: str) -> ClipFolder:
        for state in ("videos", "deleted"):
            if self._added.has(video_id, state):
                return ClipFolder(self._added.root / state / video_id, self.built.timestamps)
        return self.built

    def known(self, video_id: str) -> ClipFolder:
        """Return the folder of a video that can be searched.

        Raises:
            ClipError: there is none.
        """
        if self._added.has(video_id):
            return self._folder(video_id)
        if video_id not in self.built or video_id in self._added.removed():
            raise ClipError(f"the corpus has no video {video_id!r}; `POST /v1/videos` adds one")
        return self.built


def with_added(corpus: Corpus, added: AddedFolder, embedder: str) -> Corpus:
    """Return the corpus with the videos that a server added to it, and without those that it removed.

    Args:
        embedder: fingerprint of the embedder that queries are embedded with.

    Raises:
        RetrievalError: a video was added with another embedder, a vector has another width or no direction, or fewer
            than two videos are left.
    """
    videos, removed = added.read_all("videos"), set(added.removed())
    for video_id, video in videos.items():
        if video.embedder != embedder:
            raise RetrievalError(
                f"{added.video(video_id)} was added with embedder {video.embedder}, but queries are embedded with "
                f"{embedder}: set model.embedder to the one used, or remove the folder and add the video again"
            )
    built = corpus.catalogue.video_ids
    rows = {video_id: row for row, video_id in enumerate(built) if video_id not in removed}
    if not videos and len(rows) == len(built):
        return corpus
    vectors = [read_array(added.video(video_id) / "vector.npy") for video_id in videos]
    for video_id, vector in zip(videos, vectors, strict=True):
        if vector.shape != (corpus.catalogue.dim,):
            raise RetrievalError(
                f"the vector of {video_id!r} has shape {vector.shape}, the index has {corpus.catalogue.dim} numbers a "
                "video; add the video again"
            )
    rows |= {video_id: len(built) + number for number, video_id in enumerate(videos)}
    both = np.concatenate([corpus.vectors, *[vector[None] for vector in vectors]])
    catalogue, unit = make_catalogue(rows, both, f"the corpus with {added.root}")
    return replace(corpus, catalogue=catalogue, vectors=unit)


def _read(file: Path) -> AddedVideo:
    try:
        return AddedVideo.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ClipError(f"{file} cannot be used ({error}); remove its folder and add the video again") from error


def _forget(folder: Path) -> None:
    """Remove a folder, in one step as far as others see."""
    if folder.is_dir():
        hidden = folder.with_name(f".{folder.name}.gone")
        if hidden.exists():
            shutil.rmtree(hidden)
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


def _move(folder: Path, place: Path) -> None:
    _forget(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, place)
