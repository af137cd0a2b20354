"""A run folder at a URL: a reader finds whole states only, two runs do not share one, another disk goes on from it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from vsr1 import storage, stores
from vsr1.runs import mirror
from vsr1.runs.folder import RunFolderError, kept_in
from vsr1.runs.mirror import bring, mirrored, push
from vsr1.storage import cache_at, place_of
from vsr1.stores import StorageError

MEMORY = fsspec.filesystem("memory")
pytestmark = pytest.mark.usefixtures("quick_memory")
URL = "memory://runs/a"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "SETTLE_S", 0.0)


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """Gives the run folder on a node."""

    def at(name: str) -> Path:
        with cache_at(tmp_path / name):
            place = place_of(URL)
        assert place is not None
        place.mkdir(parents=True, exist_ok=True)
        return place

    return at


def commit(run: Path, step: int) -> None:
    """Write what a step of a run leaves, and copy it."""
    state = run / f"state/grpo/step-{step}"
    state.mkdir(parents=True)
    (state / "weights").write_text(f"weights of {step}")
    (state.parent / "settings.json").write_text("{}")  # beside the states, since the first step
    (run / "ledger").mkdir(exist_ok=True)
    (run / f"ledger/{step}.journal").write_text(f"moves of {step}")
    with (run / "scalars.jsonl").open("a") as file:
        file.write(f"{step}\n")
    shutil.rmtree(run / f"state/grpo/step-{step - 2}", ignore_errors=True)
    (run / f"ledger/{step - 2}.journal").unlink(missing_ok=True)
    push(run)


def files(run: Path) -> dict[str, str]:
    found = {str(path.relative_to(run)): path.read_text() for path in run.rglob("*") if path.is_file()}
    return {name: text for name, text in found.items() if not name.endswith((".lock", mirror.COMMIT, mirror.LEASE))}


def test_another_disk_goes_on_from_the_last_commit(node: Any) -> None:
    first, second = node("one"), node("two")
    with mirrored(first, "grpo"):
        for step in (1, 2, 3):
            commit(first, step)
    bring(second, "grpo")
    assert files(second) == files(first)
    assert set(files(second)) == {
        "scalars.jsonl",
        "state/grpo/settings.json",
        *(f"state/grpo/step-{step}/weights" for step in (2, 3)),
        *(f"ledger/{step}.journal" for step in (2, 3)),
    }
    assert not MEMORY.exists("/runs/a/lease.json")
    assert "its commits are at memory://runs/a" in kept_in(second)
    with mirrored(second, "grpo"):
        commit(second, 4)
    (first / "state/grpo/step-3/weights").write_text("of the first disk")
    bring(first, "grpo")
    assert files(first) == files(second)


@pytest.mark.parametrize("cut", range(1, 6))
def test_whatever_is_cut_off_a_reader_finds_a_whole_state(node: Any, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """The link is gone from some request of a commit on."""
    first, second = node("one"), node("two")
    with mirrored(first, "grpo"):
        commit(first, 1)
        commit(first, 2)
    put, sends = type(MEMORY).put_file, []

    def put_until(self: Any, *names: str, **options: Any) -> None:
        sends.append(names)
        if len(sends) >= cut:
            raise ConnectionResetError("gone")
        put(self, *names, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "put_file", put_until)
        try:
            commit(first, 3)
            is_whole = True
        except StorageError as error:
            is_whole = False
            assert "the same command goes on from it there; its last commit is not at the URL" in str(error)
            assert str(first) in str(error)
    with mirrored(second, "grpo"):
        states = sorted(path.name for path in second.glob("state/grpo/step-*"))
        assert states == (["step-2", "step-3"] if is_whole else ["step-1", "step-2"])
        assert all((second / f"state/grpo/{name}/weights").read_text() == f"weights of {name[-1]}" for name in states)
        steps = {int(name[-1]) for name in states}
        assert {int(path.stem) for path in second.glob("ledger/*")} == steps
        left = [name for name in stores.listed(URL) if "step-3" in name or name == "ledger/3.journal"]
        assert bool(left) == is_whole, "pieces of what was not whole are gone"


def test_a_folder_that_is_ahead_of_its_url_goes_on_by_itself(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = node("one")
    with mirrored(first, "grpo"):
        commit(first, 1)
    put = type(MEMORY).put_file

    def put_but_commits(self: Any, path: str, name: str, **options: Any) -> None:
        if name.endswith(mirror.COMMIT):
            raise ConnectionResetError("gone")
        put(self, path, name, **options)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match=r"commit\.json does not answer after 3 tries"),
    ):
        patch.setattr(type(MEMORY), "put_file", put_but_commits)
        commit(first, 2)
    with mirrored(first, "grpo"):
        assert (first / "state/grpo/step-2").is_dir()
        push(first)
    second = node("two")
    bring(second, "grpo")
    assert (second / "state/grpo/step-2/weights").read_text() == "weights of 2"


def test_two_runs_on_one_url_are_refused_by_name(node: Any) -> None:
    first, second = node("one"), node("two")
    with (
        mirrored(first, "grpo"),
        pytest.raises(RunFolderError, match=r"memory://runs/a is in use by `grpo` of process"),
        mirrored(second, "sft"),
    ):
        raise AssertionError("it was let in")
    with mirrored(second, "sft"):
        pass


@pytest.mark.parametrize(
    ("lease", "is_free"),
    [({"host": "elsewhere", "age": 10.0}, False), ({"host": "elsewhere", "age": mirror.LEASE_S + 1}, True),
     ({"host": None, "age": 10.0}, True)],
)  # fmt: skip
def test_the_lease_of_a_dead_run_ends(node: Any, lease: dict[str, Any], is_free: bool) -> None:
    """At once where its process was on this host, else after a time without a sign."""
    run = node("one")
    own = {
        "owner": "`grpo` of process 0",
        "id": "x",
        "host": lease["host"] or os.uname().nodename,
        "process": 2**22 + 1,
    }
    MEMORY.pipe("/runs/a/lease.json", json.dumps(own | {"time": time.time() - lease["age"]}).encode())
    if is_free:
        with mirrored(run, "grpo"):
            assert json.loads(MEMORY.cat("/runs/a/lease.json"))["id"] != "x"
    else:
        message = r"its last sign is 1\d s old; if it is dead, try again in 1\d\d s"
        with pytest.raises(RunFolderError, match=message), mirrored(run, "grpo"):
            raise AssertionError("it was let in")


def test_a_run_that_was_taken_over_copies_nothing_more(node: Any) -> None:
    run = node("one")
    with pytest.raises(RunFolderError, match="in use by another"), mirrored(run, "grpo"):
        commit(run, 1)
        MEMORY.pipe("/runs/a/lease.json", json.dumps({"id": "y", "owner": "another"}).encode())
        commit(run, 2)
    assert not any("step-2" in name for name in stores.listed(URL))


def test_a_commit_that_misses_a_file_is_named(node: Any) -> None:
    first, second = node("one"), node("two")
    with mirrored(first, "grpo"):
        commit(first, 1)
    MEMORY.pipe("/runs/a/state/grpo/step-1/weights", b"half")
    with pytest.raises(
        RunFolderError, match="commit 2 has state/grpo/step-1/weights with 12 bytes, and it has 4; bring"
    ):
        bring(second, "grpo")
    MEMORY.rm("/runs/a/state/grpo/step-1/weights")
    with pytest.raises(RunFolderError, match=r"is not whole: .* it is not there"):
        bring(second, "grpo")
    MEMORY.rm("/runs/a", recursive=True)
    with pytest.raises(RunFolderError, match=f"holds no run any more, but its copy {first} does: remove that folder"):
        bring(first, "grpo")


def test_what_a_rank_on_another_node_has_sent_belongs_to_the_state(node: Any) -> None:
    driver, rank, third = node("one"), node("two"), node("three")
    with mirrored(driver, "grpo"):
        part = rank / "state/grpo/.part-step-1"
        (part / "learner").mkdir(parents=True)
        (part / "learner/optimiser").write_text("moments")
        storage.sent_as(part, rank / "state/grpo/step-1")
        commit(driver, 1)
    bring(third, "grpo")
    assert (third / "state/grpo/step-1/learner/optimiser").read_text() == "moments"
    assert (third / "state/grpo/step-1/weights").read_text() == "weights of 1"


def test_a_rank_on_another_disk_commits_and_the_driver_after_it(node: Any) -> None:
    """As Stage 1 does, where rank 0 saves the states; older ones go from the URL too."""
    driver, rank, third = node("one"), node("two"), node("three")
    with mirrored(driver, "sft"):
        for step in (1, 2, 3):
            part = rank / f"state/sft/.part-step-{step}"
            part.mkdir(parents=True)
            (part / "optimiser").write_text("moments")
            storage.sent_as(part, rank / f"state/sft/step-{step}")
            part.rename(rank / f"state/sft/step-{step}")
            shutil.rmtree(rank / f"state/sft/step-{step - 2}", ignore_errors=True)
            push(rank)
        (driver / "config.yaml").write_text("{}")
    bring(third, "sft")
    assert set(files(third)) == {"config.yaml", "state/sft/step-2/optimiser", "state/sft/step-3/optimiser"}
    assert not [name for name in stores.listed(URL) if "step-1" in name]


def test_what_a_failed_stage_has_left_is_copied_too(node: Any) -> None:
    run = node("one")
    with pytest.raises(ZeroDivisionError), mirrored(run, "grpo"):
        (run / "post-mortem").write_text("why")
        raise ZeroDivisionError
    assert MEMORY.cat("/runs/a/post-mortem") == b"why"


def test_of_a_large_log_only_what_is_new_is_sent(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "APPEND_BYTES", 4)
    run, whole = node("one"), []
    put = type(MEMORY).put_file
    monkeypatch.setattr(
        type(MEMORY), "put_file", lambda self, path, name, **o: [whole.append(name), put(self, path, name, **o)]
    )
    with mirrored(run, "grpo"):
        for text in ("0123456", "789", "ab"):
            with (run / "scalars.jsonl").open("a") as file:
                file.write(text)
            push(run)
        assert MEMORY.cat("/runs/a/scalars.jsonl") == b"0123456789ab"
        assert whole.count("/runs/a/scalars.jsonl") == 1
        (run / "new").write_text("anew, and longer than it was")
        (run / "new").replace(run / "scalars.jsonl")
        push(run)
    assert MEMORY.cat("/runs/a/scalars.jsonl") == b"anew, and longer than it was"


def test_a_folder_without_a_url_is_left_alone(tmp_path: Path) -> None:
    with mirrored(tmp_path, "grpo"):
        push(tmp_path)
        bring(tmp_path, "grpo")
    assert list(tmp_path.iterdir()) == []
