"""What a stage reads is checked before anything starts: every fault of every record is named, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.machine.placement import grpo_splits
from vsr1.config import Config, ConfigError
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.storage import has_file, is_there, named, url_of
from vsr1.video.clips import clip_file, read_meta

LISTED = 200
PLACEHOLDER = "<video>"
Text = Annotated[str, Field(min_length=1)]
RecordT = TypeVar("RecordT", bound="_Record")


class RecordError(ValueError):
    """Training records that cannot be used; the message names the file and each record, field and video."""


class _Record(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    qid: str | int
    query: Text


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text


class _Meta(BaseModel):
    video_id: Text
    query_pos_video_id: Text


class _SftRecord(_Record):
    messages: Annotated[list[_Message], Field(min_length=1)]
    meta: _Meta
    videos: Annotated[list[str], Field(min_length=1, max_length=1)] | None = None


class _GrpoRecord(_Record):
    gt_video: Text
    gt_time: tuple[float, float]
    gt_duration: Annotated[float, Field(gt=0)]
    retrieved_video: Text
    hard_negative_ids: list[str]
    is_augmented: bool


class _Corpus:
    """Which videos a split has, and which of them have a clip."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder.clips(TRAIN)
        self.videos = set(_parsed(folder.docid2row(TRAIN)))
        self._clips = read_meta(self._folder)

    def faults(self, field: str, video: str, *, shown: bool = False) -> Iterator[str]:
        if video not in self.videos:
            yield f"{field}: video {video!r} is not in the corpus"
        elif shown and not (video in self._clips and has_file(clip_file(self._folder, video, self._clips[video]))):
            yield f"{field}: video {video!r} has no clip in {self._folder}"


def check_sft_records(config: Config) -> None:
    """Compare the records of Stage 1 with what it will ask of them.

    Raises:
        RecordError: some cannot be used.
        FileNotFoundError: a file of the dataset is missing.
    """
    folder = DatasetFolder(config.data.root)
    corpus, nearest = _Corpus(folder), _parsed(folder.hard_negatives())
    rewrites = _parsed(folder.rewrites()) if config.agent.refinement == "text" else None
    known: dict[str, bool] = {}

    def faults(record: _SftRecord) -> Iterator[str]:
        shown, right = record.meta.video_id, record.meta.query_pos_video_id
        roles = [message.role for message in record.messages]
        if roles[-1] != "assistant" or roles.count("assistant") != 1:
            yield f"messages: one reply of the assistant is needed, at the end; the roles are {', '.join(roles)}"
        asked = [message.content for message in record.messages if message.role == "user"]
        places = sum(text.count(PLACEHOLDER) for text in asked) - record.query.count(PLACEHOLDER)
        if asked and places != 1:
            yield f"messages: the user's words have {places} {PLACEHOLDER} beside those of the query, 1 is needed"
        yield from corpus.faults("meta.video_id", shown, shown=True)
        yield from corpus.faults("meta.query_pos_video_id", right)
        for video in nearest.get(str(record.qid), [])[: config.sft.negatives]:
            if not known.setdefault(video, video in corpus.videos):
                yield f"{folder.hard_negatives().name}: video {video!r} is not in the corpus"
        if rewrites is not None and shown != right:
            if not isinstance(rewrites.get(str(record.qid)), str):
                yield f"{folder.rewrites().name} has no text for it"
            if not record.messages[-1].content.rstrip().endswith("<REFINE>"):
                yield "messages: a reply that rejects its video must end in <REFINE>"

    _check(folder.sft_records(), _SftRecord, faults)


def check_checkpoints(config: Config) -> None:
    """See that the checkpoints are there that a stage loads, unless its nodes are only declared (`cluster.nodes`).

    Raises:
        ConfigError: a folder is no checkpoint.
    """
    folders = {"model.policy": config.model.policy}
    if environment_of(config).has_corpus:
        folders["model.embedder"] = config.model.embedder
    for key, folder in folders.items() if not config.cluster.nodes else ():
        weights = ("*.safetensors", "*.bin") if config.model.allow_bin else ("*.safetensors",)
        if not is_there(folder):
            fault = "the folder does not exist; a checkpoint of the hub is loaded with `hf download NAME --local-dir`"
        elif url_of(folder) is not None:
            continue
        elif (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            fault = "an adapter alone is no checkpoint; merge it into its model first"
        elif not any(path for pattern in weights for path in folder.glob(pattern)):
            fault = "no safetensors weights"
        else:
            continue
        raise ConfigError(f"{key}={named(folder)}: {fault}")


def check_grpo_records(config: Config) -> None:
    """Compare the records of Stage 2, and the splits that it evaluates, with what it will ask of them.

    Raises:
        RecordError: some cannot be used.
        FileNotFoundError: a file of the dataset is missing.
    """
    folder = DatasetFolder(config.data.root)
    corpus = _Corpus(folder)

    def faults(record: _GrpoRecord) -> Iterator[str]:
        if record.gt_time[0] > record.gt_time[1]:
            yield f"gt_time: the moment {list(record.gt_time)} ends before it begins"
        yield from corpus.faults("gt_video", record.gt_video)
        if record.is_augmented or config.grpo.first_video == "recorded":
            yield from corpus.faults("retrieved_video", record.retrieved_video, shown=True)
        for video in record.hard_negative_ids[: config.grpo.negatives]:
            yield from corpus.faults("hard_negative_ids", video)

    _check(folder.grpo_records(), _GrpoRecord, faults)
    for split in grpo_splits(config):
        if not (path := folder.docid2row(split)).is_file():
            raise FileNotFoundError(
                f"{path} is missing; build split {split!r}, or name another one with grpo.val_split or eval.split"
            )


def _check(path: Path, kind: type[RecordT], faults_of: Callable[[RecordT], Iterator[str]]) -> None:
    faults = []
    for number, row in enumerate(_rows(path), start=1):
        name = f"record {number}" + (f" (qid {row['qid']!r})" if isinstance(row, dict) and "qid" in row else "")
        try:
            faults += [f"{name}: {fault}" for fault in faults_of(kind.model_validate(row))]
        except ValidationError as error:
            for item in error.errors():
                field = ".".join(str(part) for part in item["loc"])
                value = "" if item["type"] == "missing" else f" (got {str(item['input'])[:80]!r})"
                message = item["msg"].partition(" or instance of ")[0]  # of a class that only this file knows
                faults.append(f"{name}: {f'{field}: ' if field else ''}{message}{value}")
    if faults:
        more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        remedy = "correct or remove them, or build the dataset again with `vsr1 data build`"
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"{path}: {count} in its records; {remedy}", *faults[:LISTED], *more]
        raise RecordError("\n  ".join(lines))


def _rows(path: Path) -> list[Any]:
    """Return the records of a JSON list, or of JSON lines."""
    if path.suffix == ".jsonl":
        lines = enumerate(_text(path).split("\n"), start=1)
        return [_value(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if _text(path).lstrip().startswith("{") and "}\n{" in _text(path):
        raise RecordError(f"{path}: a JSON list of records is needed, not JSON lines")
    rows = _parsed(path)
    if not isinstance(rows, list):
        raise RecordError(f"{path}: a JSON list of records is needed, not one {type(rows).__name__}")
    return rows


def _parsed(path: Path) -> Any:
    return _value(_text(path), str(path))


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build the dataset first with `vsr1 data build`")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8 text") from error


def _value(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: not JSON ({error})") from error
