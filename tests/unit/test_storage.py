"""Files at URLs: fetched once a node and again when they change, sent whole, kept within a budget; faults are named."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from nodes_of_urls import place_on

from vsr1 import storage
from vsr1.config import ConfigError, config_values, dump_config, load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.storage import (
    fetched,
    fetched_folder,
    has_file,
    is_there,
    keep_budget,
    place_of,
    removed,
    sent,
    sent_folder,
    url_of,
)
from vsr1.stores import StorageError

MEMORY = fsspec.filesystem("memory")
pytestmark = pytest.mark.usefixtures("quick_memory")


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """Gives the place of a URL on a node."""
    return partial(place_on, tmp_path)


@pytest.mark.parametrize(
    ("text", "url"),
    [("s3://bucket/a/b", "s3://bucket/a/b"), ("s3:/bucket/a", "s3://bucket/a"), ("memory://a/", "memory://a"),
     ("gs://b", "gs://b"), ("file:///data/x", "file:///data/x")],
)  # fmt: skip
def test_the_path_alone_says_which_url_it_is_of(node: Any, text: str, url: str) -> None:
    place = node(text)
    assert url_of(place) == url
    assert url_of(place / "x.npy") == f"{url}/x.npy" and url_of(place.parent.parent.parent) is None


@pytest.mark.parametrize("text", ["runs/demo", "/data", "a:b/c", "C:/data", "../x"])
def test_other_paths_are_no_places(text: str) -> None:
    assert place_of(text) is None
    assert url_of(Path(text)) is None and fetched(Path(text)) == Path(text)


def test_settings_hold_places_and_are_written_with_urls(tmp_path: Path) -> None:
    options = [
        "data.root=s3://b/data",
        "model.policy=gs://b/policy",
        "run_dir=memory://runs/a",
        f"storage.cache={tmp_path}",
    ]
    config = load_config(None, options)
    assert config.data.root == tmp_path / "vsr1-remote/s3/b/data"
    assert DatasetFolder(config.data.root).clips("train") == config.data.root / "train/video_npy_with_meta"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    values = config_values(tmp_path / "config.yaml")
    assert (values["data"]["root"], values["run_dir"]) == ("s3://b/data", "memory://runs/a")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path / "config.yaml", ["storage.cache=null"]).run_dir.parts[-2:] == ("runs", "a")


@pytest.mark.parametrize(
    ("option", "message"),
    [("serve.key_file=s3://b/keys", "a path on this machine is needed here, not a URL"),
     ("storage.cache=s3://b/c", "a path on this machine is needed"), ("data.root=s3://", "names no place"),
     ("data.root=s3://b/../c", "names no place")],
)  # fmt: skip
def test_a_url_where_none_can_be_is_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [option])


def test_a_file_is_fetched_once_and_again_when_it_has_changed(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe("/d/a.txt", b"first")
    place, fetches = node("memory://d/a.txt"), []
    get = type(MEMORY).get_file
    monkeypatch.setattr(type(MEMORY), "get_file", lambda self, *names: [fetches.append(names), get(self, *names)])
    for _ in range(3):
        assert fetched(place).read_bytes() == b"first"
    MEMORY.pipe("/d/a.txt", b"other")
    assert fetched(place).read_bytes() == b"other" and len(fetches) == 2
    MEMORY.rm("/d/a.txt")
    assert not fetched(place).exists()
    assert [path.name for path in place.parent.iterdir()] == [], "no record and no part lies beside the files"


def test_many_that_want_a_file_at_once_fetch_it_once(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe("/d/a.txt", b"first")
    place, fetches, all_wait = node("memory://d/a.txt"), [], threading.Barrier(8)
    get = type(MEMORY).get_file
    monkeypatch.setattr(type(MEMORY), "get_file", lambda self, *names: [fetches.append(names), get(self, *names)])

    def want(_: int) -> bytes:
        all_wait.wait()
        return fetched(place).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(want, range(8))) == {b"first"}
    assert len(fetches) == 1


def test_a_folder_is_sent_whole_and_read_on_another_node(node: Any) -> None:
    here, there = node("memory://d/model"), node("memory://d/model", "two")
    (here / "sub").mkdir(parents=True)
    for name, text in {"config.json": "{}", "sub/a": "a", "b.safetensors": "b"}.items():
        (here / name).write_text(text)
    (here / ".part-c").write_text("half")
    sent_folder(here)
    fetched_folder(there)
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()) == [
        "b.safetensors", "config.json", "sub/a"
    ]  # fmt: skip
    (here / "sub/a").unlink()
    (here / "b.safetensors").write_text("newer")
    sent_folder(here)
    fetched_folder(there)
    assert (there / "b.safetensors").read_text() == "newer" and not (there / "sub/a").exists()
    assert is_there(there) and is_there(there / "config.json") and not is_there(there / "none")
    assert has_file(there / "config.json") and not has_file(there / "none")


def test_the_last_file_of_a_folder_comes_last(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place, order = node("memory://d"), []
    place.mkdir(parents=True)
    for name in ("a", "config.json", "z"):
        (place / name).write_text(name)
    put = type(MEMORY).put_file
    monkeypatch.setattr(type(MEMORY), "put_file", lambda self, *names: [order.append(names[1]), put(self, *names)])
    sent_folder(place)
    assert sorted(order) == ["/d/a", "/d/config.json", "/d/z"] and order[-1] == "/d/config.json"


def test_what_was_written_here_is_not_overwritten_by_what_it_came_from(node: Any) -> None:
    MEMORY.pipe("/d/a", b"old")
    place = node("memory://d/a")
    fetched(place).write_text("mine")
    assert fetched(place).read_text() == "mine"
    sent(place)
    assert MEMORY.cat("/d/a") == b"mine"
    removed(place)
    removed(place)
    assert not MEMORY.exists("/d/a") and not place.exists()


def test_the_oldest_fetched_files_make_room_and_nothing_else(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "USED_S", 0.0)
    keep_budget(tmp_path / "one", 2.5 * 2**-20)  # of a GiB: 2.5 KiB
    own = node("memory://d/own")
    own.parent.mkdir(parents=True)
    own.write_bytes(b"x" * 4096)
    sent(own)
    for number in range(4):
        MEMORY.pipe(f"/d/{number}", b"x" * 1024)
        place = fetched(node(f"memory://d/{number}"))
        os.utime(storage._record(place), (number, number) if number < 3 else None)
        if number == 1:
            place.write_bytes(b"mine" * 256)  # changed here since
    assert sorted(path.name for path in own.parent.iterdir()) == ["1", "2", "3", "own"]


def test_a_file_that_comes_in_short_is_not_kept(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe("/d/a", b"whole")
    place = node("memory://d/a")
    monkeypatch.setattr(type(MEMORY), "get_file", lambda self, name, part: Path(part).write_bytes(b"who"))
    with pytest.raises(StorageError, match=r"memory://d/a: 3 of 5 bytes came"):
        fetched(place)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (PermissionError("Access Denied"), r"access is denied or there are no credentials \(Access Denied\); give"),
        (TimeoutError("slow"), r"does not answer after 3 tries \(TimeoutError: slow\); see that the store runs"),
        (ConnectionResetError("gone"), r"does not answer after 3 tries \(ConnectionResetError: gone\)"),
    ],
)  # fmt: skip
def test_faults_of_a_store_are_named(
    node: Any, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(type(MEMORY), "info", fail)
    with pytest.raises(StorageError, match=f"memory://d/a.*{message}"):
        fetched(node("memory://d/a"))


def test_a_link_that_comes_back_is_no_fault(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe("/d/a", b"whole")
    info, faults = type(MEMORY).info, [TimeoutError(), ConnectionResetError()]

    def answer(self: Any, name: str) -> Any:
        if faults:
            raise faults.pop()
        return info(self, name)

    monkeypatch.setattr(type(MEMORY), "info", answer)
    assert fetched(node("memory://d/a")).read_bytes() == b"whole" and not faults


def test_faults_of_this_disk_and_of_this_program_go_through(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (OSError(28, "No space left on device"), ZeroDivisionError()):
        monkeypatch.setattr(type(MEMORY), "info", lambda *_, fault=fault: (_ for _ in ()).throw(fault))
        with pytest.raises(type(fault)) as caught:
            fetched(node("memory://d/a"))
        assert caught.value is fault


@pytest.mark.parametrize(
    ("url", "message"),
    [("nosuch://b/c", "no file system is called nosuch"), ("smb://h/c", "needs a package that is missing")],
)
def test_what_no_package_opens_is_named(node: Any, url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        fetched(node(url))


def test_a_mounted_folder_works_as_a_url(tmp_path: Path, node: Any) -> None:
    (tmp_path / "mount").mkdir()
    place = node(f"file://{tmp_path}/mount/deep/a.json")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps([1]))
    sent(place)
    assert json.loads(fetched(node(f"file://{tmp_path}/mount/deep/a.json", "two")).read_text()) == [1]
    assert fetched_folder(node(f"file://{tmp_path}/mount", "three")).joinpath("deep/a.json").is_file()
