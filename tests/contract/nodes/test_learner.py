"""The learner group on a cluster of two nodes: clips from each rank's own node, whole weights, and named failures."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.util import placement_group_table
from safetensors.torch import load

from actors.clips import ClipStores
from actors.healing import HealingLearners
from actors.learner import LearnerGroup, RankError
from bench.toy.models import HIDDEN, write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from pipelines.stage.watch import Watch, place
from vsr1.config import Config
from vsr1.formats.atomic import write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import load_policy
from vsr1.model.processor import ClipProcessor
from vsr1.rl.batch import Example, LearnerError, RetrievalTarget, Sampled
from vsr1.search.prompts import SYSTEM_PROMPT, turn_prompt
from vsr1.settings.parts import FleetConfig
from vsr1.video.clips import Clip, ClipError, ClipReference

pytestmark = pytest.mark.timeout(600)
register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
VIDEOS, LONGEST_WAIT_S = 6, 60.0


class Folder:
    def __init__(self, clips: list[Clip]) -> None:
        self._clips = {clip.video_id: clip for clip in clips}

    def read(self, video_id: str) -> Clip:
        return self._clips[video_id]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Random models, and vectors of a corpus."""
    folder = tmp_path_factory.mktemp("learner")
    write_random_models(folder, train_tokenizer(vocabulary_texts(0, 200)))
    data = DatasetFolder(folder / "data")
    data.video_embeddings("train").parent.mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(VIDEOS, HIDDEN)).astype(np.float32)
    np.save(data.video_embeddings("train"), vectors)
    write_json(data.docid2row("train"), {f"v{i}": i for i in range(VIDEOS)})
    return Config.model_validate(
        {
            "data": {"root": folder / "data"},
            "model": {"policy": folder / "policy", "embedder": folder / "embedder"},
            "grpo": {"learner": {"ranks": 2, "zero_stage": 3, "learning_rate": 1e-3, "micro_tokens": 700}},
            "cluster": {"learner": {"cpus": 1, "memory_gib": 0}},
        }
    )


@pytest.fixture
def stores(nodes: list[str], clips: list[Clip]) -> Iterator[ClipStores]:
    stores = ClipStores(Folder(clips), 10**7, {"num_cpus": 0})
    yield stores
    for store in stores.actors():
        ray.kill(store)


@pytest.fixture(scope="module")
def examples(config: Config, clips: list[Clip]) -> list[Example]:
    processor = ClipProcessor(config.model.policy)
    refine = processor.tokenizer.convert_tokens_to_ids("<REFINE>")
    examples = []
    for i in range(6):
        clip = clips[i % 3]
        prompt = processor.prompt_ids(turn_prompt("a blue ring pulsing", SYSTEM_PROMPT), clip)
        reply = [20 + i, 40, 60 + i][: 2 + i % 2] + ([refine] if i % 2 else [])
        wrong = [f"v{(i + k) % VIDEOS}" for k in (1, 2)]
        latents = np.full((config.agent.depth, HIDDEN), 0.1 * i, np.float32)
        target = RetrievalTarget("a blue ring pulsing", f"v{i}", wrong, latents=latents) if i % 2 else None
        examples.append(
            Example(prompt, reply, (clip.reference,), target, Sampled([-5.0] * len(reply), advantage=1.0 - i / 2))
        )
    return examples


