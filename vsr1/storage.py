"""Files at URLs that fsspec opens: each has a place on this node's disk, where it is read and written.

    s3://bucket/data/train/x.npy      is at      CACHE/vsr1-remote/s3/bucket/data/train/x.npy

A place is an ordinary path, and the path alone says which URL it is of, on every node. Who reads one calls `fetched`
before, who has written one calls `sent` after it; a path that is no place passes through both as it is. A file is
fetched again where the URL's has changed. What was written here is never removed to make room.
Nothing is known of an index of objects: a file is what was last stored under its name, and a folder is a prefix.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from vsr1.stores import StorageError, asked, info_of, listed, version_of

PLACES = "vsr1-remote"  # the folder of all places of a cache
URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # a slash is enough: a `Path` has lost the second
FRESH_S = 2.0  # in which a file is not compared with its URL again
USED_S = 600.0  # a file that was fetched or asked for within this time is not removed, whatever the budget
BUDGET_GIB, BUDGET = 64.0, "budget.json"
AT_ONCE = 8  # files of a folder
APPEND_BYTES = 8 * 2**20  # a smaller file is sent anew: stores cut what they append to in parts of 5 MiB and more

_cache: ContextVar[Path | None] = ContextVar("cache", default=None)
_checked: dict[Path, float] = {}  # when each was last compared with its URL
_listings: dict[str, tuple[float, set[str]]] = {}  # of the last folder that was asked for, and when
_came: dict[Path, int] = {}  # bytes that this process has fetched into a cache since it looked for room


def place_of(text: object) -> Path | None:
    """Return the place of a URL in the cache of the settings that are read; None for an ordinary path."""
    match = URL.fullmatch(str(text))
    if match is None:
        return None
    scheme, name = match.groups()
    if not name.strip("/") or ".." in name.split("/"):
        raise ValueError(f"{text} names no place; write {scheme}://BUCKET/FOLDER")
    return (_cache.get() or default_cache()) / PLACES / scheme / name.strip("/")


def default_cache() -> Path:
    """Return the user's cache folder, by the convention of XDG."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsr1"


@contextmanager
def cache_at(folder: Path | None) -> Iterator[None]:
    """Give URLs their places below a folder, while settings are read."""
    token = _cache.set(folder and folder.expanduser().absolute())
    try:
        yield
    finally:
        _cache.reset(token)


def url_of(path: Path) -> str | None:
    """Return the URL of a place, None of any other path."""
    if PLACES not in path.parts:
        return None
    scheme, *names = path.parts[path.parts.index(PLACES) + 1 :] or ("",)
    return f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{'/'.join(names)}" if names else None


def named(path: Path) -> str:
    """Return how a user calls a path: by its URL if it has one."""
    return url_of(path) or str(path)


def fetched(path: Path, *, keep: bool = False) -> Path:
    """Bring a file to its place, if there is none or the URL's has changed; one that the URL lacks is gone after it.

    Args:
        keep: leave it there, whatever the budget.

    Raises:
        StorageError: no such bucket, no access, or no answer.
    """
    url = url_of(path)
    if url is not None and time.monotonic() - _checked.get(path, -FRESH_S) >= FRESH_S:
        info = info_of(url)
        _bring(path, url, info if info and info["type"] != "directory" else None, keep)
    return path


def fetched_folder(path: Path, *, keep: bool = False) -> Path:
    """Bring every file below a folder to its place, as `fetched` does."""
    url = url_of(path)
    if url is None or time.monotonic() - _checked.get(path, -FRESH_S) < FRESH_S:
        return path
    infos = listed(url)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _bring(path / name, f"{url}/{name}", infos[name], keep), infos))
        gone = [name for name in recorded(path) if name not in infos]
        list(pool.map(lambda name: _bring(path / name, f"{url}/{name}", None), gone))
    _checked[path] = time.monotonic()
    return path


def is_there(path: Path) -> bool:
    """Say whether a path exists, at its URL if it has one; errors as of `fetched`."""
    url = url_of(path)
    return path.exists() if url is None else info_of(url) is not None


def has_file(path: Path) -> bool:
    """Say whether a file exists, as `is_there`, by one list of its folder for all that are asked for within seconds."""
    url = url_of(path.parent)
    if url is None:
        return path.is_file()
    listing = _listings.get(url)
    if listing is None or time.monotonic() - listing[0] > FRESH_S:
        _listings.clear()
        listing = _listings[url] = time.monotonic(), set(listed(url))
    return path.name in listing[1]


def sent(path: Path, known: int = 0) -> None:
    """Store a file that was written at its place, if it has changed; errors as of `fetched`.

    Args:
        known: bytes at its beginning that the URL has already; of a large file only the others are sent.
    """
    url = url_of(path)
    if url is None:
        return
    stamp, record = _stamp(path), _read_record(path)
    if record and record["local"] == stamp:
        return
    is_longer = APPEND_BYTES < known < stamp[0] and (info_of(url) or {}).get("size") == known
    if not is_longer or not asked(url, partial(_append, path, known)):
        asked(url, partial(_put, path))
    if (info := info_of(url)) is None or info["size"] < stamp[0]:  # a log may have grown meanwhile
        raise StorageError(f"{url} is not what was written to it; does something else write there?")
    _write_record(path, version_of(info), stamp, keep=True)


