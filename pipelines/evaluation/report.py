"""`vsr1 report`: what run folders hold, read for the page.

A run folder has `scalars.jsonl`, evaluations as `<name>.json` beside `<name>.trajectories.jsonl`, GRPO's samples in
`train_trajectories.jsonl`, and `config.yaml`. Any of them may be missing, as a stage alone writes only its own; frames
come from the dataset that the configuration names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pydantic import ValidationError

from vsr1.formats.dataset import DatasetFolder
from vsr1.report import TRAINING, Run, row_of, write_report
from vsr1.report.page import Frames
from vsr1.report.rows import Row
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.scalars import read_scalars
from vsr1.runs.trajectories import read_log
from vsr1.video.clips import ClipFolder


class ReportError(ValueError):
    """A run folder that cannot be shown; the message names the file and the fix."""


def write_run_report(
    folders: Sequence[Path], out: Path | None = None, *, data: Path | None = None, with_frames: bool = True
) -> Path:
    """Write the page of the runs and return its path, by default `report.html` in the first folder.

    Args:
        data: dataset folder of every run, instead of the one that its configuration names.
        with_frames: show frames, which are read from the dataset.

    Raises:
        ReportError: a folder is not a run, or its dataset is not known or is not the one it saw.
    """
    paths = [Path(folder).resolve() for folder in folders]
    runs = [
        read_run(path, name, data=data, with_frames=with_frames)
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    target = out or paths[0] / "report.html"
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    try:
        write_report(target, title=title, runs=runs)
    except ValidationError as error:
        raise ReportError(f"a summary is not one of this version, evaluate again: {error}") from error
    return target


def read_run(folder: Path, name: str, *, data: Path | None = None, with_frames: bool = True) -> Run:
    """Everything the page shows of one run folder; films are read later, one at a time."""
    if not folder.is_dir():
        raise ReportError(f"run folder {folder} does not exist")
    settings = _settings(folder / "config.yaml")
    scalars = folder / "scalars.jsonl"
    evaluations, rows = {}, []
    for lines in sorted(folder.glob(f"*{EVALUATION_LOG}"), key=_place):
        label = lines.name.removesuffix(EVALUATION_LOG)
        summary = folder / f"{label}.json"
        if not summary.is_file():
            raise ReportError(f"{lines} has no {summary.name} beside it; evaluate again, or remove it")
        evaluations[label] = json.loads(summary.read_text(encoding="utf-8"))
        rows += _rows(lines, label)
    if (folder / TRAINING_LOG).is_file():
        rows += _rows(folder / TRAINING_LOG, TRAINING)
    if not rows and not scalars.is_file():
        raise ReportError(f"{folder} has neither scalars.jsonl nor trajectories; give the run_dir of a stage")
    return Run(
        name=name,
        settings=settings,
        scalars=read_scalars(scalars) if scalars.is_file() else [],
        evaluations=evaluations,
        rows=rows,
        frames=_frames(folder, settings, data) if with_frames and rows else None,
    )


def _rows(path: Path, source: str) -> list[Row]:
    return [row_of(logged.trajectory, source, logged.step, logged.credits) for logged in read_log(path)]


def _place(lines: Path) -> tuple[int, str]:
    """Evaluations made before a stage come first, those made after it last."""
    name = lines.name
    return (0 if name.startswith("before") else 2 if name.startswith("after") else 1), name.removesuffix(EVALUATION_LOG)


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as many parent folders as it takes to tell them apart.

    Raises:
        ReportError: a folder is given twice.
    """
    if len(set(paths)) < len(paths):
        raise ReportError(f"a run is given twice: {', '.join(str(path) for path in paths)}")
    depth = 1
    while True:
        names = [" ".join(path.parts[-depth:]) for path in paths]
        if max(Counter(names).values(), default=0) < 2:
            return names
        depth += 1


def _settings(path: Path) -> dict[str, Any] | None:
    """Read as it is, not checked against this version's schema: a run of another version can still be looked at."""
    if not path.is_file():
        return None
    tree = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(tree, dict):
        raise ReportError(f"{path} is not a configuration; restore it or remove it")
    return {str(key): value for key, value in tree.items()}


def _frames(folder: Path, settings: Mapping[str, Any] | None, data: Path | None) -> Frames:
    """Frames of the clips in a dataset folder, all splits of it."""
    section: Mapping[str, Any] = (settings or {}).get("data", {})
    root = data or section.get("root")
    if root is None:
        raise ReportError(f"{folder} has no config.yaml that names its dataset; say --data FOLDER or --no-frames")
    dataset = DatasetFolder(Path(root))
    clock = section.get("timestamps", "true_seconds")
    splits = sorted(path.name for path in dataset.root.glob("*") if dataset.clips(path.name).is_dir())
    folders = [ClipFolder(dataset.clips(split), clock) for split in splits]
    place = {video: clips for clips in reversed(folders) for video in clips.video_ids()}

    def frames(video: str, clip_hash: str) -> tuple[np.ndarray, np.ndarray]:
        if video not in place:
            raise ReportError(f"dataset {root} has no clip of video {video!r}; say --data FOLDER or --no-frames")
        clip = place[video].read(video)
        if clip_hash and clip.content_hash != clip_hash:
            raise ReportError(
                f"the clip of video {video!r} in {root} is not the one that {folder} was made with; "
                "say --data FOLDER with the old data, or --no-frames"
            )
        return clip.frames, clip.timestamps

    return frames
