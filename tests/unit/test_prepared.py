"""A downloaded dataset in the published layout: unpacked whole, resumed, refused when unsound, and then readable."""

import fcntl
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from pipelines.data.check_folder import IncompleteError, check_folder
from pipelines.serve.library.library import _first_queries
from vsr1.formats import prepared
from vsr1.formats.annotations import read_annotations
from vsr1.formats.archives import MARKERS, Piece, Shard, ShardError, members, unpack
from vsr1.formats.atomic import write_json, write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.prepared import PreparedError, unpack_dataset
from vsr1.retrieval.corpus import load_corpus
from vsr1.video.clips import ClipFolder, write_clip, write_meta
from vsr1.video.decode import SampledVideo

SPLITS = ["train", "test"]
IDS = ["v_b", "v_a", "v_c"]  # rows of the vectors: published ones are not sorted
ELSEWHERE = "/elsewhere/video_npy_with_meta"


def quiet(text: str) -> None:
    pass


def write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def make_dataset(root: Path) -> DatasetFolder:
    """The files of data-eval.md §1 that a release has, and no others."""
    folder = DatasetFolder(root)
    rng = np.random.default_rng(0)
    for number, split in enumerate(SPLITS):
        vectors = rng.normal(size=(3, 8)).astype(np.float32)
        rows = [
            {"video": name, "time": [0.5, 2], "desc_id": 10 * number + i, "duration": 4.0, "cog_desc": "c",
             "fig_desc": f"query {i}", "fig_desc_score": 1.0}
            for i, name in enumerate(IDS)
        ]  # fmt: skip
        write_lines(folder.annotations(split), rows)
        metas = []
        for name in IDS:
            frames = rng.integers(0, 256, (4, 40, 30, 3), np.uint8)
            times, indices = np.arange(4.0), [0, 1, 2, 3]
            sampled = SampledVideo(frames, times, indices, 4, 4.0, 1.0, indices, False, 4)
            meta = write_clip(
                folder.clips(split), name, sampled, source=Path(f"/raw/{name}.mp4"), target_fps=1.0, max_frames=64
            )
            metas.append(meta | {"output_npy_path": f"{ELSEWHERE}/{name}.npy"})
        write_meta(folder.clips(split), metas)
        write_array(folder.video_embeddings(split), vectors)
        write_json(folder.docid2row(split), {name: row for row, name in enumerate(IDS)})
        write_array(folder.query_embeddings(split), vectors)
        write_lines(folder.query_meta(split), [{"qid": f"{row['desc_id']}_fig"} for row in rows])
        index = faiss.IndexFlatIP(8)
        index.add(vectors)
        folder.index(split).parent.mkdir(parents=True)
        faiss.write_index(index, str(folder.index(split)))
        write_json(folder.id_map(split), IDS)
    write_json(folder.hard_negatives(), {})
    write_json(folder.sft_records(), [{"qid": "q"}])
    write_lines(folder.grpo_records(), [{"problem_id": 0}])
    return folder


def pack(root: Path, source: Path, parts: int = 3) -> dict[str, Any]:
    """Train and the rest in one tar each; the first is cut into parts, as the release cuts large ones."""
    (source / "shards").mkdir(parents=True)
    tops = {"train.tar": ["train"], "rest.tar": ["raw_annotation", "test", "sft_data", "grpo_data"]}
    for name, folders in tops.items():
        with tarfile.open(source / "shards" / name, "w") as tar:
            for top in folders:
                tar.add(root / top, f"./{top}" if name == "rest.tar" else top)
    whole = (source / "shards/train.tar").read_bytes()
    (source / "shards/train.tar").unlink()
    step = len(whole) // parts + 1
    names = [f"parts/train.tar.{number:03d}" for number in range(parts)]
    (source / "parts").mkdir()
    for number, name in enumerate(names):
        (source / name).write_bytes(whole[number * step : (number + 1) * step])
    manifest = {"version": 1, "shards": [{"name": "train.tar", "parts": names}, {"name": "rest.tar"}]}
    write_json(source / "manifest.json", manifest)
    return manifest


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    base = tmp_path_factory.mktemp("release")
    folder = make_dataset(base / "original")
    return SimpleNamespace(root=folder.root, source=base / "download", manifest=pack(folder.root, base / "download"))


@pytest.fixture
def source(release: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release.source, tmp_path / "download"))


