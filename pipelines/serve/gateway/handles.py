"""The library as the gateway sees it."""

from __future__ import annotations

from typing import Any, Protocol

from actors.handles import Remote
from pipelines.serve.gateway.schema import Video, VideoPage
from vsr1.navigate.files import Question
from vsr1.retrieval.request import SearchRequest, SearchResult


class LibraryHandle(Protocol):
    """Handle of a `LibraryReplica`; each method but the first two takes the name of a corpus first."""

    describe: Remote[[], dict[str, dict[str, Any]]]
    examples: Remote[[], dict[str, list[str]]]
    retrieve: Remote[[str, list[SearchRequest]], list[SearchResult]]
    accept: Remote[[str, str | None, str, str], str]
    delete: Remote[[str, str], None]
    video: Remote[[str, str], Video]
    videos: Remote[[str, str, int], VideoPage]
    thumbnail: Remote[[str, str, float], tuple[bytes, str]]
    source: Remote[[str, str], tuple[str, str, str]]
    clip: Remote[[str, str, float, float], tuple[bytes, str]]
    film: Remote[[str, str], Question]
