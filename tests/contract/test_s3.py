"""A dataset, checkpoints and a run folder in S3, as a local server speaks it: built, trained, killed, gone on, evaluated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vsr1 import storage
from vsr1.runs.mirror import bring, mirrored, push
from vsr1.storage import StorageError, cache_at, fetched, fetched_folder, is_there, place_of, sent, sent_folder

pytest.importorskip("s3fs", reason="pip install 'vsr1[remote,dev]'")
moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Yield the variables of a client of a server that has the bucket `films`."""
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("films")
    yield variables
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def node(tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the place of a URL on a node."""
    monkeypatch.setattr(storage, "FRESH_S", 0.0)

    def at(url: str, name: str = "one") -> Path:
        with cache_at(tmp_path / name):
            place = place_of(url)
        assert place is not None
        return place

    return at


def test_files_come_and_go(node: Any) -> None:
    here, there = node("s3://films/m"), node("s3://films/m", "two")
    (here / "deep/er").mkdir(parents=True)
    for name in ("config.json", "deep/er/a.npy", "ünicode #1?.txt"):
        (here / name).write_text(name)
    sent_folder(here)
    fetched_folder(there)
    assert {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == {
        "config.json", "deep/er/a.npy", "ünicode #1?.txt"
    }  # fmt: skip
    (here / "config.json").write_text("{...}")
    sent(here / "config.json")
    assert fetched(there / "config.json").read_text() == "{...}"
    assert is_there(there / "deep") and not is_there(there / "none") and not fetched(there / "none").exists()


def test_large_logs_are_appended_to(node: Any) -> None:
    run = node("s3://films/log")
    run.mkdir(parents=True)
    with mirrored(run, "grpo"):
        (run / "a.jsonl").write_bytes(os.urandom(2**20) * 9)
        push(run)
        for _ in range(2):
            with (run / "a.jsonl").open("ab") as file:
                file.write(b"more")
            push(run)
        assert fetched(node("s3://films/log/a.jsonl", "two")).read_bytes() == (run / "a.jsonl").read_bytes()


def test_two_that_take_a_lease_at_once_are_one(node: Any) -> None:
    from vsr1.runs.folder import RunFolderError

    one, two = node("s3://films/lease"), node("s3://films/lease", "two")
    with mirrored(one, "grpo"), pytest.raises(RunFolderError, match="in use by `grpo`"), mirrored(two, "grpo"):
        raise AssertionError("it was let in")
    bring(two, "grpo")


def test_a_wrong_bucket_and_a_server_that_is_gone_are_named(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="there is no bucket film; correct its name, or create it"):
        fetched(node("s3://film/a"))
    with pytest.raises(StorageError, match="there is no bucket film; correct its name"):
        fetched_folder(node("s3://film/a"))
    monkeypatch.setattr(storage, "WAITS_S", ())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StorageError, match="does not answer after 1 tries"):
        fetched(node("s3://films/a"))
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.undo()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(StorageError, match="there are no credentials"):
        fetched(node("s3://films/a"))
    fsspec.filesystem("s3").clear_instance_cache()
