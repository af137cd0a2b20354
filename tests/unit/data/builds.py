"""The real build of a dataset, with videos decoded and embedded in this process instead of on Ray."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.data.build import BuildReport, build_dataset
from vsr1.config import Config

stand_in = runpy.run_path(str(Path(__file__).parents[2] / "contract" / "stand_in_embedder.py"))["stand_in"]


class Here:
    """In place of `RayWorkers`; `decoded` and `embedded` count the jobs."""

    def __init__(self) -> None:
        self.decoded = self.embedded = 0

    def each(self, jobs: list[str], work: Callable[[str], str]) -> Iterator[str]:
        self.decoded += len(jobs)
        return map(work, jobs)

    def read_and_embed(self, jobs: list[dict[str, Any]], reader: Any, embedder: Any) -> Iterator[dict[str, Any]]:
        self.embedded += len(jobs)
        read, embed = reader[0](**reader[1]), embedder[0](**embedder[1])
        return (embed(read(job)) for job in jobs)


def build(
    root: Path,
    sections: dict[str, Any] | None = None,
    *,
    embedder: Any = None,
    workers: Any = None,
    progress: Any = None,
    **data: Any,
) -> BuildReport:
    """Build with a stand-in for the embedder, `data` being its section of the configuration."""
    config = Config.model_validate({"data": {"root": root, "embed_batch": 2} | data} | (sections or {}))
    return build_dataset(config, progress, embedder_class=embedder or stand_in(), workers=workers or Here())


def built_steps(report: BuildReport) -> set[str]:
    return {f"{step.split}.{step.name}" for step in report.steps if step.status == "built"}
