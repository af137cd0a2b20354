"""What a job looks at on every node of its cluster before its stage starts: versions, and the folders of the run.

The first node is the one where the job runs; the others are compared with it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from packaging.version import Version

from pipelines.command import JOB_FOLDERS
from pipelines.machine.placement import Stage, check_placement
from pipelines.machine.resources import MachineError
from vsr1.config import Config
from vsr1.storage import is_there, named, removed, sent
from vsr1.stores import StorageError
from vsr1.versions import SUPPORTED, installed_version

LOOK_LIMIT_S = 120.0  # a node unpacks the files of the job first
SIGHT_LIMIT_S = 5.0  # in which a file that one node has written is seen by another, on storage that caches


@dataclass(frozen=True)
class View:
    """What one node has.

    Attributes:
        versions: by package; without what tells a build for the CPU from one for a GPU.
        missing: settings whose path it does not see.
    """

    node: str
    versions: Mapping[str, str]
    missing: tuple[str, ...] = ()


def look(node: str, paths: Mapping[str, Path]) -> View:
    """Return what the node of this process has."""
    versions = {"python": platform.python_version()}
    for part in SUPPORTED:
        version = installed_version(part)
        versions[part] = Version(version).public if version else "none"
    deadline = time.monotonic() + SIGHT_LIMIT_S
    while (missing := [key for key, path in paths.items() if not _sees(node, path)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return View(node, versions, tuple(missing))


def _sees(node: str, path: Path) -> bool:
    try:
        return is_there(path)
    except StorageError as error:
        raise StorageError(f"node {node}: {error}") from error


def faults(views: Sequence[View], paths: Mapping[str, Path]) -> list[str]:
    """Return a line for each thing in which a node differs from the first, or that it does not see."""
    first, *others = views
    lines = []
    for view in others:
        unlike = [
            f"{part} {version}, the job's node {first.versions.get(part)}"
            for part, version in view.versions.items()
            if version != first.versions.get(part)
        ]
        if unlike:
            lines.append(f"node {view.node} has {'; '.join(unlike)}: install the same on every node, as from one image")
        lines += [
            f"node {view.node} does not see {key}={named(paths[key])}: put it on storage that every node mounts there"
            for key in view.missing
        ]
    return lines


def check_cluster(config: Config, stage: Stage | None) -> None:
    """See that a stage can start on the cluster of this job.

    Args:
        stage: None for one that has no plan of its own.

    Raises:
        MachineError: results that would lie in the job's copy of the working folder, nodes with other versions, or
            paths that a node does not see.
        PlanError: the cluster cannot hold the actors.
    """
    for key, path in (("run_dir", config.run_dir), ("data.root", config.data.root)):
        if JOB_FOLDERS in path.parts and (key == "run_dir" or not path.exists()):
            state = f"{key}={path} lies in the job's copy of the working folder, which goes when the job is over"
            raise MachineError(state, f"give an absolute {key}, on storage that every node sees")
    if stage:
        check_placement(config, stage)
    is_new = not config.run_dir.exists()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    mark = config.run_dir / f".seen-{uuid4().hex[:8]}"
    mark.touch()
    try:
        sent(mark)
        paths = {key: path for key, path in _paths(config.model_dump()).items() if is_there(path)} | {"run_dir": mark}
        lines = faults(views_of_nodes(paths), paths | {"run_dir": config.run_dir})
    finally:
        removed(mark)
    if lines:
        if is_new:
            config.run_dir.rmdir()
        raise MachineError("the nodes are not alike", "\n".join(lines))


def views_of_nodes(paths: Mapping[str, Path]) -> list[View]:
    """Ask every living node, the present one first."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    order = sorted(nodes, key=lambda node: (node != here, nodes[node]))
    task = ray.remote(num_cpus=0)(look)
    answers = {}
    for node in order:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        answers[node] = task.options(scheduling_strategy=there).remote(nodes[node], paths)
    _, silent = ray.wait(list(answers.values()), num_returns=len(answers), timeout=LOOK_LIMIT_S)
    if silent:
        names = [nodes[node] for node, answer in answers.items() if answer in silent]
        state = f"{len(names)} nodes do not answer within {LOOK_LIMIT_S:g} s: {', '.join(names)}"
        raise MachineError(state, "end them, or look for their faults under Ray's --temp-dir")
    return [ray.get(answer) for answer in answers.values()]


def _paths(values: Mapping[str, Any], prefix: str = "") -> dict[str, Path]:
    """Return the paths of nested settings by dotted key."""
    paths: dict[str, Path] = {}
    for name, value in values.items():
        if isinstance(value, Path):
            paths[prefix + name] = value
        elif isinstance(value, dict):
            paths |= _paths(value, f"{prefix}{name}.")
    return paths
