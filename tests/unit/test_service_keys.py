"""API keys: what is kept of them, and what the limits let through."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.serve.gateway.faults import ApiError
from pipelines.serve.gateway.keys import NOBODY_S, ApiKey, KeyFileError, Limiter, add_key, key_of, read_keys


def test_a_key_is_kept_as_its_hash_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "first", per_minute=10, at_once=2)
    other = add_key(path, "second", per_minute=20, at_once=1)
    assert secret.startswith("vsr1_") and secret != other
    assert secret not in path.read_text() and other not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path)
    first = key_of(keys, secret)
    assert first is not None and (first.name, first.per_minute, first.at_once) == ("first", 10, 2)
    assert key_of(keys, secret[:-1]) is None
    with pytest.raises(KeyFileError, match="has a key of 'first' already"):
        add_key(path, "first", per_minute=1, at_once=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("[{", "restore it"),
        ('[{"name": "a", "sha256": "short"}]', "String should match"),
        (json.dumps([{"name": "a", "sha256": f"{i:064x}"} for i in range(2)]), "more than one key of 'a'"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeyFileError, match=message):
        read_keys(path)


def key(name: str = "a", **limits: int) -> ApiKey:
    return ApiKey(name=name, sha256="0" * 64, **limits)


class Limited:
    """A limiter whose time the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.limiter = Limiter(lambda: self.now)
        self.running = ExitStack()

    def wait(self, key: ApiKey, *, views: bool = False, now: float = 0.0) -> int:
        """Begin a request, which runs on, and return after how many seconds to try again, 0 if it was let in."""
        self.now = now
        try:
            self.running.enter_context(self.limiter.within(key, views=views))
        except ApiError as refusal:
            assert (refusal.status, refusal.code) == (429, "rate_limited") and repr(key.name) in str(refusal)
            return refusal.retry_after_s
        return 0


def test_requests_a_minute_come_back_over_time() -> None:
    limited, minute = Limited(), key(per_minute=2, at_once=10)
    assert [limited.wait(minute) for _ in range(3)] == [0, 0, 30]
    assert limited.wait(minute, now=29.0) == 1
    assert limited.wait(minute, now=30.0) == 0
    assert limited.wait(minute, now=30.0) == 30
    assert [limited.wait(minute, now=10_000.0) for _ in range(3)] == [0, 0, 30]  # never more than a minute's


def test_requests_at_one_time_are_bounded_by_name() -> None:
    limited, two = Limited(), key(per_minute=1000, at_once=2)
    assert [limited.wait(two) for _ in range(3)] == [0, 0, 1]
    assert limited.wait(two, views=True) == 0, "what is looked at counts by the minute only"
    assert limited.wait(key("b")) == 0
    limited.running.close()
    assert [limited.wait(two) for _ in range(3)] == [0, 0, 1]


def test_nothing_is_limited_without_keys() -> None:
    limiter, running = Limiter(), ExitStack()
    for _ in range(200):
        running.enter_context(limiter.within(NOBODY_S))
    running.close()