def contents(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file() and MARKERS not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_a_release_is_unpacked_as_it_is_and_every_reader_takes_it(
    release: SimpleNamespace, source: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    unpack_dataset(source, tmp_path / "out", 2, lines.append)
    check_folder(DatasetFolder(tmp_path / "out"), SPLITS, lines.append)
    assert contents(tmp_path / "out") == contents(release.root)
    assert lines[-3:] == [
        *(
            f"{split}: 3 queries, 3 clips, vectors of 3 videos (3 docids, 3 in the index) and 3 queries: complete"
            for split in SPLITS
        ),
        "train: serves Stage 1 (1 record) and Stage 2 (1 record)",
    ]
    folder = DatasetFolder(tmp_path / "out")
    for split in SPLITS:
        clips = ClipFolder(folder.clips(split))
        catalogue, vectors = load_corpus(folder.video_embeddings(split), folder.docid2row(split))
        assert catalogue.video_ids == clips.video_ids() == sorted(IDS)
        assert vectors.shape == (3, 8)
        assert all(len(clips.read(video_id).frames) == 4 for video_id in clips.video_ids())
        assert len(read_annotations(folder.annotations(split))) == 3
    assert not list((tmp_path / "out" / MARKERS).rglob("*.unpacking"))


@pytest.mark.parametrize("form", ["list", "csv"])
def test_annotations_of_every_form_are_counted_and_offered(source: Path, tmp_path: Path, form: str) -> None:
    unpack_dataset(source, tmp_path / "out", 2, quiet)
    path = DatasetFolder(tmp_path / "out").annotations(SPLITS[0])
    rows = [row.model_dump() for row in read_annotations(path)]
    lines = [f'{row["video"]},{row["time"][0]},{row["time"][1]},{row["duration"]},"{row["fig_desc"]}"' for row in rows]
    csv = "\n".join(["video,start,end,duration,fig_desc", *lines])
    path.write_text(json.dumps(rows) if form == "list" else csv, "utf-16")
    told: list[str] = []
    check_folder(DatasetFolder(tmp_path / "out"), SPLITS, told.append)
    assert told[0].startswith(f"{SPLITS[0]}: 3 queries, 3 clips")
    assert _first_queries(path) == [row["fig_desc"] for row in rows]


def test_what_is_in_place_is_kept_and_what_was_lost_comes_back(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack_dataset(source, out, 2, quiet)
    before = contents(out)
    assert sorted(unpack_dataset(source, out, 2, quiet).kept) == ["rest.tar", "train.tar"]
    clip = out / "train/video_npy_with_meta/v_a.npy"
    clip.write_bytes(clip.read_bytes()[:100])
    (out / MARKERS / "train.tar.unpacking").mkdir()
    (out / MARKERS / "train.tar.unpacking/half").write_bytes(b"half")
    again = unpack_dataset(source, out, 2, quiet)
    assert (again.kept, again.unpacked) == (["rest.tar"], ["train.tar"])
    assert contents(out) == before


def test_a_marker_of_the_published_tool_counts_only_with_its_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack_dataset(source, out, 2, quiet)
    for name in ("train.tar", "rest.tar"):
        (out / MARKERS / f"{name}.done").write_bytes(b"")
    (out / "test/index/index.faiss").unlink()
    first = unpack_dataset(source, out, 2, quiet)
    assert (first.kept, first.unpacked) == (["train.tar"], ["rest.tar"])
    (out / MARKERS / "train.tar.done").write_bytes(b"")
    shutil.rmtree(source / "parts")
    assert unpack_dataset(source, out, 2, quiet).trusted == ["train.tar"]
    (out / MARKERS / "train.tar.done").unlink()
    with pytest.raises(PreparedError, match=r"1 of 2 shards cannot be unpacked[\s\S]*train.tar: .*000 does not exist"):
        unpack_dataset(source, out, 2, quiet)


def test_every_unsound_shard_is_named_and_the_others_are_unpacked(source: Path, tmp_path: Path) -> None:
    (source / "parts/train.tar.001").unlink()
    with pytest.raises(PreparedError, match=r"1 of 2 shards[\s\S]*train\.tar: .*train\.tar\.001 does not exist"):
        unpack_dataset(source, tmp_path / "out", 2, quiet)
    assert (tmp_path / "out/test/index/index.faiss").is_file()
    assert not (tmp_path / "out" / MARKERS / "train.tar.done").exists()


def stated(source: Path, **changes: Any) -> None:
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["shards"][1] |= changes
    write_json(source / "manifest.json", manifest)


def test_sizes_and_hashes_of_the_manifest_are_checked(source: Path, tmp_path: Path) -> None:
    content = (source / "shards/rest.tar").read_bytes()
    stated(source, size=len(content) + 1)
    with pytest.raises(PreparedError, match=rf"rest.tar has {len(content)} bytes, the manifest says"):
        unpack_dataset(source, tmp_path / "a", 1, quiet)
    stated(source, size=len(content), sha256="0" * 64)
    with pytest.raises(PreparedError, match=r"sha256 of rest\.tar is"):
        unpack_dataset(source, tmp_path / "b", 1, quiet)
    assert not (tmp_path / "b/test").exists()
    stated(source, sha256=hashlib.sha256(content).hexdigest())
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["shards"][0]["parts"] = [
        {"path": part, "size": (source / part).stat().st_size,
         "sha256": hashlib.sha256((source / part).read_bytes()).hexdigest()}
        for part in manifest["shards"][0]["parts"]
    ]  # fmt: skip
    write_json(source / "manifest.json", manifest)
    assert len(unpack_dataset(source, tmp_path / "c", 1, quiet).unpacked) == 2


def one_tar(path: Path, *entries: tarfile.TarInfo) -> Shard:
    with tarfile.open(path, "w") as tar:
        for entry in (entry_of("test/good.bin"), *entries):
            tar.addfile(entry, io.BytesIO(bytes(entry.size)) if entry.isreg() else None)
    return Shard("bad.tar", (Piece(path),))


def entry_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    entry.size = 3000 if kind == tarfile.REGTYPE else 0
    return entry


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (entry_of("../outside"), "outside the dataset folder"),
        (entry_of("test/../../outside"), "outside the dataset folder"),
        (entry_of("/etc/outside"), "outside the dataset folder"),
        (entry_of("test/link", tarfile.SYMTYPE, "/etc"), "is a link or a device"),
        (entry_of("test/link", tarfile.LNKTYPE, "test/good.bin"), "is a link or a device"),
        (entry_of("test/device", tarfile.CHRTYPE), "is a link or a device"),
        (entry_of("test/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (entry_of(f"{MARKERS}/other.tar.done"), "replace a marker"),
    ],
)
def test_a_member_that_could_do_harm_is_refused_before_anything_is_written(
    tmp_path: Path, entry: tarfile.TarInfo, reason: str
) -> None:
    shard = one_tar(tmp_path / "bad.tar", entry)
    with pytest.raises(ShardError, match=rf"shard bad.tar: member .*{reason}"):
        unpack(shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:512],  # a header without its data
        lambda whole: whole[:2000],  # within the first file
        lambda whole: whole[:3584],  # after the first file: tar itself takes this for a whole archive
        lambda whole: whole[:4000],  # within the second header
        lambda whole: whole[:3584] + b"\xff" * 512 + whole[4096:],  # a damaged header: tar would stop there in silence
        lambda whole: b"",
        lambda whole: b"no tar at all\n" * 300,
    ],
)
def test_an_archive_that_is_not_whole_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    shard = one_tar(tmp_path / "bad.tar", entry_of("test/second.bin"))
    assert members(shard) == {"test/good.bin": 3000, "test/second.bin": 3000}
    shard.pieces[0].path.write_bytes(damage(shard.pieces[0].path.read_bytes()))
    with pytest.raises(ShardError, match=r"^shard bad\.tar: .*; fetch it again$"):
        unpack(shard, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pieces_may_be_cut_anywhere(tmp_path: Path) -> None:
    whole = one_tar(tmp_path / "whole.tar", entry_of("test/second.bin")).pieces[0].path.read_bytes()
    cuts = [0, 1, 512, 513, 3000, 3000, len(whole)]
    for number, (begin, end) in enumerate(pairwise(cuts)):
        (tmp_path / str(number)).write_bytes(whole[begin:end])
    pieces = tuple(Piece(tmp_path / str(number)) for number in range(len(cuts) - 1))
    assert unpack(Shard("a.tar", pieces), tmp_path / "out") == {"test/good.bin": 3000, "test/second.bin": 3000}


def test_a_full_disk_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(PreparedError, match=r"0\.0 GiB are needed and 0\.0 GiB are free"):
        unpack_dataset(source, tmp_path / "out", 2, quiet)
    assert contents(tmp_path / "out") == {}


def test_a_shard_that_another_process_unpacks_is_left_to_it(source: Path, tmp_path: Path) -> None:
    lock = tmp_path / "out" / MARKERS / "train.tar.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(PreparedError, match=r"1 of 2 shards[\s\S]*train\.tar: another process is unpacking it"):
            unpack_dataset(source, tmp_path / "out", 1, quiet)
    assert unpack_dataset(source, tmp_path / "out", 1, quiet).unpacked == ["train.tar"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "does not exist"),
        ("{", "Invalid JSON"),
        ("{}", "shards: Field required"),
        ('{"shards": []}', "at least 1 item"),
        ('{"shards": [{"name": "../a.tar"}]}', "not a path below"),
        ('{"shards": [{"name": "a", "parts": ["/etc/passwd"]}]}', "not a path below"),
        ('{"shards": [{"name": "a"}, {"name": "a"}]}', "more than once"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, manifest: str | None, reason: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(PreparedError, match=rf"manifest\.json.*{reason}"):
        unpack_dataset(tmp_path, tmp_path / "out", 1, quiet)


FAULTS: list[tuple[Callable[[DatasetFolder], Any], str]] = [
    (lambda f: f.annotations("test").unlink(), r"test: raw_annotation/test\.jsonl does not exist"),
    (lambda f: (f.clips("test") / "v_a.npy").unlink(), r"1 of 3 clips are not usable \(v_a: no file\)"),
    (lambda f: (f.clips("test") / "v_a.npy").write_bytes(b"x" * 99), r"v_a: not a whole array"),
    (lambda f: np.save(f.clips("test") / "v_a.npy", np.zeros((2, 4, 4, 3), np.uint8)), "v_a: 2 frames"),
    (lambda f: (f.clips("test") / "v_z.npy").write_bytes(b""), r"1 clip files have no row in meta\.jsonl: v_z"),
    (lambda f: shutil.rmtree(f.clips("test")), r"test: clip folder .* has no meta\.jsonl"),
    (lambda f: write_array(f.video_embeddings("test"), np.zeros((2, 8))), "2 video vectors, 3 docids, 3 in the index"),
    (lambda f: f.video_embeddings("test").write_bytes(b"\x93NUMPY"), r"segment_embeds\.npy cannot be read"),
    (lambda f: f.index("test").write_bytes(b"no index"), r"index\.faiss cannot be read"),
    (lambda f: write_json(f.id_map("test"), sorted(IDS)), "in another order"),
    (lambda f: write_json(f.docid2row("test"), {"v_x": 0, "v_a": 1, "v_c": 2}), "1 videos of the corpus have no clip"),
    (lambda f: write_lines(f.query_meta("test"), [{}]), "3 query vectors, but 1 rows"),
    (lambda f: (f.hard_negatives().unlink(), f.grpo_records().unlink()), r"train: train/hard_neg.*\.json does not"),
    (lambda f: (f.sft_records().write_text("["), f.grpo_records().unlink()), r"train: sft_data/.*json cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), FAULTS)
def test_a_folder_that_lacks_something_is_refused_with_its_name(
    release: SimpleNamespace, tmp_path: Path, change: Callable[[DatasetFolder], Any], reason: str
) -> None:
    folder = DatasetFolder(Path(shutil.copytree(release.root, tmp_path / "data")))
    check_folder(folder, SPLITS, quiet)
    change(folder)
    with pytest.raises(IncompleteError, match=reason):
        check_folder(folder, SPLITS, quiet)


def test_a_dataset_serves_the_stage_whose_records_it_has(release: SimpleNamespace, tmp_path: Path) -> None:
    lines: list[str] = []
    labels = DatasetFolder(Path(shutil.copytree(release.root, tmp_path / "labels")))
    labels.sft_records().unlink()
    check_folder(labels, SPLITS, lines.append)
    assert lines[-1] == "train: serves Stage 2 (1 record); sft_data/train_oneturn.json does not exist"
    write_json(labels.sft_records(), [])
    check_folder(labels, SPLITS, lines.append)
    assert lines[-1] == "train: serves Stage 2 (1 record); sft_data/train_oneturn.json has no records"
    replies = DatasetFolder(Path(shutil.copytree(release.root, tmp_path / "replies")))
    replies.grpo_records().unlink()
    check_folder(replies, SPLITS, lines.append)
    assert lines[-1].startswith("train: serves Stage 1 (1 record); grpo_data/")
    replies.sft_records().unlink()
    check_folder(replies, ["test"], lines.append)  # whoever does not train needs none
    with pytest.raises(IncompleteError, match=r"sft_data/.* does not exist\n.*grpo_data/.* does not exist"):
        check_folder(replies, SPLITS, lines.append)
    assert lines[-1].startswith("train: serves no stage of training; sft_data/")


def test_the_command_ends_with_an_error_when_something_is_missing(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "data", "unpack", str(source), "--out", str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).returncode == 0
    failed = subprocess.run([*command, "--split", "val"], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert "0 shards unpacked" in failed.stdout and "val: raw_annotation/val.jsonl does not exist" in failed.stderr
