"""One service with engines for all tests of this folder: two models, two corpora."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ray import serve
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bench.load import trace
from pipelines.evaluation.evaluate import evaluate
from pipelines.serve.deploy import start_agent
from vsr1.config import load_config
from vsr1.model.checkpoint import copy_processor
from vsr1.toy.world import COLOURS

from .served import AT_ONCE, CORPUS, REPOSITORY, SMALL, Served

QUERIES = 8


@pytest.fixture(scope="package")
def served(
    tmp_path_factory: pytest.TempPathFactory, toy_data: Path, own_ray: Callable[[], AbstractContextManager[None]]
) -> Iterator[Served]:
    with own_ray():
        folder = tmp_path_factory.mktemp("service")
        other = folder / "other"
        settings = [
            f"run_dir={folder / 'run'}", f"data.root={toy_data}", f"serve.corpora.{CORPUS}.root={toy_data}",
            f"serve.corpora.{SMALL}.root={toy_data}", f"serve.corpora.{SMALL}.split=val",
            "serve.model=first", f"serve.models.second={other}", "eval.top_k=5", f"eval.limit={QUERIES}",
            f"serve.searches_a_replica={AT_ONCE}", f"serve.waiting_searches={AT_ONCE}",
            "retrieval.shards=1", "cluster.rollout.memory_gib=1",  # Ray offers what is free when it starts
        ]  # fmt: skip
        config = load_config(REPOSITORY / "configs" / "toy.yaml", settings)
        write_other(config.model.policy, other)
        _, evaluated = evaluate(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start_agent(config, "127.0.0.1", port)
        queries = [one.task.query for one in evaluated]
        service = Served(f"http://127.0.0.1:{port}", config, evaluated, queries, other, {})
        for model in ("first", "second"):
            service.traces[model] = {query: trace(service.search(query, model=model)[1]) for query in queries}
        yield service
        serve.shutdown()


def write_other(policy: Path, folder: Path) -> None:
    """Write a policy in two shards that takes each colour for the next one, as sure of it as the first policy."""
    copy_processor(policy, folder)
    (folder / "config.json").write_bytes((policy / "config.json").read_bytes())
    weights = load_file(policy / "model.safetensors")
    table = weights["model.language_model.embed_tokens.weight"]
    words = AutoTokenizer.from_pretrained(policy).get_vocab()
    rows = [words[f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{colour}"] for colour in COLOURS]
    table[rows] = table[rows[1:] + rows[:1]]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: shards[i % 2] for i, name in enumerate(weights)}
    for shard in shards:
        part = {name: tensor for name, tensor in weights.items() if where[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