def _append(path: Path, known: int, system: Any, name: str) -> bool:
    """Add what a file has after `known` bytes; return whether the store can."""
    with path.open("rb") as file:
        file.seek(known)
        try:
            with system.open(name, "ab") as target:
                if target.tell() != known:
                    target.discard()
                    return False
                shutil.copyfileobj(file, target)
        except (NotImplementedError, ValueError):
            return False
    return True


def sent_as(folder: Path, place: Path) -> None:
    """Store all files of a folder at the URL of another place; nothing without a URL; errors as of `fetched`."""
    if (url := url_of(place)) is not None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
            put = [partial(asked, f"{url}/{name}", partial(_put, folder / name)) for name in files]
            list(pool.map(lambda one: one(), put))


def _put(path: Path, system: Any, name: str) -> None:
    system.put_file(str(path), name)


def sent_folder(path: Path, last: Callable[[Path], bool] = lambda path: path.name == "config.json") -> None:
    """Store what has changed below a folder, then remove from the URL what is gone; errors as of `fetched`.

    Args:
        last: the files that come after all others, by which a reader knows that these are whole.
    """
    url = url_of(path)
    if url is None:
        return
    files = [path / name for name in files_of(path)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for is_last in (False, True):
            list(pool.map(sent, (file for file in files if last(file) == is_last)))
    for name in lost(path):
        removed(path / name)


def removed(path: Path) -> None:
    """Remove a file from its URL and its place; one that is not there is no error."""
    url = url_of(path)
    if url is not None:
        with suppress(FileNotFoundError):
            asked(url, lambda system, name: system.rm_file(name))
        _record(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _bring(path: Path, url: str, info: dict[str, Any] | None, keep: bool = False) -> None:
    """Make a place hold what the store has, once a node."""
    with _locked(path):
        record = _read_record(path)
        is_ours = record is not None and path.is_file() and record["local"] == _stamp(path)
        if info is None:
            if is_ours:
                path.unlink()
                _record(path).unlink()
        elif record and record["version"] == version_of(info) and path.is_file():
            _write_record(path, **record | {"keep": keep or record["keep"]})
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{uuid4().hex}.part-{path.suffix}")
            try:
                asked(url, lambda system, name: system.get_file(name, str(part)))
                if (size := part.stat().st_size) != info["size"]:
                    raise StorageError(f"{url}: {size} of {info['size']} bytes came; was it written meanwhile?")
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            _write_record(path, version_of(info), _stamp(path), keep)
            _make_room(_base(path), size)
    _checked[path] = time.monotonic()


def keep_budget(cache_folder: Path, gib: float) -> None:
    """Note how much fetched files may take on this node; the oldest are removed where more comes."""
    base = cache_folder / PLACES
    base.mkdir(parents=True, exist_ok=True)
    (base / BUDGET).write_text(json.dumps({"gib": gib}), encoding="utf-8")


def _make_room(base: Path, size: int) -> None:
    """Remove the files used longest ago if all are more than the budget; looked at after each hundredth of it."""
    file = base / BUDGET
    budget = (json.loads(file.read_text(encoding="utf-8"))["gib"] if file.is_file() else BUDGET_GIB) * 2**30
    _came[base] = _came.get(base, 0) + size
    if _came[base] < budget / 100:
        return
    _came[base] = 0
    files = []
    for record in (base / ".records").rglob("*.json"):
        place = base / record.relative_to(base / ".records").with_suffix("")
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            if not values["keep"] and values["local"] == _stamp(place):
                files.append((record.stat().st_mtime, values["local"][0], place, record))
        except FileNotFoundError:
            continue  # another process has removed it
    total, now = sum(size for _, size, _, _ in files), time.time()
    for used, size, place, record in sorted(files):
        if total <= budget or now - used < USED_S:
            return
        record.unlink(missing_ok=True)
        place.unlink(missing_ok=True)
        _checked.pop(place, None)
        total -= size


def _base(path: Path) -> Path:
    return Path(*path.parts[: path.parts.index(PLACES) + 1])


def _record(path: Path) -> Path:
    base = _base(path)
    return base / ".records" / path.relative_to(base).with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(_record(path).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_record(path: Path, version: str, local: list[int], keep: bool) -> None:
    record = _record(path)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_name(f".{uuid4().hex}")
    part.write_text(json.dumps({"version": version, "local": local, "keep": keep}), encoding="utf-8")
    os.replace(part, record)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def files_of(path: Path) -> list[str]:
    """Return the names of the files below a folder; not those that somebody is writing, and no locks."""
    names = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    return sorted(str(name) for name in names if not any(_is_passing(part) for part in name.parts))


def _is_passing(name: str) -> bool:
    return name.startswith((".part-", ".old-")) or ".part-" in name or name.endswith(".lock")


def recorded(path: Path) -> dict[str, bool]:
    """Return the names of the files below a folder that were fetched or sent, and whether they are kept."""
    folder = _record(path).with_name(path.name)
    names = [str(record.relative_to(folder).with_suffix("")) for record in folder.rglob("[!.]*.json")]
    return {name: record["keep"] for name in names if (record := _read_record(path / name))}


def lost(path: Path) -> list[str]:
    """Return the names of the files below a folder that this node has sent or kept, and that were removed here."""
    return [name for name, is_kept in recorded(path).items() if is_kept and not (path / name).exists()]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process of the node, and one thread of it, bring a file."""
    locks = _base(path) / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / hashlib.sha256(str(path).encode()).hexdigest()[:32]).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
