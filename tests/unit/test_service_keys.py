"""API keys: what is kept of them, and what the limits let through."""

import json
from pathlib import Path

import pytest

from pipelines.serve.gateway.keys import ApiKey, KeyFileError, Limiter, add_key, known, read_keys


def test_a_key_is_kept_as_its_hash_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "first", per_minute=10, at_once=2)
    other = add_key(path, "second", per_minute=20, at_once=1)
    assert secret.startswith("vsr1_") and secret != other
    assert secret not in path.read_text() and other not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path)
    found = known(keys, secret)
    assert found is not None and (found.name, found.per_minute, found.at_once) == ("first", 10, 2)
    assert known(keys, secret[:-1]) is None
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


def key(**limits: int) -> ApiKey:
    return ApiKey(name="a", sha256="0" * 64, **limits)


def test_requests_a_minute_come_back_over_time() -> None:
    limiter, limited = Limiter(), key(per_minute=2, at_once=10)
    assert [limiter.begin(limited, 0.0) for _ in range(3)] == [0, 0, 30]
    assert limiter.begin(limited, 29.0) == 1
    assert limiter.begin(limited, 30.0) == 0
    assert limiter.begin(limited, 30.0) == 30
    assert [limiter.begin(limited, 10_000.0) for _ in range(3)] == [0, 0, 30]  # never more than a minute's


def test_requests_at_one_time_are_bounded_by_name() -> None:
    limiter, limited = Limiter(), key(per_minute=1000, at_once=2)
    assert [limiter.begin(limited, 0.0) for _ in range(3)] == [0, 0, 1]
    limiter.end(limited)
    assert limiter.begin(limited, 0.0) == 0
    assert limiter.begin(ApiKey(name="b", sha256="1" * 64), 0.0) == 0
