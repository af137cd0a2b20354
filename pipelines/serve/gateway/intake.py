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
from typing import Any
from uuid import uuid4

from pipelines.serve.gateway.fetch import fetch
from pipelines.serve.gateway.stream import ApiError
from vsr1.retrieval.added import SOURCE, AddedFolder, video_id_problem
from vsr1.settings.serving import ServeConfig

PIECE = 1 << 20  # bytes written at one time


class Intake:
    """The gateway's part of adding videos; `library` is the handle of the deployment that keeps them."""

    def __init__(self, config: ServeConfig, library: Any) -> None:
        self._config, self._library, self._limits = config, library, config.upload
        self._receiving = 0

    async def add(self, corpus: str, video_id: str | None, pieces: AsyncGenerator[bytes, None]) -> str:
        """Receive a file and hand it to the library; returns the video's id.

        Raises:
            ApiError: 422 `invalid_video_id`, 429 `busy`, 413 `too_large`, 408 `too_slow`, and as `Ingestion.accept`.
        """
        if video_id is not None and (problem := video_id_problem(video_id)):
            raise ApiError(422, "invalid_video_id", f"video_id {video_id!r} {problem}")
        if self._receiving >= self._limits.at_once:
            raise ApiError(429, "busy", f"{self._receiving} files are being received already; try again", 5)
        folder = AddedFolder.of(self._config.corpora[corpus]).receiving / uuid4().hex
        self._receiving += 1
        try:
            async with asyncio.timeout(self._limits.limit_s):
                async with aclosing(pieces):
                    digest = await receive(pieces, folder / SOURCE, self._limits.max_mib * 2**20)
            return str(await self._library.accept.remote(corpus, video_id, str(folder), digest))
        except TimeoutError:
            raise ApiError(
                408, "too_slow", f"the file took more than serve.upload.limit_s={self._limits.limit_s:g}"
            ) from None
        finally:
            self._receiving -= 1
            if folder.is_dir():  # not accepted
                await asyncio.to_thread(shutil.rmtree, folder)

    def body(self, declared: str | None, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """A request's body; `declared` is its Content-Length, which may be enough to refuse it."""
        if declared and int(declared) > self._limits.max_mib * 2**20:
            raise _too_large(self._limits.max_mib * 2**20)
        return pieces

    def file(self, path: str) -> AsyncGenerator[bytes, None]:
        """A file below `serve.upload.path_root`, links followed only as far as they stay there.

        Raises:
            ApiError: 403 `paths_are_off`, 422 `path_refused`.
        """
        if self._limits.path_root is None:
            raise ApiError(
                403, "paths_are_off", "no paths are taken here: serve.upload.path_root is not set; upload it"
            )
        root = self._limits.path_root.resolve()
        try:
            place = (root / path).resolve()
            is_ours = place.is_relative_to(root) and place.is_file() and os.access(place, os.R_OK)
        except (ValueError, OSError, RuntimeError) as error:  # no text of a path, too long, links in a circle
            raise ApiError(422, "path_refused", f"path {path!r} cannot be one: {error}") from error
        if not is_ours:
            raise ApiError(
                422, "path_refused", f"path {path!r} is not a file below serve.upload.path_root that can be read"
            )
        return _pieces(place)

    def url(self, url: str) -> AsyncGenerator[bytes, None]:
        """A file from a public address.

        Raises:
            ApiError: 403 `urls_are_off`; while it is read, as `fetch`.
        """
        if not self._limits.urls:
            raise ApiError(403, "urls_are_off", "nothing is fetched here: serve.upload.urls is false; upload the file")
        return fetch(url)


async def receive(pieces: AsyncGenerator[bytes, None], target: Path, most: int) -> str:
    """Write pieces to a new file, off the event loop and never more than `PIECE` and one piece in memory.

    Returns:
        sha256 of the content.

    Raises:
        ApiError: 413 `too_large` once there are more than `most` bytes.
    """
    target.parent.mkdir(parents=True)
    digest, size, held = hashlib.sha256(), 0, bytearray()
    with target.open("wb") as file:

        def write(piece: bytes) -> None:
            digest.update(piece)
            file.write(piece)

        async for piece in pieces:
            size += len(piece)
            if size > most:
                raise _too_large(most)
            held += piece
            if len(held) >= PIECE:
                await asyncio.to_thread(write, bytes(held))
                held.clear()
        write(bytes(held))
    return digest.hexdigest()


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


def _too_large(most: int) -> ApiError:
    return ApiError(413, "too_large", f"a video may have serve.upload.max_mib={most >> 20} MiB; encode it smaller")
