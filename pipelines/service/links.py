"""Addresses of this server that an answer carries: the frame of a moment, and the page open at it."""

from __future__ import annotations

from urllib.parse import quote, urlencode


def thumbnail_url(corpus: str, video_id: str, seconds: float) -> str:
    """Of the frame nearest to a second of a video."""
    return f"/v1/videos/{quote(video_id, safe='')}/thumbnail?{urlencode({'t': f'{seconds:.2f}', 'corpus': corpus})}"


def deep_link(query: str, corpus: str, video_id: str, start: float, end: float) -> str:
    """Of the page at a moment, in seconds. All is behind the `#`, so that no server's log has the query."""
    return f"/#{urlencode({'q': query, 'corpus': corpus, 'v': video_id, 't': f'{start:.2f}-{end:.2f}'})}"
