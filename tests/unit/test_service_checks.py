"""What is looked at before the service starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.teacher.reasoning import check_teacher
from pipelines.evaluation.evaluate import evaluate
from pipelines.machine.nodes import Capacity
from pipelines.machine.placement import PlanError
from pipelines.serve.checks import check_served, named_corpora, serving_plan
from pipelines.serve.deploy import address
from pipelines.serve.gateway.keys import KeyFileError
from pipelines.train import grpo
from vsr1.config import Config, ConfigError
from vsr1.formats.dataset import DatasetFolder
from vsr1.settings.data import DataConfig
from vsr1.settings.navigate import CaptionerConfig
from vsr1.settings.parts import Node
from vsr1.toy.long_corpus import write_long_corpus
from vsr1.video.clips import META


def built(root: Path, split: str = "test", videos: int = 4) -> Path:
    """Make the files of a built split, as far as they are looked at."""
    folder = DatasetFolder(root)
    for path in (folder.video_embeddings(split), folder.docid2row(split), folder.clips(split) / META):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    folder.docid2row(split).write_text(json.dumps({f"v{row}": row for row in range(videos)}))
    return root


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return folder


def config(folder: Path, **serve: Any) -> Config:
    models = {"policy": model(folder / "policy"), "embedder": model(folder / "embedder")}
    corpora = {"corpora": {"toy": {"root": built(folder / "data")}}}
    small = {"cpus": 0.01, "memory_gib": 0.001}
    cluster = {name: small for name in ("rollout", "retrieval", "shard", "clips")} | {
        "num_cpus": 1,
        "object_store_gib": 0.1,
    }
    return Config.model_validate({"model": models, "serve": corpora | serve, "cluster": cluster})


def test_what_is_there_passes(tmp_path: Path) -> None:
    check_served(config(tmp_path))


def test_every_fault_is_named_at_one_time(tmp_path: Path) -> None:
    corpora = {
        "gone": {"root": tmp_path / "gone"},
        "split": {"root": built(tmp_path / "other", "val"), "split": "test"},
        "small": {"root": built(tmp_path / "small", videos=1)},
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = config(tmp_path, corpora=corpora, models={"large": empty}, upload={"path_root": tmp_path / "inbox"})
    wrong.model.embedder = tmp_path / "nowhere"
    with pytest.raises(ConfigError) as refused:
        check_served(wrong)
    lines = str(refused.value).splitlines()
    begins = [
        "checkpoint of model 'large'",
        "model.embedder",
        "corpus 'gone'",
        "corpus 'split'",
        "corpus 'small'",
        "serve.upload",
    ]
    assert len(lines) == len(begins) and all(line.startswith(begin) for line, begin in zip(lines, begins, strict=True))
    assert "split 'test'" in lines[3]


@pytest.mark.parametrize("name", ["processor_config.json", "video_preprocessor_config.json"])
def test_a_processor_whose_largest_clip_no_engine_holds_is_refused_by_name(tmp_path: Path, name: str) -> None:
    served = config(tmp_path)

    def write(edge: int) -> None:
        video = {"size": {"longest_edge": edge, "shortest_edge": 2048}}
        settings = {"video_processor": video} if name == "processor_config.json" else video
        (tmp_path / "policy" / name).write_text(json.dumps(settings))

    write(469_762_048 // 2)
    check_served(served)
    write(2**30)
    named = r"policy/.*size\.longest_edge=1073741824 .* it takes 357913941 at most. .* = 12845056"
    with pytest.raises(ConfigError, match=r"checkpoint of model 'vsr1': .*" + named):
        check_served(served)
    with pytest.raises(ConfigError, match=named):
        grpo.check(served)
    with pytest.raises(ConfigError, match=named):
        evaluate(served)
    teacher = {"kind": "vllm", "folder": served.model.policy}
    data = DataConfig.model_validate(served.data.model_dump() | {"teacher": teacher})
    with pytest.raises(ConfigError, match=named):
        check_teacher(DatasetFolder(tmp_path), data)


def test_stage_2_without_a_dataset_is_refused_at_once(tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.run_dir, settings.data.root = tmp_path / "run", tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=r"is missing; build the dataset first with `vsr1 data build`"):
        grpo.check(settings)
    settings.toy.create = True  # it is rendered first
    grpo.check(settings)


def test_navigation_is_served_over_the_films_that_questions_name(tmp_path: Path) -> None:
    served = config(tmp_path)
    served.agent.refinement = "none"
    served.environment = "navigate"
    served.model.embedder = tmp_path / "nobody needs it"
    with pytest.raises(
        ConfigError, match=r"test\.questions\.jsonl is missing; a question is about a film that it names"
    ):
        check_served(served)
    write_long_corpus(DatasetFolder(tmp_path / "data"), {"test": 1}, served.navigate, 0)
    check_served(served)
    here = Capacity((Node(cpus=1, memory_gib=1),), "here", "buy another")
    roles = [role.name for role in serving_plan(served, True, here).roles]
    assert roles == ["gateway, library", "captioner", "answerer", "agent", "clip store"]
    with pytest.raises(ConfigError, match="environment=navigate searches no corpus; leave it out"):
        check_served(served, agents=False)


def test_the_toy_captioner_needs_the_films_that_it_knows(tmp_path: Path) -> None:
    served = config(tmp_path)
    served.environment = "search_then_navigate"
    with pytest.raises(ConfigError, match=r"the toy captioner knows .*films\.jsonl only; set navigate\.pools"):
        check_served(served)
    served.navigate.pools.captioner = CaptionerConfig(kind="openai", model="m", url="http://127.0.0.1:9/v1")
    check_served(served)
    served.navigate.pools.captioner = CaptionerConfig(kind="vllm", folder=tmp_path)
    served.model.device = "cuda"
    here = Capacity((Node(cpus=8, memory_gib=64),), "here", "buy another")
    gpus = {role.name: role.size("gpus") for role in serving_plan(served, True, here).roles if role.size("gpus")}
    assert gpus == {"captioner": 1, "answerer": 1}


def test_keys_and_room_are_looked_at(tmp_path: Path) -> None:
    right = config(tmp_path)
    right.serve.key_file = tmp_path / "keys.json"
    with pytest.raises(KeyFileError, match="does not exist"):
        check_served(right)
    right.serve.key_file = None
    right.serve.least_replicas = 1000
    with pytest.raises(PlanError, match=r"serve\.least_replicas=1000"):
        check_served(right)
    here = Capacity((Node(cpus=1, memory_gib=1),), "here", "buy another")
    assert "agent" not in [role.name for role in serving_plan(right, False, here).roles]


def test_corpora_have_unique_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/data", "b/data", "c=d"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "data")
    first, second, odd = (str(tmp_path / name) for name in ("a/data", "b/data", "c=d"))
    assert list(named_corpora([first, f"films={second}", odd], "test", {})) == ["data", "films", "c=d"]
    assert list(named_corpora(["."], "val", {})) == ["data"]
    for folders, others in (([first, second], {}), ([second], named_corpora([first], "test", {}))):
        with pytest.raises(ConfigError, match=r"is corpus 'data' already.*--corpus OTHER="):
            named_corpora(folders, "test", others)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_address_of_the_page(host: str, url: str) -> None:
    assert address(host, 8000) == url
