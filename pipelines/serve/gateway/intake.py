"""How a video comes in: as the body of a request, from a folder of this machine, or from a public address.

Whatever the way, the file is copied piece by piece into a folder of the corpus and hashed, and the library decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import anyio

from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.fetch import fetch
from pipelines.serve.gateway.handles import LibraryHandle
from vsr1.retrieval.added import SOURCE, AddedFolder, video_id_problem
from vsr1.settings.serving import ServeConfig

PIECE = 1 << 20  # bytes read at one time
PROGRESS = 1 << 16  # bytes; who does not send so many within `serve.body_limit_s` gives the place up


class Intake:
    """The gateway's part of adding videos; the library keeps them."""

    def __init__(self, config: ServeConfig, library: LibraryHandle) -> None:
        self._config, self._library, self._limits = config, library, config.upload
        self.receiving = 0

    async def add(self, corpus: str, video_id: str | None, pieces: AsyncGenerator[bytes, None]) -> str:
        """Receive a file and hand it to the library; return the video's id.

        Raises:
            ApiError: 422 `invalid_video_id`, 429 `busy`, 413 `too_large`, 408 `too_slow`, and as `Ingestion.accept`.
        """
        if video_id is not None and (problem := video_id_problem(video_id)):
            raise ApiError("invalid_video_id", f"video_id {video_id!r} {problem}")
        if self.receiving >= self._limits.at_once:
            raise ApiError("busy", f"{self.receiving} files are being received already; try again", 5)
        folder = AddedFolder.of(self._config.corpora[corpus]).receiving / uuid4().hex
        self.receiving += 1
        try:
            async with aclosing(pieces):
                moving = self._moving(pieces)
                digest = await receive(moving, folder / SOURCE, self._limits.max_mib * 2**20)
            return await self._library.accept.remote(corpus, video_id, str(folder), digest)
        finally:
            self.receiving -= 1
            if folder.is_dir():  # not accepted
                await asyncio.to_thread(shutil.rmtree, folder)

    async def _moving(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield the pieces as long as they come. Raise ApiError 408 `too_slow` for who sends next to nothing."""
        now, limit_s, window_s = asyncio.get_running_loop().time, self._limits.limit_s, self._config.body_limit_s
        end, size, due, deadline = now() + limit_s, 0, PROGRESS, now() + window_s
        try:
            while True:
                async with asyncio.timeout_at(min(deadline, end)):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
                size += len(piece)
                if size >= due:
                    due, deadline = size + PROGRESS, now() + window_s
        except TimeoutError:
            raise ApiError(
                "too_slow",
                f"the file took more than serve.upload.limit_s={limit_s:g} s, or less than {PROGRESS >> 10} KiB of it "
                f"came within serve.body_limit_s={window_s:g} s; send it again",
            ) from None

    def body(self, length: str | None, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Return a request's body; its Content-Length may be enough to refuse it."""
        if length and int(length) > self._limits.max_mib * 2**20:
            raise _too_large(self._limits.max_mib * 2**20)
        return pieces

    def file(self, path: str) -> AsyncGenerator[bytes, None]:
        """Return the content of a file below `serve.upload.path_root`; links are followed as far as they stay there.

        Raises:
            ApiError: 403 `paths_are_off`, 422 `path_refused`.
        """
        if self._limits.path_root is None:
            raise ApiError("paths_are_off")
        root = self._limits.path_root.resolve()
        try:
            place = (root / path).resolve()
            is_ours = place.is_relative_to(root) and place.is_file() and os.access(place, os.R_OK)
        except (ValueError, OSError, RuntimeError) as error:  # no text of a path, too long, links in a circle
            raise ApiError("path_refused", f"path {path!r} cannot be one: {error}") from error
        if not is_ours:
            raise ApiError("path_refused", f"path {path!r} is not a file below serve.upload.path_root that can be read")
        return _pieces(place)

    def url(self, url: str) -> AsyncGenerator[bytes, None]:
        """Return the content of a public address.

        Raises:
            ApiError: 403 `urls_are_off`; while it is read, as `fetch`.
        """
        if not self._limits.urls:
            raise ApiError("urls_are_off")
        return fetch(url)


async def receive(pieces: AsyncGenerator[bytes, None], target: Path, most: int) -> str:
    """Write pieces to a new file as they come, off the event loop.

    Returns:
        sha256 of the content.

    Raises:
        ApiError: 413 `too_large` once there are more than `most` bytes.
    """
    target.parent.mkdir(parents=True)
    digest, size = hashlib.sha256(), 0
    async with await anyio.open_file(target, "wb") as file:
        async for piece in pieces:
            size += len(piece)
            if size > most:
                raise _too_large(most)
            digest.update(piece)
            await file.write(piece)
    return digest.hexdigest()


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(PIECE):
            yield piece


def _too_large(most: int) -> ApiError:
    return ApiError("too_large", f"a video may have serve.upload.max_mib={most >> 20} MiB; encode it smaller")
