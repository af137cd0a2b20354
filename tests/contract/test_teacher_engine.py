"""The teacher in vLLM engines of a Ray Data pool: tiny models on real vLLM, one that babbles and one that can spell."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.data_manifest import BuildError
from pipelines.data_teacher import TeacherOutcome, failures_file, log_file, write_reasoning
from vsr1.config import Config
from vsr1.formats.clips import write_meta
from vsr1.formats.dataset import DatasetFolder
from vsr1.video.processor import ClipProcessor

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPELT = "Reasoning: red ring up"


@pytest.fixture
def folder(tmp_path: Path, clip_rows: Callable[[Path], list[dict[str, Any]]]) -> DatasetFolder:
    dataset = DatasetFolder(tmp_path / "data")
    write_meta(dataset.clips("train"), clip_rows(dataset.clips("train")))
    return dataset


@pytest.fixture
def babbler(policy_folder: Path, tmp_path: Path) -> Path:
    """The random policy without its heads: an ordinary Qwen3-VL."""
    target = Path(shutil.copytree(policy_folder, tmp_path / "babbler", ignore=shutil.ignore_patterns("*.part")))
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("refine_")}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def speller(babbler: Path) -> Path:
    """Its blocks add nothing to the words, and its output table takes each token of `SPELT` to the next one."""
    tokenizer = ClipProcessor(babbler).tokenizer
    chain = [*tokenizer.encode("\n" + SPELT, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    weights = load_file(babbler / "model.safetensors")
    words = weights["model.language_model.embed_tokens.weight"]
    words[chain] = torch.eye(len(chain), words.shape[1])
    output = torch.zeros_like(words)
    for token, following in pairwise(chain):
        output[following] = words[token]
    for name, tensor in weights.items():
        if "language_model" in name and ("o_proj" in name or "down_proj" in name):
            tensor.zero_()
    save_file(weights | {"lm_head.weight": output}, babbler / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((babbler / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (babbler / "config.json").write_text(json.dumps(config))
    return babbler


def ask(folder: DatasetFolder, pool: list[dict[str, Any]], model: Path, **teacher: Any) -> TeacherOutcome:
    settings = {"kind": "vllm", "folder": model, "dtype": "float32", "max_tokens": 24, "batch": 4, "attempts": 2,
                "engine": {"max_model_len": 1024}}  # fmt: skip
    config = Config.model_validate({"data": {"root": folder.root, "teacher": settings | teacher}})
    return write_reasoning(folder, pool, config, lambda text: None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_babble_is_listed_and_never_a_row(folder: DatasetFolder, pool: list[dict[str, Any]], babbler: Path) -> None:
    outcome = ask(folder, pool, babbler, temperature=1.0, max_failed_fraction=1.0)
    assert outcome.rows == rows_of(folder.reasoning()) == rows_of(log_file(folder)) == []
    listed = rows_of(failures_file(folder))
    assert [row["pair_id"] for row in listed] == list(outcome.failed) == [pair["pair_id"] for pair in pool]
    for row in listed:
        assert "Reasoning:" in row["error"] or "finish reason" in row["error"]
        assert row["model_finish_reason"] in ("stop", "length")
    assert len({row["model_raw_response"] for row in listed}) > 1, "other prompts and clips, the same babble"


def test_a_good_reply_becomes_the_row_of_its_pair(
    folder: DatasetFolder, pool: list[dict[str, Any]], speller: Path
) -> None:
    outcome = ask(folder, pool, speller, temperature=0.0)
    assert not outcome.failed
    assert [row["pair_id"] for row in outcome.rows] == [pair["pair_id"] for pair in pool]
    for pair, row in zip(pool, outcome.rows, strict=True):
        assert row["model_reasoning"] == SPELT.removeprefix("Reasoning: ")
        assert (row["model_raw_response"], row["model_finish_reason"]) == (SPELT, "stop")
        assert row["model_label"] == pair["gold_label"]
    (speller / "model.safetensors").unlink()  # an engine could not start: nothing is asked again
    assert ask(folder, pool, speller, temperature=0.0) == outcome


def test_a_folder_without_a_checkpoint_is_refused_at_once(folder: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"data\.teacher\.folder=.*nowhere is no checkpoint folder"):
        ask(folder, [], tmp_path / "nowhere")
