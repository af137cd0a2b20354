"""`vsr1 report`: what run folders hold, read for the page.

A run folder has `scalars.jsonl`, evaluations as `<name>.json` beside `<name>.trajectories.jsonl`, GRPO's samples in
`train_trajectories.jsonl`, and `config.yaml`. Any of them may be missing, as a stage alone writes only its own, and as
one that was killed leaves; frames come from the dataset that the configuration names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.evaluation.films import KeptFilms
from vsr1.config import Config, config_values
from vsr1.environments.registry import ENVIRONMENTS
from vsr1.environments.spec import fingerprint_of
from vsr1.formats.dataset import DatasetFolder
from vsr1.metrics.summary import EvalSummary
from vsr1.navigate.calls import is_node_clip
from vsr1.navigate.summary import NavigateSummary
from vsr1.report.page import Frames, Run, Summary, write_report
from vsr1.report.rows import TRAINING, Row, row_of
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.scalars import read_scalars
from vsr1.runs.trajectories import read_log
from vsr1.storage import fetched, fetched_folder, place_of
from vsr1.video.clips import META, Clip, ClipFolder


class ReportError(ValueError):
    """A run folder that cannot be shown; the message names the file and the fix."""


def write_run_report(
    folders: Sequence[Path], out: Path | None = None, *, data: Path | None = None, with_frames: bool = True
) -> Path:
    """Write the page of the runs and return its path, by default `report.html` in the first folder.

    Args:
        folders: run folders, or their URLs.
        data: dataset folder of every run, instead of the one that its configuration names.
        with_frames: show frames, which are read from the dataset.

    Raises:
        ReportError: a folder is not a run, or its dataset is not known or is not the one it saw.
    """
    paths = [fetched_folder(place_of(folder) or folder).resolve() for folder in folders]
    names = _names(paths)
    runs = [read_run(path, name, data, with_frames) for path, name in zip(paths, names, strict=True)]
    target = out or paths[0] / "report.html"
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    write_report(target, title=title, runs=runs)
    return target


def read_run(folder: Path, name: str, data: Path | None = None, with_frames: bool = True) -> Run:
    """Read everything the page shows of one run folder; films are read later, one at a time.

    Raises:
        ReportError: as `write_run_report`.
    """
    if not folder.is_dir():
        raise ReportError(f"run folder {folder} does not exist")
    config, scalars, training = folder / "config.yaml", folder / "scalars.jsonl", folder / TRAINING_LOG
    logs = sorted((log for log in folder.glob(f"*{EVALUATION_LOG}") if not log.name.startswith(".")), key=_place)
    if not logs and not any(path.is_file() for path in (config, scalars, training)):
        raise ReportError(f"{folder} has neither scalars.jsonl nor trajectories; give the run_dir of a stage")
    settings = config_values(config) if config.is_file() else None  # unchecked: a run of another version can be shown
    played = (settings or {}).get("environment", "search")
    if played not in ENVIRONMENTS:
        raise ReportError(f"{folder} is a run of environment={played}; the page shows {', '.join(ENVIRONMENTS)} only")
    environment = ENVIRONMENTS[played]
    films = _films(config, settings, data) if with_frames and environment.has_films else None
    evaluations: dict[str, Summary] = {}
    unfinished, rows = [], list[Row]()
    for log in logs:
        label = log.name.removesuffix(EVALUATION_LOG)
        summary, fingerprints = _summary(folder / f"{label}.json", environment.summary), Counter[str]()
        for logged in read_log(log):
            rows.append(row_of(logged.trajectory, label, logged.step, films=films))
            fingerprints[logged.fingerprint] += 1
        if summary is not None and _is_of(summary, fingerprints):
            evaluations[label] = summary
        else:
            unfinished.append(label)
    if training.is_file():
        rows += [row_of(one.trajectory, TRAINING, one.step, one.credits, films) for one in read_log(training)]
    return Run(
        name=name,
        settings=settings,
        scalars=read_scalars(scalars) if scalars.is_file() else [],
        evaluations=evaluations,
        rows=rows,
        frames=_reader(folder, settings, data, films, environment.has_corpus) if with_frames and rows else None,
        unfinished=unfinished,
        events=read_events(folder / EVENTS),
    )


def _summary(path: Path, kind: type[BaseModel]) -> Any:
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ReportError(f"{path} is not a summary of this version, evaluate again: {error}") from error


def _is_of(summary: Summary, fingerprints: Counter[str]) -> bool:
    """Tell whether a summary is of the trajectories beside it: an evaluation that began anew leaves an earlier one.

    Args:
        fingerprints: of the trajectories.
    """
    count = summary.questions if isinstance(summary, NavigateSummary) else summary.queries
    fingerprint = summary.fingerprint if isinstance(summary, EvalSummary) else fingerprint_of(summary.settings)
    return set(fingerprints) <= {fingerprint} and fingerprints.total() <= count - sum(summary.failed.values())


def _place(log: Path) -> tuple[int, str]:
    """Return a key that puts evaluations made before a stage first, those made after it last."""
    name = log.name
    return (0 if name.startswith("before") else 2 if name.startswith("after") else 1), name.removesuffix(EVALUATION_LOG)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return folder names, with as many parent folders as it takes to tell them apart.

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


def _films(file: Path, settings: Mapping[str, Any] | None, data: Path | None) -> KeptFilms:
    """Return the films of a run's dataset, with what its tools have said."""
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ReportError(f"{file} is not of this version, say --no-frames: {error}") from error
    root = data or config.data.root
    return KeptFilms(config.model_copy(update={"data": config.data.model_copy(update={"root": root})}))


