"""Settings of the dataset: where it lies, how it is built, who writes its reasoning, and the toy corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vsr1.settings.parts import AbsolutePath, ChatModelConfig, Section, cores


class TeacherConfig(ChatModelConfig):
    """Who writes the reasoning of SFT records, and how it is asked."""

    kind: Literal["rules", "vllm", "openai", "none"] = Field(
        "rules",
        description="rules: toy corpus only; vllm: engines of our own; openai: an OpenAI-compatible server; none: no "
        "SFT records, labels are all that Stage 2 needs",
    )
    attempts: int = Field(3, ge=1, description="replies asked for until one can be used")
    max_failed_fraction: float = Field(0.02, ge=0, le=1, description="share of pairs without reasoning tolerated")
    concurrency: int = Field(8, ge=1, description="openai: requests at one time")
    engines: int = Field(1, ge=1, description="vllm: engines at one time, on CUDA each on a GPU of its own")
    batch: int = Field(16, ge=1, description="vllm: pairs given to an engine at one time")

    @model_validator(mode="after")
    def _teacher_can_be_reached(self) -> TeacherConfig:
        if missing := self.missing(self.kind, "data.teacher"):
            raise ValueError(f"data.teacher.kind={self.kind} needs {' and '.join(missing)}")
        return self


class DataConfig(Section):
    """The dataset folder and how raw videos become clips."""

    root: AbsolutePath = Path("runs/data")
    splits: tuple[str, ...] = Field(
        (), description="empty: those that data.annotations names, test with data.search_only, else train and test"
    )
    videos: AbsolutePath | None = Field(
        None,
        description="folder of source videos, sub-folders and linked ones too; an id is a file's name without its "
        "ending, or with it, or its path below the folder; empty: root/raw_videos/SPLIT",
    )
    annotations: dict[str, AbsolutePath] = Field(
        {}, description="annotation file of a split, copied to root/raw_annotation/; a split not named has it there"
    )
    search_only: bool = Field(
        False, description="videos without annotations: a corpus to search, no queries or records"
    )
    sampling: Literal["time", "legacy"] = Field(
        "time", description="spread the frames over the seconds of a video, or over their numbers as published"
    )
    sample_fps: float = Field(1.0, gt=0, description="frames per second kept from a video")
    max_frames: int = Field(64, ge=2, description="most frames in a clip; a longer video is spread over them")
    max_pixels: int = Field(200_704, ge=1024, description="most pixels in a frame, before rounding to the patch grid")
    clip_storage: Literal["npy", "compact"] = Field(
        "npy", description="raw frames as published, or H.264 of about a tenth of the bytes that loses a little"
    )
    timestamps: Literal["true_seconds", "legacy_index"] = "true_seconds"
    beyond_duration: Literal["error", "keep"] = Field(
        "error", description="moments that end after their video: refuse them, or keep them as published"
    )
    other_length: Literal["fail", "keep"] = Field(
        "fail",
        description="a video that is cut, or not as long as its container or annotations say: a failure, or kept with "
        "its true length, its lost moments listed in lost_moments.jsonl",
    )
    faulty_rows: Literal["error", "drop"] = Field(
        "error", description="rows of annotations with a fault: refuse the file, or list them in SPLIT.dropped.jsonl"
    )
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="share of videos without a clip a build tolerates")
    hard_negatives: int = Field(50, ge=1, description="nearest wrong videos kept for each training query")
    grpo_negatives: int = Field(24, ge=1)
    decode_workers: int = Field(
        default_factory=lambda: min(16, max(2, cores())),
        ge=1,
        description="videos decoded at one time, each by one thread; by default one for each core here, 2 to 16",
    )
    embed_workers: int = Field(1, ge=1)
    embed_batch: int = Field(32, ge=1, description="most queries or clips embedded at one time")
    embed_batch_mib: int = Field(
        512, ge=1, description="most MiB of frames in one batch of clips, if it is not one clip"
    )
    teacher: TeacherConfig = TeacherConfig()

    @model_validator(mode="after")
    def _splits_follow_the_annotations(self) -> DataConfig:
        if not self.splits:
            named = tuple(self.annotations) or (("test",) if self.search_only else ("train", "test"))
            self.__dict__["splits"] = named  # an assignment would validate once more
        return self

    @model_validator(mode="after")
    def _search_only_has_no_annotations(self) -> DataConfig:
        if self.search_only and self.annotations:
            raise ValueError("data.search_only=true builds from videos alone; leave data.annotations out")
        return self


class ToyConfig(Section):
    """The corpus that `vsr1 demo` renders."""

    create: bool = Field(False, description="render and build it before a stage that finds no dataset in data.root")
    train: int = Field(96, ge=2, description="videos in the training split")
    skip: int = Field(0, ge=0, description="first videos of the training split, which another corpus of the seed has")
    val: int = Field(0, ge=0, description="videos in the validation split; 0: there is none")
    test: int = Field(48, ge=2, description="videos in the test split")
    hard: int = Field(0, ge=0, description="videos in a test split `hard` with more confusers; 0: there is none")
    queries: int = Field(1, ge=1, description="queries of each training video, about one moment in different words")
