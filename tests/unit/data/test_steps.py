"""Which steps of a build run again, what a full disk leaves, and that folders of older versions count as built."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.build import BuildError
from pipelines.data.steps import open_journal, read_journal
from vsr1.config import Config
from vsr1.formats import atomic
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder

from .builds import Here, build, built_steps, stand_in

TRAIN = 6  # videos of `corpus`


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a dataset, the records of the build and its list of failures aside."""
    names = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(".vsr1")}


RECORDS = {"train.grpo_records", "train.sft_records"}
FROM_QUERIES = RECORDS | {"train.recall", "train.top1_pool", "train.hard_negatives", "train.reasoning"}
FROM_VIDEOS = FROM_QUERIES | {"all.embedding", "train.video_embedding", "train.index"}
TEST_FROM_VIDEOS = {"test.video_embedding", "test.index", "test.recall"}
EVERY_VIDEO = FROM_VIDEOS | TEST_FROM_VIDEOS
QUERIES = {"train.query_embedding", "test.query_embedding"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decode_workers": 1, "embed_workers": 2}, set()),
        ({"grpo_negatives": 2}, {"train.grpo_records"}),
        ({"hard_negatives": 2}, {"train.hard_negatives"}),
        ({"embed_batch": 3}, {"all.embedding", "train.video_embedding", "test.video_embedding"} | QUERIES),
        ({"timestamps": "legacy_index"}, EVERY_VIDEO),
        ({"max_frames": 8}, EVERY_VIDEO | {"train.clips", "test.clips"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_option_rebuilds_what_depends_on_it(
    copy: DatasetFolder, options: dict[str, Any], expected: set[str]
) -> None:
    assert built_steps(build(copy.root, **options)) == expected


def change_query(folder: DatasetFolder) -> None:
    rows = read_lines(folder.annotations("train"))
    rows[2]["fig_desc"] = "another text"
    atomic.write_lines(folder.annotations("train"), rows)


def replace_video(folder: DatasetFolder) -> None:
    raw = folder.raw_videos("train")
    shutil.copyfile(raw / "train_0002.mp4", raw / "train_0001.mp4")


def damage_index(folder: DatasetFolder) -> None:
    folder.index("test").write_bytes(folder.index("test").read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("change", "expected", "decoded"),
    [
        (lambda folder: os.utime(folder.raw_videos("train") / "train_0001.mp4"), {"train.clips"}, 0),
        (replace_video, FROM_VIDEOS | {"train.clips"}, 1),
        (lambda folder: (folder.clips("train") / "train_0001.npy").unlink(), {"train.clips"}, 1),
        (change_query, FROM_QUERIES | {"all.embedding", "train.query_embedding"}, 0),
        (damage_index, {"test.index"}, 0),
        (lambda folder: folder.sft_records().unlink(), {"train.sft_records"}, 0),
    ],
    ids=["touched", "replaced", "lost clip", "query", "damaged index", "lost records"],
)
def test_a_changed_file_rebuilds_what_depends_on_it(
    copy: DatasetFolder, change: Callable[[DatasetFolder], Any], expected: set[str], decoded: int
) -> None:
    parts = copy.root / ".vsr1" / "build" / "parts" / "train.video"
    before = {path.name for path in parts.iterdir()}
    change(copy)
    report = build(copy.root)
    assert built_steps(report) == expected
    assert report.splits[0].decoded == decoded
    replaced = len(before - {path.name for path in parts.iterdir()})
    assert replaced == (1 if change is replace_video else 0)
    assert len(list(parts.iterdir())) == len(before)
    assert built_steps(build(copy.root)) == set()


def test_prompts_and_checkpoints_count_by_content(copy: DatasetFolder, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Judge the video.")
    agent = {"agent": {"system_prompt": prompt}}
    assert built_steps(build(copy.root, agent)) == RECORDS
    embedder = Path(shutil.copytree(Config().model.embedder, tmp_path / "embedder"))
    elsewhere = agent | {"model": {"embedder": embedder}}
    assert built_steps(build(copy.root, elsewhere)) == set()
    with (embedder / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    assert built_steps(build(copy.root, elsewhere)) == EVERY_VIDEO | QUERIES


def test_rows_of_a_removed_annotation_vanish(copy: DatasetFolder) -> None:
    rows = read_lines(copy.annotations("train"))
    atomic.write_lines(copy.annotations("train"), rows[:-1])
    gone = rows[-1]["video"]
    build(copy.root)
    assert not (copy.clips("train") / f"{gone}.npy").exists()
    assert len(read_lines(copy.clips("train") / "meta.jsonl")) == TRAIN - 1
    assert len(np.load(copy.video_embeddings("train"))) == len(np.load(copy.query_embeddings("train"))) == TRAIN - 1
    made = [copy.root / "train", copy.root / "sft_data", copy.root / "grpo_data"]
    named = [path for folder in made for path in folder.rglob("*.json*") if gone in path.read_text(encoding="utf-8")]
    assert not named


def test_a_full_disk_leaves_the_old_files_and_says_so(copy: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before, move = contents(copy.root), os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target) == copy.grpo_records():
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        move(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(BuildError, match=r"'grpo_records' of split 'train'.*No space left.*GiB are free.*goes on"):
        build(copy.root, grpo_negatives=2)
    assert contents(copy.root) == before
    monkeypatch.undo()
    assert built_steps(build(copy.root, grpo_negatives=2)) == {"train.grpo_records"}


def test_two_builds_do_not_share_a_folder(copy: DatasetFolder) -> None:
    with pytest.raises(BuildError, match=r"another build of .* is running"):
        build(copy.root, grpo_negatives=3, progress=lambda line: build(copy.root))


def test_weights_that_change_during_a_build_write_no_vectors(fresh: DatasetFolder) -> None:
    class Newer(stand_in()):  # type: ignore[misc]
        @classmethod
        def load(cls, folder: Path, *, device: str, dtype: str) -> Any:
            loaded = super().load(folder, device=device, dtype=dtype)
            loaded.fingerprint = "of other weights"
            return loaded

    with pytest.raises(BuildError, match=r"the weights in .* changed during the build; start it again"):
        build(fresh.root, splits=["test"], embedder=Newer)
    assert not list((fresh.build_state / "parts").rglob("*.npy"))


def test_vectors_that_are_not_unit_vectors_are_refused(fresh: DatasetFolder) -> None:
    class Long(stand_in()):  # type: ignore[misc]
        def embed_clips(self, clips: list[Any]) -> np.ndarray:
            return 2 * np.stack([self._vector(clip.content_hash) for clip in clips])

    with pytest.raises(BuildError, match="vector of video 'test_0000' has length 2"):
        build(fresh.root, splits=["test"], embedder=Long)


def test_a_build_that_stopped_goes_on_where_it_was(fresh: DatasetFolder, built: Path) -> None:
    class Tired(Here):
        """Decodes and embeds no more than a job each."""

        def each(self, jobs: list[str], work: Callable[[str], str]) -> Any:
            yield next(super().each(jobs, work))
            raise OSError(errno.ENOSPC, "No space left on device")

        def read_and_embed(self, jobs: list[dict[str, Any]], reader: Any, embedder: Any) -> Any:
            yield next(super().read_and_embed(jobs, reader, embedder))
            raise OSError(errno.ENOSPC, "No space left on device")

    for split, left in (("train", TRAIN - 1), ("test", 3)):
        with pytest.raises(BuildError, match=rf"'clips' of split '{split}' stopped: .*No space left"):
            build(fresh.root, splits=[split], workers=Tired())
        workers = Here()
        workers.read_and_embed = Tired().read_and_embed  # type: ignore[method-assign]
        with pytest.raises(BuildError, match=r"'embedding' of split 'all' stopped: .*No space left"):
            build(fresh.root, splits=[split], workers=workers)
        assert workers.decoded == left
    batches = sum(1 for _ in (built / ".vsr1" / "build" / "parts").rglob("*.npy"))
    workers = Here()
    build(fresh.root, workers=workers)
    assert (workers.decoded, workers.embedded) == (0, batches - 2)
    names = [name for name in contents(built) if "video_npy_with_meta" not in name]
    assert {name: contents(fresh.root)[name] for name in names} == {name: contents(built)[name] for name in names}


def test_a_folder_of_an_older_version_is_recognised_as_built(copy: DatasetFolder) -> None:
    """It has a record of its clips, and keeps the vectors of its index once more, under their version."""
    index = copy.index("test").parent
    (copy.build_state / "test.clips.json").write_text("{}")
    record = copy.build_state / "test.index.json"
    content = json.loads(record.read_text())
    for name in ("current.json", "index-0123456789abcdef.faiss"):
        (index / name).write_text("{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    content["outputs"]["test/index/index-0123456789abcdef.faiss"] = digest
    record.write_text(json.dumps(content))
    assert built_steps(build(copy.root)) == set()
    (index / "index.faiss").unlink()
    assert built_steps(build(copy.root)) == {"test.index"}
    assert sorted(path.name for path in index.iterdir()) == ["id_map.json", "index.faiss"]


def test_a_journal_keeps_whole_rows(tmp_path: Path) -> None:
    journal = tmp_path / "new" / "rows.jsonl"
    assert read_journal(journal, "id") == {}
    with open_journal(journal) as add:
        add({"id": "ä", "n": 1})
        add({"id": "b", "n": 1})
        assert read_journal(journal, "id")["ä"] == {"id": "ä", "n": 1}
    journal.write_bytes(journal.read_bytes() + b'{"id": "c", "n"')
    assert list(read_journal(journal, "id")) == ["ä", "b"]
    with open_journal(journal) as add:
        add({"id": "b", "n": 2})
    assert read_journal(journal, "id") == {"ä": {"id": "ä", "n": 1}, "b": {"id": "b", "n": 2}}
    journal.write_text('{"id": "a"}\nno row\n')
    with pytest.raises(BuildError, match=r"rows\.jsonl line 2 is not a row of the journal .* remove that line"):
        read_journal(journal, "id")
