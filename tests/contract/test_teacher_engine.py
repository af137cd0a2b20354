"""The teacher in vLLM engines of a Ray Data pool: real vLLM on a tiny model that spells one sentence, or babbles."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from actors.tools import ToolRouter
from pipelines.data.manifest import BuildError
from pipelines.data.teacher.reasoning import TeacherOutcome, write_reasoning
from vsr1.config import Config
from vsr1.formats.atomic import read_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.processor import ClipProcessor
from vsr1.navigate.calls import ToolCall
from vsr1.navigate.tree import ClipTree
from vsr1.navigate.video_films import VideoFilms
from vsr1.settings.navigate import CaptionerConfig, ToolsConfig
from vsr1.toy.render import encode_mp4
from vsr1.toy.world import Event, Film
from vsr1.video.clips import write_meta

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPELT = "Reasoning: red ring up"


@pytest.fixture
def folder(tmp_path: Path, clip_rows: Callable[[Path], list[dict[str, Any]]]) -> DatasetFolder:
    dataset = DatasetFolder(tmp_path / "data")
    write_meta(dataset.clips("train"), clip_rows(dataset.clips("train")))
    return dataset


@pytest.fixture
def model(policy_folder: Path, tmp_path: Path) -> Path:
    """An ordinary Qwen3-VL, the policy without its heads, whose next token depends on the last one alone.

    After the line break that opens a reply it spells `SPELT`. Its chat markup gives query 2 the first letters, from
    which it goes on, and query 4 the beginning of a thought.
    """
    folder = Path(shutil.copytree(policy_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.part")))
    tokenizer = ClipProcessor(folder).tokenizer
    chain = [*tokenizer.encode("\n" + SPELT, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    read = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in read.items() if not name.startswith("refine_")}
    words = weights["model.language_model.embed_tokens.weight"]
    words[chain] = torch.eye(len(chain), words.shape[1])
    output = torch.zeros_like(words)
    for token, following in pairwise(chain):
        output[following] = 10 * words[token]
    for name, tensor in weights.items():
        if "language_model" in name and ("o_proj" in name or "down_proj" in name):
            tensor.zero_()
    save_file(weights | {"lm_head.weight": output}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    opening = "{% set asked = messages[1].content[0].text %}<|im_start|>assistant\n"
    opening += "{% if 'query 2' in asked %}Re{% elif 'query 4' in asked %}<think>\n{% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant\n", opening)
    tokenizer.save_pretrained(folder)
    return folder


def ask(folder: DatasetFolder, pool: list[dict[str, Any]], model: Path, **teacher: Any) -> TeacherOutcome:
    settings = {"kind": "vllm", "folder": model, "dtype": "float32", "max_tokens": 24, "batch": 4, "attempts": 2,
                "engine": {"max_model_len": 1024}}  # fmt: skip
    config = Config.model_validate({"data": {"root": folder.root, "teacher": settings | teacher}})
    return write_reasoning(folder, pool, config, lambda text: None)


def test_good_replies_become_rows_and_others_are_listed(
    folder: DatasetFolder, pool: list[dict[str, Any]], model: Path
) -> None:
    outcome = ask(folder, pool, model, temperature=1.0, max_failed_fraction=0.5)
    good = [pair for i, pair in enumerate(pool) if i not in (2, 4)]
    assert outcome.rows == read_lines(folder.reasoning())
    assert len(read_lines(folder.reasoning_journal())) == len(good)
    for pair, row in zip(good, outcome.rows, strict=True):
        assert (row["pair_id"], row["model_label"]) == (pair["pair_id"], pair["gold_label"])
        assert row["model_reasoning"] == SPELT.removeprefix("Reasoning: ")
        assert (row["model_raw_response"], row["model_finish_reason"]) == (SPELT, "stop")
    unled, thought = read_lines(folder.reasoning_failures())
    assert (unled["pair_id"], thought["pair_id"]) == ("p2", "p4") == tuple(outcome.failed)
    assert "0 lines that start with 'Reasoning:'" in unled["error"]
    assert unled["model_raw_response"] == SPELT.removeprefix("Re")
    assert (thought["model_raw_response"], thought["error"]) == (SPELT, "the reply ends inside its thinking")
    (model / "model.safetensors").unlink()  # no engine can start: what is finished is not asked again
    assert ask(folder, good, model, temperature=1.0).rows == outcome.rows


def test_the_same_engine_describes_the_parts_of_films(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    encode_mp4(Film("film", 16, (Event(0, 16, "red", "ring", "up"),), seed=1), path)
    captioner = CaptionerConfig.model_validate(
        {"kind": "vllm", "folder": model, "dtype": "float32", "max_tokens": 24, "frames": 2, "max_pixels": 4096,
         "engine": {"max_model_len": 1024}}
    )  # fmt: skip
    films = VideoFilms({"film": (path, ClipTree.of(16.0))}, captioner, 2, 4096, "cpu")
    router = ToolRouter.remote(films, ToolsConfig(captioner=captioner, deadline_s=30), tmp_path / "answers")
    try:
        calls = [ToolCall("film", "caption", (part,)) for part in (1, 2, 3)]
        results = ray.get([router.use.remote(call) for call in calls])
        assert [result.text for result in results] == [SPELT] * 3
        assert all(result.visual_tokens > 4 for result in results)
        costs = ray.get(router.costs.remote())["caption"]
        assert (costs["asked"], costs["failed"]) == (3, 0)
    finally:
        ray.kill(router)


def test_a_folder_without_a_checkpoint_is_refused_at_once(folder: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"data\.teacher\.folder=.*nowhere is no checkpoint folder"):
        ask(folder, [], tmp_path / "nowhere")
