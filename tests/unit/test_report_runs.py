"""What `vsr1 report` reads of a run folder, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.report import write_synthetic_run
from pipelines.cli import app
from pipelines.evaluation.report import ReportError, read_run, write_run_report
from vsr1.config import Config, dump_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.report.rows import TRAINING
from vsr1.runs.trajectories import TrajectoryLogError, append_trajectories, read_log, write_trajectories
from vsr1.video.clips import ClipFolder, write_clip, write_meta
from vsr1.video.decode import SampledVideo


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of sixteen trajectories and the dataset that it saw, named in its configuration."""
    folder = tmp_path / "runs" / "one"
    videos = write_synthetic_run(folder, 16)
    clips = DatasetFolder(tmp_path / "data").clips("test")
    frames, times = np.zeros((2, 8, 8, 3), np.uint8), np.arange(2.0)
    sampled = SampledVideo(frames, times, [0, 1], 2, 2.0, 1.0, [0, 1], False, 2)
    source = Path("v.mp4")
    write_meta(
        clips,
        [write_clip(clips, v, sampled, source=source.with_stem(v), target_fps=1.0, max_frames=2) for v in videos],
    )
    config = Config.model_validate({"seed": 4, "data": {"root": str(tmp_path / "data")}})
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def test_a_run_folder_is_read_whole(run: Path) -> None:
    found = read_run(run, "one")
    assert list(found.evaluations) == ["before", "after"]
    assert [row["source"] for row in found.rows] == ["before"] * 4 + ["after"] * 4 + [TRAINING] * 8
    assert [row["step"] for row in found.rows[8:]] == [1] * 4 + [2] * 4
    assert found.settings is not None and found.settings["seed"] == 4
    assert {row["name"] for row in found.scalars} == {"reward/mean", "loss", "entropy"}


def test_the_page_goes_into_the_run_or_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert write_run_report([run]) == run / "report.html"
    assert '<template id="film-15"' in (run / "report.html").read_text()
    other = tmp_path / "deep" / "page.html"
    assert write_run_report([run], other, with_frames=False) == other
    assert 'id="film-0"' not in other.read_text()


def test_runs_of_one_name_are_told_apart_by_their_folders(run: Path, tmp_path: Path) -> None:
    twin = tmp_path / "other" / "one"
    write_synthetic_run(twin, 4)
    page = write_run_report([run, twin], tmp_path / "both.html", with_frames=False).read_text()
    assert "<title>runs one and other one</title>" in page
    with pytest.raises(ReportError, match="given twice"):
        write_run_report([run, run])


@pytest.mark.parametrize(
    ("name", "source"),
    [("scalars.jsonl", None), ("train_trajectories.jsonl", TRAINING), ("before.trajectories.jsonl", "before")],
)
def test_a_run_that_was_killed_at_any_byte_has_a_page(run: Path, tmp_path: Path, name: str, source: str | None) -> None:
    whole = (run / name).read_bytes()
    for cut in sorted({*range(0, len(whole), len(whole) // 6), whole.index(b"\n"), whole.index(b"\n") + 1}):
        (run / name).write_bytes(whole[:cut])
        found, lines = read_run(run, "one", with_frames=False), whole[:cut].count(b"\n")
        assert (len(found.scalars) if source is None else sum(row["source"] == source for row in found.rows)) == lines
        assert write_run_report([run], tmp_path / "page.html", with_frames=False).is_file()


def test_a_line_that_is_no_trajectory_is_named(run: Path) -> None:
    (run / "train_trajectories.jsonl").write_text('{"step": 3}\n')
    with pytest.raises(TrajectoryLogError, match=r"train_trajectories.jsonl:1: not a trajectory"):
        read_run(run, "one")


def test_an_evaluation_that_did_not_end_has_trajectories_and_no_figures(run: Path) -> None:
    (run / ".0a1b.part-after.trajectories.jsonl").write_text("{")  # of a file that a kill kept from its place
    (run / "before.json").unlink()
    found = read_run(run, "one", with_frames=False)
    assert (list(found.evaluations), found.unfinished) == (["after"], ["before"])
    assert sum(row["source"] == "before" for row in found.rows) == 4
    assert "before did not end" in write_run_report([run], with_frames=False).read_text()


@pytest.mark.parametrize("fingerprint", ["", "another"])
def test_a_summary_of_an_earlier_evaluation_is_not_taken_for_that_of_newer_trajectories(
    run: Path, fingerprint: str
) -> None:
    """An evaluation that began anew with other settings, or goes on with more queries, and was killed."""
    log = run / "after.trajectories.jsonl"
    if fingerprint:
        write_trajectories(log, [replace(logged, fingerprint=fingerprint) for logged in read_log(log)][:2])
    else:
        append_trajectories(log, list(read_log(log))[:1])
    found = read_run(run, "one", with_frames=False)
    assert (list(found.evaluations), found.unfinished) == (["before"], ["after"])


def test_a_stage_that_was_killed_before_its_first_step_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(Config(seed=3)))
    (tmp_path / "eval.trajectories.jsonl").touch()
    assert "eval did not end" in write_run_report([tmp_path]).read_text()


def test_clips_that_the_run_did_not_see_are_refused(run: Path) -> None:
    log = run / "before.trajectories.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    clip = ClipFolder(DatasetFolder(run.parents[1] / "data").clips("test")).read(
        rows[0]["turns"][0]["record"]["video_id"]
    )
    for content_hash, fails in ((clip.content_hash, False), ("0" * 64, True)):
        rows[0]["turns"][0]["clips"][0][1] = content_hash
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if fails:
            with pytest.raises(ReportError, match="is not the one that"):
                write_run_report([run])
        else:
            write_run_report([run])


def test_what_cannot_be_shown_is_an_error_with_a_fix(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="does not exist"):
        write_run_report([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="give the run_dir of a stage"):
        write_run_report([tmp_path / "empty"])
    (run / "config.yaml").unlink()
    with pytest.raises(ReportError, match="say --data FOLDER or --no-frames"):
        write_run_report([run])
    assert write_run_report([run], data=tmp_path / "data").is_file()
    (tmp_path / "wrong").mkdir()
    with pytest.raises(ReportError, match="has no clip of video"):
        write_run_report([run], data=tmp_path / "wrong")
    for text in ("{}", '{"N": 3}', '{"N": '):
        (run / "before.json").write_text(text)
        with pytest.raises(ReportError, match=r"before\.json is not a summary of this version, evaluate again"):
            write_run_report([run], with_frames=False)


def test_the_command_says_where_the_page_is_or_what_is_wrong(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(page), "--no-frames"])
    assert done.exit_code == 0 and f"report: {page}" in done.output and page.is_file()
    failed = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert failed.exit_code == 1 and "does not exist" in failed.output and "Traceback" not in failed.output