def _reader(
    folder: Path, settings: Mapping[str, Any] | None, data: Path | None, films: KeptFilms | None, has_corpus: bool
) -> Frames:
    """Return a reader of the parts of `films`, and where there is a corpus of the clips of all its splits."""
    looks = None if films is None else partial(_look, films)
    clips = _clips(folder, settings, data) if has_corpus or looks is None else looks
    return lambda name, clip_hash: (looks if looks and is_node_clip(name) else clips)(name, clip_hash)


def _clips(folder: Path, settings: Mapping[str, Any] | None, data: Path | None) -> Frames:
    """Return a reader of the clips in a dataset folder, all splits of it."""
    section: Mapping[str, Any] = (settings or {}).get("data", {})
    root = data or section.get("root")
    if root is None:
        raise ReportError(f"{folder} has no config.yaml that names its dataset; say --data FOLDER or --no-frames")
    dataset = DatasetFolder(place_of(root) or Path(root))
    clock = section.get("timestamps", "true_seconds")
    names = {path.name for path in dataset.root.glob("*")} | set(section.get("splits") or ())
    splits = sorted(name for name in names if fetched(dataset.clips(name) / META).parent.is_dir())
    folders = [ClipFolder(dataset.clips(split), clock) for split in splits]
    place = {video: clips for clips in reversed(folders) for video in clips.video_ids()}

    def frames(video: str, clip_hash: str) -> Clip:
        if video not in place:
            raise ReportError(f"dataset {root} has no clip of video {video!r}; say --data FOLDER or --no-frames")
        clip = place[video].read(video)
        if clip_hash and clip.content_hash != clip_hash:
            raise ReportError(
                f"the clip of video {video!r} in {root} is not the one that {folder} was made with; "
                "say --data FOLDER with the old data, or --no-frames"
            )
        return clip

    return frames


def _look(films: KeptFilms, name: str, clip_hash: str) -> Clip:
    """Return a part that was looked at, in seconds of its own."""
    clip, (start, end) = films.read(name), films.span(name)
    if clip_hash and clip.content_hash != clip_hash:
        raise ReportError(
            f"part {name!r} is not the one that was shown; say --data FOLDER with the old data, or --no-frames"
        )
    return replace(clip, timestamps=clip.timestamps - start, length=end - start)
