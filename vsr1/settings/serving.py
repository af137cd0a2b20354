"""Settings of the served agent: models, corpora, uploads and limits."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from vsr1.settings.parts import AbsolutePath, LocalPath, Section


class CorpusConfig(Section):
    """A corpus to search: one split of a dataset folder that was built."""

    root: AbsolutePath
    split: str = "test"
    added: LocalPath | None = Field(None, description="folder of added videos; empty: root/added/SPLIT")


class UploadConfig(Section):
    """Which videos may be added to what is served, and what one may cost."""

    max_mib: int = Field(2048, ge=1, description="of a file")
    max_seconds: float = Field(14_400.0, gt=0, description="length of a video")
    max_frames: int = Field(1_000_000, ge=1, description="of a video")
    max_pixels: int = Field(9_437_184, ge=1, description="of a frame, as in 4096x2304")
    cpu_s: float = Field(1800.0, ge=1, description="CPU seconds of a process that decodes a video")
    memory_gib: float = Field(4.0, gt=0, description="address space of such a process")
    waiting: int = Field(16, ge=1, description="videos of a corpus on their way; beyond them the answer is 429")
    at_once: int = Field(2, ge=1, description="files received at one time; beyond them the answer is 429")
    path_root: LocalPath | None = Field(None, description="folder below which a path may be given; empty: none may")
    urls: bool = Field(False, description="whether a video may be fetched from a public address")
    limit_s: float = Field(3600.0, gt=0, description="for receiving a file, or fetching one")


class ServeConfig(Section):
    """The served agent."""

    corpora: dict[str, CorpusConfig] = Field({}, description="by the name that a search gives")
    model: str = Field("vsr1", description="name of `model.policy` in searches and answers; the default of a search")
    models: dict[str, AbsolutePath] = Field(
        {}, description="further policy checkpoints, by the name that a search gives"
    )
    least_replicas: int = Field(1, ge=1, description="agents of each model, one engine each")
    most_replicas: int = Field(1, ge=1)
    searches_a_replica: int = Field(32, ge=1, description="searches that one agent plays at one time")
    waiting_searches: int = Field(64, ge=0, description="further searches that wait; beyond them the answer is 429")
    request_limit_s: float = Field(120.0, gt=0, description="after which a search ends with what it has")
    key_file: LocalPath | None = Field(None, description="hashes of API keys; empty lets everybody in")
    hosts: list[str] = Field(
        [], description="names under which it answers without keys, beside localhost, this machine's and --host"
    )
    cors_origins: list[str] = Field([], description="sites whose scripts may ask, as in https://example.org")
    body_limit_kib: int = Field(1024, ge=1, description="largest body of a request")
    body_limit_s: float = Field(
        20.0, gt=0, description="after which a body that is still coming is refused, or a file that does not get on"
    )
    resume_grace_s: float = Field(
        5.0, ge=0, description="a streamed search goes on for so long without a reader; 0: it ends with its reader"
    )
    resume_keep_s: float = Field(60.0, ge=0, description="events of a search that is over can be read for so long")
    resume_keep: int = Field(256, ge=0, description="searches that are over and kept")
    upload: UploadConfig = UploadConfig()
    longest_clip_s: float = Field(120.0, gt=0, description="of a part of a video that is cut out")

    @model_validator(mode="after")
    def _models_can_be_told_apart(self) -> ServeConfig:
        for name in (self.model, *self.models):
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"serve: {name!r} cannot name a model; use letters, digits, '_' and '-'")
        if self.model in self.models:
            raise ValueError(f"serve.models: {self.model!r} names model.policy already (serve.model); choose another")
        return self
