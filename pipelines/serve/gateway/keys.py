"""API keys and what each may ask for: hashes in a file, a bucket of requests a minute, and so many at one time.

A key has 256 random bits, so its plain sha256 cannot be turned back. Without a file of keys everybody is let in under
one name.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.serve.gateway.faults import ApiError
from vsr1.formats.atomic import write_json

PREFIX = "vsr1_"  # so that a leaked key can be recognised


class KeyFileError(ValueError):
    """A file of keys that cannot be used; the message names it and the fix."""


class ApiKey(BaseModel):
    """One key: only its hash is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    per_minute: int = Field(120, ge=1, description="searches, and what changes a corpus")
    views_per_minute: int = Field(2400, ge=1, description="frames, films and states that are looked at")
    at_once: int = Field(16, ge=1, description="requests that run at one time")


NOBODY_S = ApiKey(  # without a file of keys
    name="nobody's", sha256="0" * 64, per_minute=10**9, views_per_minute=10**9, at_once=10**9
)
_FILE = TypeAdapter(list[ApiKey])


def read_keys(path: Path) -> dict[str, ApiKey]:
    """Read the keys of a file, by hash.

    Raises:
        KeyFileError: no such file, not a list of keys, or two of one name.
    """
    if not path.is_file():
        raise KeyFileError(f"key file {path} does not exist; make one with `vsr1 key NAME --file {path}`")
    try:
        keys = _FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        raise KeyFileError(f"key file {path}: {error.errors(include_input=False)[0]['msg']}; restore it") from None
    twice = [name for name, count in Counter(key.name for key in keys).items() if count > 1]
    if twice:
        raise KeyFileError(f"key file {path} has more than one key of {twice[0]!r}; remove one")
    return {key.sha256: key for key in keys}


def add_key(path: Path, name: str, per_minute: int, at_once: int, views_per_minute: int = 2400) -> str:
    """Add a key to a file, which is made if it is missing, and return it: it is not kept anywhere.

    Raises:
        KeyFileError: the file cannot be used, or has a key of that name.
    """
    keys = list(read_keys(path).values()) if path.exists() else []
    if any(key.name == name for key in keys):
        raise KeyFileError(f"key file {path} has a key of {name!r} already; remove it first")
    secret = PREFIX + secrets.token_urlsafe(32)
    limits = {"per_minute": per_minute, "at_once": at_once, "views_per_minute": views_per_minute}
    keys.append(ApiKey(name=name, sha256=_hash(secret), **limits))
    write_json(path, [key.model_dump() for key in keys])
    path.chmod(0o600)
    return secret


def secret_of(headers: Mapping[str, str]) -> str:
    """Return what a request sends as its key, "" without one."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def key_of(keys: dict[str, ApiKey], secret: str) -> ApiKey | None:
    """Look up the key of a secret. How long it takes tells of hashes only, of which nobody can choose the digits."""
    return keys.get(_hash(secret))


@dataclass
class _Use:
    allowance: float
    since: float
    running: int = 0


class Limiter:
    """Counts by the names of keys: what is only looked at apart from what costs an agent; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[tuple[str, bool], _Use] = {}

    @contextmanager
    def within(self, key: ApiKey, *, views: bool = False) -> Iterator[None]:
        """Be around what a key asks for.

        Args:
            views: it only looks, and is not among what the key runs at one time. A page loads some twenty frames for
                each search.

        Raises:
            ApiError: 429 `rate_limited` at the limits of the key, with the seconds after which to try again.
        """
        now, per_minute = self._clock(), key.views_per_minute if views else key.per_minute
        use = self._uses.setdefault((key.name, views), _Use(per_minute, now))
        use.allowance = min(per_minute, use.allowance + (now - use.since) * per_minute / 60)
        use.since = now
        is_full = not views and use.running >= key.at_once
        if is_full or use.allowance < 1:
            wait = 1 if is_full else max(1, math.ceil((1 - use.allowance) * 60 / per_minute))
            raise ApiError("rate_limited", f"the limits of key {key.name!r} are reached", wait)
        use.allowance -= 1
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
