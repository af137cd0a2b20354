"""The clip cache keeps what was used last and never exceeds its budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr1.video.clip_cache import ClipCache


def use(cache: ClipCache[str], video_id: str, size: int) -> bool:
    """Get or put; True if it was held."""
    if cache.get(video_id) is not None:
        return True
    cache.make_room(video_id, size)
    cache.put(video_id, video_id.upper(), size)
    return False


def test_the_one_used_longest_ago_goes() -> None:
    cache: ClipCache[str] = ClipCache(30)
    assert [use(cache, video, 10) for video in "abcab"] == [False, False, False, True, True]
    use(cache, "d", 10)  # c was used longest ago
    assert cache.get("c") is None
    assert cache.get("a") == "A"
    assert (len(cache), cache.held_bytes, cache.evictions) == (3, 30, 1)


def test_a_clip_above_the_budget_is_an_error() -> None:
    cache: ClipCache[str] = ClipCache(30)
    use(cache, "a", 10)
    with pytest.raises(ValueError, match=r"clip 'big' takes 31 bytes, more than the clip store's whole budget of 30"):
        use(cache, "big", 31)
    assert cache.get("a") == "A"
    with pytest.raises(ValueError, match="'a' is held already"):
        cache.put("a", "A", 10)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20)), max_size=40))
def test_the_budget_holds_and_the_newest_is_there(uses: list[tuple[str, int]]) -> None:
    cache: ClipCache[str] = ClipCache(20)
    for video, size in uses:
        use(cache, video, size)
        assert cache.held_bytes <= 20
        assert cache.get(video) == video.upper()
