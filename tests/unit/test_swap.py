"""What may replace the weights of an engine that runs, and how the rest is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vsr1.model.checkpoint import CheckpointError
from vsr1.model.replacement import replacing_files

POLICY = Path(__file__).parents[2] / "checkpoints" / "toy" / "policy"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POLICY, tmp_path / "other"))


def test_other_values_and_what_says_nothing_about_the_model_may_differ(other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert replacing_files(other, POLICY) == [other / "model.safetensors"]


def test_every_difference_is_listed(other: Path) -> None:
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    rows, width = weights[name].shape
    weights[name] = torch.cat([weights[name], weights[name][:1]])
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["vocab_size"] = rows + 1
    (other / "config.json").write_text(json.dumps(config))
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="as a model of its own") as refused:
        replacing_files(other, POLICY)
    said = str(refused.value)
    assert f"{name}: [{rows + 1}, {width}] instead of [{rows}, {width}]" in said
    assert said.endswith("config.json differs; tokenizer.json differs")
