"""Clip stores on a cluster of two nodes: each node reads a clip once, however many samples need it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.clips import ClipStores

register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file


@dataclass
class NotingFolder:
    """Writes a line for each read."""

    notes: Path

    def read(self, video_id: str) -> "NotedClip":
        with self.notes.open("a") as notes:
            notes.write(f"{video_id} {ray.get_runtime_context().get_node_id()}\n")
        return NotedClip(np.full((4, 8, 8, 3), 7, np.uint8), np.arange(4.0))


@dataclass
class NotedClip:
    frames: np.ndarray
    timestamps: np.ndarray


@ray.remote(num_cpus=0)
def a_sample(store: object, video_id: str) -> int:
    return int(ray.get(store.get.remote(video_id)).frames[0, 0, 0, 0])  # type: ignore[attr-defined]


def test_each_node_reads_a_clip_once(nodes: list[str], tmp_path: Path) -> None:
    folder = NotingFolder(tmp_path / "notes")
    stores = ClipStores(folder, 10**6, {"num_cpus": 0})
    group = 8
    samples = [
        a_sample.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            stores.on(node), video
        )
        for node in nodes
        for video in ("v1", "v2")
        for _ in range(group)
    ]
    assert ray.get(samples) == [7] * (2 * 2 * group)
    assert sorted(folder.notes.read_text().split("\n")) == [
        "",
        *sorted(f"v{i} {node}" for node in nodes for i in (1, 2)),
    ]
    assert len(stores.actors()) == 2
    assert ray.get(stores.here().stats.remote())["loads"] == 2


@pytest.mark.chaos
def test_a_store_of_a_large_folder_answers_again_after_its_death(nodes: list[str], tmp_path: Path) -> None:
    folder = NotingFolder(tmp_path / "notes")
    folder.rows = bytes(10**6)  # too large to travel with the order to start
    stores = ClipStores(folder, 10**6, {"num_cpus": 0, "max_restarts": -1})
    store = stores.on(nodes[0])
    assert ray.get(a_sample.remote(store, "v0")) == 7
    ray.kill(store, no_restart=False)
    assert ray.get(store.get.options(max_task_retries=3).remote("v0"), timeout=60).frames[0, 0, 0, 0] == 7


def test_a_store_is_ended_with_its_node_s_members_unless_a_learner_rank_reads_from_it(
    nodes: list[str], tmp_path: Path
) -> None:
    stores = ClipStores(NotingFolder(tmp_path / "notes"), 10**6, {"num_cpus": 0})
    kept, other = stores.on(nodes[0], keep=True), stores.on(nodes[1])
    assert ray.get([a_sample.remote(store, "v0") for store in (kept, other)]) == [7, 7]
    assert not stores.end(nodes[0]) and stores.end(nodes[1]) and not stores.end(nodes[1])
    assert stores.actors() == [kept]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(other.get.remote("v0"), timeout=60)
    assert ray.get(a_sample.remote(stores.on(nodes[1]), "v0")) == 7, "the next member has a new one"
