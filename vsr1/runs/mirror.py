"""A run folder at a URL: the run works in its place on this disk, and each commit is copied to the URL after it.

    URL/...            the files of the run folder, under their names
    URL/commit.json    the last commit: which files it is made of, with their bytes; written after them
    URL/lease.json     who works there, renewed while it does

A reader takes the state that `commit.json` names, so it finds a whole one whenever the copying was cut off. Who goes on
from a URL on another disk has first what the last commit left; a folder that is one commit ahead of its URL, because
the store did not answer, goes on by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from vsr1.formats.atomic import write_json
from vsr1.runs.folder import RunFolderError, owned
from vsr1.storage import AT_ONCE, fetched, files_of, lost, removed, sent, url_of
from vsr1.stores import StorageError, asked, listed

COMMIT, LEASE = "commit.json", "lease.json"
STATES, KEPT = "state/", ("state/", "ledger/")  # what only counts if a commit names it
NOT_COPIED = (COMMIT, LEASE, "ray_train/", ".seen-")
LEASE_S = 120.0  # without a sign of its owner, by the clock of who asks
SETTLE_S = 2.0  # in which two that take over a lease at one time have both written

_known: dict[Path, tuple[int, int]] = {}  # inode and bytes of files as this process has sent them


def bring(run_dir: Path, stage: str) -> None:
    """Fetch the last commit of a URL, unless the folder has it, or is ahead of it.

    Raises:
        RunFolderError: another process has the folder, the URL holds a run no more, or a commit that is not whole.
        StorageError: the store cannot be used.
    """
    if url_of(run_dir) is not None:
        with owned(run_dir, stage):
            _bring(run_dir)


@contextmanager
def mirrored(run_dir: Path, stage: str) -> Iterator[None]:
    """Hold the URL of a run folder for a stage: begin with its last commit, and copy there what the stage leaves.

    Raises:
        RunFolderError: another run works at the URL; as of `bring`.
        StorageError: the store cannot be used; what was not copied is in the folder.
    """
    url = url_of(run_dir)
    if url is None:
        yield
        return
    with _leased(run_dir, url, stage):
        _bring(run_dir)
        _forget_what_no_commit_names(run_dir, url)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, StorageError):
                try:
                    push(run_dir)
                except (StorageError, RunFolderError) as second:  # must not hide the first
                    error.add_note(str(second))
            raise
        push(run_dir)


def push(run_dir: Path) -> None:
    """Copy what has changed in a run folder to its URL, then say there that it is whole; nothing without a URL.

    Raises:
        RunFolderError: another run has taken the URL over.
        StorageError: the store cannot be used.
    """
    url = url_of(run_dir)
    if url is None:
        return
    try:
        _check_ours(run_dir, url)
        _push(run_dir, url)
    except StorageError as error:
        raise StorageError(
            f"{error}. The run is whole in {run_dir} on {socket.gethostname()}, and the same command goes on from it "
            "there; its last commit is not at the URL"
        ) from error


def _push(run_dir: Path, url: str) -> None:
    names, there = _own_files(run_dir), listed(url)

    def send(name: str) -> None:
        path = run_dir / name
        size = there[name]["size"] if name in there else -1
        with suppress(FileNotFoundError):  # it has been removed since
            status, before = path.stat(), _known.get(path, (0, 0))
            if not (name.startswith(STATES) and size == status.st_size):  # else a rank of this run has sent it
                sent(path, before[1] if before[0] == status.st_ino else 0)
                _known[path] = status.st_ino, status.st_size

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(send, names))
    # By this run, but perhaps by a rank of it on another disk.
    latest = _read_url(f"{url}/{COMMIT}") or {"number": 0, "id": None, "files": {}}
    there, whole = listed(url), set(names)
    stages = _folders(run_dir, f"{STATES}*")  # whose states this disk decides on; of them ranks have sent their parts
    states = _folders(run_dir, f"{STATES}*/step-*")
    gone = {name for name in lost(run_dir) if not name.startswith(NOT_COPIED)}
    gone |= {name for name in there if name.startswith(stages) and not name.startswith(states) and name not in whole}
    whole |= {name for name in there if name.startswith(states)} | (latest["files"].keys() - gone)
    files = {name: there[name]["size"] for name in sorted(whole) if name in there}
    commit = {"number": latest["number"] + 1, "id": uuid4().hex, "before": latest["id"], "files": files}
    write_json(run_dir / COMMIT, commit)
    sent(run_dir / COMMIT)
    for name in gone:
        removed(run_dir / name)


def _folders(run_dir: Path, pattern: str) -> tuple[str, ...]:
    return tuple(f"{path.relative_to(run_dir)}/" for path in run_dir.glob(pattern) if path.is_dir())


def _bring(run_dir: Path) -> None:
    url, here = url_of(run_dir), _read(run_dir / COMMIT)
    commit = _read_url(f"{url}/{COMMIT}")
    if commit is None and here is not None:
        raise RunFolderError(
            f"{url} holds no run any more, but its copy {run_dir} does: remove that folder to start anew, or take "
            "another run_dir"
        )
    if commit is None or (here and commit["id"] in (here["id"], here["before"])):
        return
    there = listed(str(url))
    for name, size in commit["files"].items():
        found = there[name]["size"] if name in there else None
        if name.startswith(KEPT) and (found is None or found < size or (name.startswith(STATES) and found != size)):
            raise RunFolderError(
                f"{url} is not whole: commit {commit['number']} has {name} with {size} bytes, and "
                f"{'it is not there' if found is None else f'it has {found}'}; bring that file back, as from an older "
                "version of it, or start anew with another run_dir"
            )
    for folder in KEPT:
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wanted = [run_dir / name for name in commit["files"] if name in there]
        list(pool.map(partial(fetched, keep=True), wanted))
    write_json(run_dir / COMMIT, commit)


def _forget_what_no_commit_names(run_dir: Path, url: str) -> None:
    """Remove the pieces of a state that was not whole when its run was killed."""
    commit = _read_url(f"{url}/{COMMIT}") or {"files": {}}
    own = set(_own_files(run_dir))
    for name in listed(url):
        if name.startswith(KEPT) and name not in commit["files"] and name not in own:
            removed(run_dir / name)


def _own_files(run_dir: Path) -> list[str]:
    return [name for name in files_of(run_dir) if not name.startswith(NOT_COPIED)]


@contextmanager
def _leased(run_dir: Path, url: str, stage: str) -> Iterator[None]:
    owner = f"`{stage}` of process {os.getpid()} on {socket.gethostname()}"
    own = {"owner": owner, "id": uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    place, over = f"{url}/{LEASE}", threading.Event()
    _take(url, place, own)
    write_json(run_dir / LEASE, own)

    def renew() -> None:
        while not over.wait(LEASE_S / 4):
            try:
                if (_read_url(place) or own)["id"] != own["id"]:
                    return  # the next commit says so
                _write_url(place, own | {"time": time.time()})
            except StorageError:  # the next commit says so, if it lasts
                continue

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        (run_dir / LEASE).unlink(missing_ok=True)
        with suppress(StorageError):  # the lease ends by itself, and the stage's own error is the one to tell
            if (_read_url(place) or {}).get("id") == own["id"]:
                removed(run_dir / LEASE)


def _take(url: str, place: str, own: dict[str, Any]) -> None:
    body = json.dumps(own | {"time": time.time()}).encode()
    try:
        asked(place, lambda system, name: system.pipe_file(name, body, mode="create"))
        return
    except FileExistsError:
        held = _read_url(place) or {"time": 0.0, "host": "", "owner": "", "process": 0}
    age = time.time() - held["time"]
    is_dead = held["host"] == own["host"] and not psutil.pid_exists(held["process"])
    if age < LEASE_S and not is_dead:
        raise _in_use(url, held, f"its last sign is {age:.0f} s old; if it is dead, try again in {LEASE_S - age:.0f} s")
    _write_url(place, own | {"time": time.time()})
    time.sleep(SETTLE_S)
    if (now := _read_url(place) or held)["id"] != own["id"]:
        raise _in_use(url, now, "it was faster")


def _in_use(url: str, lease: dict[str, Any], state: str) -> RunFolderError:
    return RunFolderError(f"{url} is in use by {lease['owner']} ({state}); or give this run another run_dir")


def _check_ours(run_dir: Path, url: str) -> None:
    own, now = _read(run_dir / LEASE), _read_url(f"{url}/{LEASE}")
    if own and now and own["id"] != now["id"]:
        raise _in_use(url, now, f"which has taken it over while this run gave no sign for {LEASE_S:.0f} s")


def _read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _read_url(url: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(asked(url, lambda system, name: system.cat_file(name))))
    except FileNotFoundError:
        return None


def _write_url(url: str, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    asked(url, lambda system, name: system.pipe_file(name, body))
