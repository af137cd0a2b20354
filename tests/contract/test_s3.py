"""A dataset, checkpoints and a run folder in S3, as a local server speaks it: built, trained, killed, evaluated."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from moto.server import ThreadedMotoServer
from nodes_of_urls import place_on

from vsr1 import storage, stores
from vsr1.config import load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.retrieval.corpus import open_corpus
from vsr1.runs.mirror import bring, mirrored, push
from vsr1.storage import fetched, fetched_folder, is_there, sent, sent_folder
from vsr1.stores import StorageError, listed
from vsr1.video.clips import ClipFolder

REPOSITORY = Path(__file__).parents[2]
build_here = runpy.run_path(str(REPOSITORY / "tests/unit/data/builds.py"))["build"]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Yield the variables of a client of a server that has the bucket `films`."""
    import fsspec

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
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
    return partial(place_on, tmp_path)


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
    monkeypatch.setattr(stores, "WAITS_S", ())
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


def test_a_dataset_is_built_at_a_url_and_only_what_is_read_is_fetched(node: Any, corpus: Path) -> None:
    here, there = node("s3://films/data"), node("s3://films/data", "two")
    shutil.copytree(corpus, here)
    build_here(here)
    version = open_corpus(DatasetFolder(there), "test").catalogue.version
    clips = ClipFolder(DatasetFolder(there).clips("test"))
    name = clips.video_ids()[1]
    original = ClipFolder(DatasetFolder(here).clips("test")).read(name)
    assert clips.read(name).content_hash == original.content_hash
    assert {path.stem for path in there.rglob("*.npy")} == {name, "segment_embeds"}
    again = build_here(node("s3://films/data", "three"))
    assert {step.name for step in again.steps if step.status == "built"} == {"clips"}, "whose places are noted"
    assert [split.decoded for split in again.splits] == [0, 0], "a build goes on from the URL"
    newer = fetched_folder(node("s3://films/data", "four"))
    lines = (newer / "raw_annotation/test.jsonl").read_text().splitlines(keepends=True)
    (newer / "raw_annotation/test.jsonl").write_text("".join(lines[:-1]))
    (newer / "raw_videos/test" / f"{json.loads(lines[-1])['video']}.mp4").unlink()
    build_here(newer)
    assert open_corpus(DatasetFolder(there), "test").catalogue.version != version


SMALL = [
    "sft.max_steps=2", "sft.batch_size=8", "sft.learner.ranks=1", "sft.save_every=1",
    "grpo.steps=3", "grpo.state_every=1", "grpo.prompts_per_step=2", "grpo.group_size=3", "grpo.validate_every=null",
    "grpo.learner.ranks=1", "retrieval.shards=1", "eval.limit=1", "eval.split=val", "toy.create=false",
    "cluster.rollout.memory_gib=1", "cluster.learner.memory_gib=0.5",
]  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_a_run_in_a_bucket_is_killed_and_goes_on_from_another_disk(
    node: Any, toy_data: Path, tmp_path: Path, s3: dict[str, str]
) -> None:
    for name, source in {"toy": toy_data, "policy": REPOSITORY / "checkpoints/toy/policy"}.items():
        sent_folder(Path(shutil.copytree(source, node(f"s3://films/{name}", "upload"))))
    options = [*SMALL, "run_dir=s3://films/run", "data.root=s3://films/toy"]
    options += [f"model.embedder={REPOSITORY / 'checkpoints/toy/embedder'}"]

    def command(stage: str, disk: str, *more: str) -> list[str]:
        places = [*options, f"storage.cache={tmp_path / disk}", *more]
        return [sys.executable, "-m", "pipelines", stage, "-c", "configs/toy.yaml", *places]

    def run(stage: str, disk: str, *more: str) -> str:
        call = command(stage, disk, *more)
        outcome = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        return outcome.stdout

    run("sft", "first", "model.policy=s3://films/policy")
    policy = "model.policy=s3://films/run/checkpoints/sft"
    process = subprocess.Popen(command("grpo", "second", policy), cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 900
    while not any(name.startswith("state/grpo/") for name in committed()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for child in children:
        child.kill() if child.is_running() else None
    process.wait()
    run("grpo", "third", policy)
    place = node("s3://films/run", "third")
    [resumed] = [row for line in (place / "events.jsonl").open() if (row := json.loads(line))["kind"] == "resumed"]
    assert 1 <= resumed["step"] <= 3
    rows = [json.loads(line) for line in (place / "train_trajectories.jsonl").open()]
    assert sorted(row["step"] for row in rows) == [step for step in (1, 2, 3) for _ in range(6)], "each once"
    printed = run("eval", "fourth", "model.policy=s3://films/run/checkpoints/grpo", "run_dir=s3://films/judged")
    assert "eval.jsonl" in printed and "eval.jsonl" in listed("s3://films/judged")
    served = [sys.executable, "-m", "pipelines", "serve", "s3://films/run/checkpoints/grpo", "--dry-run"]
    served += ["-c", "configs/toy.yaml", "--corpus", "toy=s3://films/toy", f"storage.cache={tmp_path / 'fourth'}"]
    outcome = subprocess.run([*served, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr
    trained = load_config(None, ["run_dir=s3://films/run", f"storage.cache={tmp_path / 'fifth'}"]).run_dir
    with mirrored(trained, "grpo"):
        assert sorted(path.name for path in trained.glob("state/grpo/step-*")) == ["step-2", "step-3"]
        assert (trained / "config.sft.yaml").is_file() and any((trained / "tensorboard").iterdir())


def committed() -> list[str]:
    import fsspec

    system = fsspec.filesystem("s3", use_listings_cache=False)
    name = "films/run/commit.json"
    return list(json.loads(system.cat_file(name))["files"]) if system.exists(name) else []
