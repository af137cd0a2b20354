"""The places of a URL on nodes, each of which is a folder of a test."""

from pathlib import Path

from vsr1.storage import cache_at, place_of


def place_on(nodes: Path, url: str, name: str = "one") -> Path:
    """Return the place of a URL on the node of a name."""
    with cache_at(nodes / name):
        place = place_of(url)
    assert place is not None
    return place
