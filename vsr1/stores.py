"""Requests to the file systems of URLs by fsspec, made again while there is no answer; faults are named in one line."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import fsspec

WITHOUT_BUCKET = ("file", "local", "memory")
WAITS_S = (1.0, 4.0)  # before a request is made again; the libraries below have tried for themselves by then
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "adlfs", "azure", "requests", "urllib3")
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "last_modified", "created")
T = TypeVar("T")


class StorageError(OSError):
    """A URL that cannot be used; the message names it and says what to do."""


def listed(url: str) -> dict[str, dict[str, Any]]:
    """Return what a store says of each file below a URL, by its name there; errors as of `asked`."""

    def find(system: Any, folder: str) -> dict[str, dict[str, Any]]:
        files = system.find(folder, detail=True)
        return {name[len(folder.rstrip("/")) + 1 :]: info for name, info in files.items() if name != folder}

    try:
        return asked(url, find)
    except FileNotFoundError:
        _check_bucket(url)
        return {}


def asked(url: str, ask: Callable[[Any, str], T]) -> T:
    """Ask the file system of a URL, which gets the name there, again while it does not answer.

    Raises:
        FileNotFoundError, FileExistsError: as the file system does.
        StorageError: its package is missing, access is denied, or there was no answer.
    """
    scheme = url.partition("://")[0]
    try:
        options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        system = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        fix = "pip install 'vsr1[remote]'" if scheme in ("s3", "s3a") else "install it"
        raise StorageError(f"{url} needs a package that is missing ({error}): {fix}") from error
    except ValueError as error:
        raise StorageError(f"{url}: no file system is called {scheme}; write s3://, gs:// or a path") from error
    name = system._strip_protocol(url)
    for wait in (*WAITS_S, None):
        try:
            return ask(system, name)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # of any library; those that are not the store's are raised again
            _raise_unless_silent(url, error)
            if wait is None:
                kind = type(error).__name__
                raise StorageError(
                    f"{url} does not answer after {len(WAITS_S) + 1} tries ({kind}: {' '.join(str(error).split())}); "
                    "see that the store runs and this node reaches it, then start the same command again"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _raise_unless_silent(url: str, error: Exception) -> None:
    """Return if another try may help, else raise what is wrong."""
    kind, module = type(error).__name__, type(error).__module__.partition(".")[0]
    of_this_disk = isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT))
    if of_this_disk or not (isinstance(error, OSError) or module in _LIBRARIES):
        raise error
    if isinstance(error, PermissionError) or "Credential" in kind or "Unauthorized" in kind:
        raise StorageError(
            f"{url}: access is denied or there are no credentials ({' '.join(str(error).split())}); give this node "
            "those of the store, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, with the right to read, "
            "write and list there"
        ) from error


def _check_bucket(url: str) -> None:
    scheme, _, name = url.partition("://")
    bucket = name.partition("/")[0]
    if scheme not in WITHOUT_BUCKET and not _has_bucket(f"{scheme}://{bucket}"):
        raise StorageError(f"{url}: there is no bucket {bucket}; correct its name, or create it")


@cache
def _has_bucket(url: str) -> bool:
    return asked(url, lambda system, name: bool(system.exists(name)))


def info_of(url: str) -> dict[str, Any] | None:
    """Return what a store says of a file or a folder, None of nothing; errors as of `asked`."""
    try:
        return asked(url, lambda system, name: dict(system.info(name)))
    except FileNotFoundError:
        _check_bucket(url)
        return None


def version_of(info: dict[str, Any]) -> str:
    """Return what changes when a file does: its size, and its hash or else its time."""
    return f"{info['size']} {next((info[key] for key in _VERSIONS if info.get(key)), '')}"