def _given_back() -> bool:
    """Whether no placement group is left, within the time that Ray takes to say so."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while any(group["state"] != "REMOVED" for group in placement_group_table().values()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_ranks_read_the_clips_of_their_own_node_and_hand_out_what_they_trained(
    config: Config, stores: ClipStores, examples: list[Example], clips: list[Clip], nodes: list[str], tmp_path: Path
) -> None:
    shown = [reference for example in examples for reference in example.clips]
    changed = ClipReference(shown[0].video_id, "what it was before")
    with (
        pytest.raises(ClipError, match=f"clip 'v0' changed .* was what it was before, is {shown[0].content_hash}"),
        LearnerGroup(config, stores) as group,
    ):
        assert sorted(ray.get([rank.node.remote() for rank in group.members])) == nodes
        group.prefetch(shown)
        own = [stores.on(node) for node in nodes]
        deadline = time.monotonic() + LONGEST_WAIT_S
        while (loads := [ray.get(store.stats.remote())["loads"] for store in own]) != [3, 3]:
            assert time.monotonic() < deadline, loads
        _check_several_steps(group, examples)

        hits = [ray.get(store.stats.remote())["hits"] for store in own]
        numbers = group.step(examples, 1e-3)
        stats = [ray.get(store.stats.remote()) for store in own]
        assert [one["loads"] for one in stats] == [3, 3], "a rank read what had been fetched"
        assert all(one["hits"] > before for one, before in zip(stats, hits, strict=True))
        assert numbers["tokens"] == sum(len(example.response_ids) for example in examples)
        assert 0 < numbers["example_bytes"] < 50_000 < min(clip.nbytes for clip in clips)

        weights, manifest = ray.get(group.weights())
        group.save(tmp_path / "saved")
        _check_handed_out(config, load(weights), manifest, tmp_path / "saved")

        group.step([*examples, replace(examples[0], clips=(changed,))], 1e-3)
    assert _given_back()
    assert group.members == []


def _check_handed_out(config: Config, weights: dict, manifest: dict, saved: Path) -> None:
    """All that changed was handed out, as it was saved; frozen parts were not."""
    before, after = load_policy(config.model.policy).state_dict(), load_policy(saved).state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(tensor) for name, tensor in weights.items())
    changed = {name for name in before if name != "lm_head.weight" and not before[name].equal(after[name])}
    assert changed <= weights.keys()
    assert {name for name in weights if name not in changed} <= {
        name for name in weights if "refine_latent_input_projector" in name or "refine_append" in name
    }
    assert not any("visual" in name or "refine_gate" in name for name in weights)
    assert {name: record.shape for name, record in manifest.items()} == {
        name: tuple(tensor.shape) for name, tensor in weights.items()
    }


def _check_several_steps(learners: LearnerGroup, examples: list[Example]) -> None:
    """Several steps on a batch take their ratio against the policy before the first one."""
    first = learners.logprobs(examples)
    assert [len(values) for values in first] == [len(example.response_ids) for example in examples]
    sampled = [
        replace(example, sampled=replace(example.sampled, logprobs=values, old=values))
        for example, values in zip(examples, first, strict=True)
    ]
    numbers = [learners.step(sampled, 1e-3) for _ in range(2)]
    assert max(learner["mismatch/gap_max"] for learner in numbers) < 1e-6, "the engine's are those of the first step"
    clipped = [learner["clip_fraction/low"] + learner["clip_fraction/high"] for learner in numbers]
    assert clipped[0] == 0 < clipped[1], "the second step has left the policy of the first"
    assert learners.logprobs(examples) != first


@pytest.mark.chaos
def test_a_rank_that_dies_is_named(config: Config, stores: ClipStores, examples: list[Example]) -> None:
    """The other rank fails too, on its broken connection; it is not the one to look at."""
    with LearnerGroup(config, stores) as group:
        killer = threading.Timer(1.0, ray.kill, [group.members[1]])
        killer.start()
        with pytest.raises(LearnerError, match="learner rank 1 died"):
            while True:
                group.step(examples, 1e-3)
    assert _given_back()


def _trained(
    config: Config, stores: ClipStores, examples: list[Example], faults: dict[int, int]
) -> tuple[bytes, list[dict]]:
    """Take four steps, in some of which rank 1 gets a signal; return the weights, and the healings that were told."""
    events: list[dict] = []
    watch = Watch(config.fleet, write=lambda kind, **fields: events.append({"kind": kind, **fields}))
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            watch.tick()

    looking = threading.Thread(target=look)
    looking.start()
    learners = HealingLearners(
        config,
        stores,
        guard=watch.guard_rank,
        write=lambda kind, **fields: events.append({"kind": kind, **fields}),
    )
    try:
        with learners:
            for step in range(4):
                if number := faults.get(step):
                    _, pid = ray.get(learners.members[1].__ray_call__.remote(place))
                    threading.Timer(0.3, os.kill, [pid, number]).start()
                learners.step(examples[step % 2 :], 1e-3)
            weights, _ = ray.get(learners.weights())
    finally:
        is_over.set()
        looking.join()
        watch.stop()
    return weights, [event for event in events if event["kind"] == "healed"]


@pytest.mark.chaos
def test_ranks_that_die_or_stand_still_train_to_the_same_bits(
    config: Config, stores: ClipStores, examples: list[Example]
) -> None:
    config = config.model_copy(update={"fleet": FleetConfig(snapshot_every=2, stopped_s=1.0)})
    weights, healed = _trained(config, stores, examples, {})
    assert healed == []
    others, healed = _trained(config, stores, examples, {1: signal.SIGKILL, 3: signal.SIGSTOP})
    assert [event["member"] for event in healed] == ["learner"] * 2
    assert all("learner rank 1 died" in event["reason"] for event in healed)
    assert all(event["seconds"].keys() == {"start", "restore", "repeat", "all"} for event in healed)
    assert others == weights
    assert _given_back()


@pytest.mark.chaos
def test_ranks_without_a_copy_die_with_their_step(config: Config, stores: ClipStores, examples: list[Example]) -> None:
    config = config.model_copy(update={"fleet": FleetConfig(snapshot_every=0)})
    with pytest.raises(RankError, match="learner rank 1 died"):
        _trained(config, stores, examples, {1: signal.SIGKILL})


def test_a_group_that_cannot_start_leaves_no_place_taken(config: Config, nodes: list[str]) -> None:
    class Full:
        def on(self, node_id: str, *, keep: bool = False) -> None:
            raise OSError("no room for a store")

    group = LearnerGroup(config, Full())
    with pytest.raises(OSError, match="no room for a store"):
        group.__enter__()
    assert _given_back()
    group.close()  # again
