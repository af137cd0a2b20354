"""Stage 1 goes on from where it was stopped, to the bit, and says which rank stopped it.

What a run does that has ended is in `run/test_stages.py`.
"""

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from bench.toy.models import HIDDEN, write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from pipelines.train import sft
from vsr1.config import Config
from vsr1.formats.atomic import write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.runs.scalars import read_scalars
from vsr1.runs.state import StateFolder
from vsr1.video.clips import write_meta

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]
STEPS, SAVED, RECORDS = 6, 3, 24
REPLY = "<think> 0 red circle. not found. </think> <answer>not_matched</answer> <REFINE>"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clip_rows) -> Path:
    """Random models and the few files of a dataset that Stage 1 reads."""
    root = tmp_path_factory.mktemp("world")
    write_random_models(root, train_tokenizer(vocabulary_texts(0, 200)))
    data = DatasetFolder(root / "data")
    data.clips("train").mkdir(parents=True)
    write_meta(data.clips("train"), clip_rows(data.clips("train")))
    data.video_embeddings("train").parent.mkdir(parents=True)
    np.save(data.video_embeddings("train"), np.random.default_rng(0).normal(size=(3, HIDDEN)).astype(np.float32))
    write_json(data.docid2row("train"), {f"v{i}": i for i in range(3)})
    write_json(data.hard_negatives(), {f"q{i}": [f"v{(i + 2) % 3}"] for i in range(RECORDS)})
    write_json(
        data.sft_records(),
        [
            {
                "qid": f"q{i}", "query": f"a red circle {i}", "messages": [{"role": "assistant", "content": REPLY}],
                "meta": {"video_id": f"v{i % 3}", "query_pos_video_id": f"v{(i + i % 2) % 3}"},
            }
            for i in range(RECORDS)
        ],
    )  # fmt: skip
    return root


def _config(world: Path, run: str, **learner: object) -> Config:
    return Config.model_validate(
        {
            "run_dir": world / run,
            "data": {"root": world / "data"},
            "model": {"policy": world / "policy", "embedder": world / "embedder"},
            "agent": {"latents": 2},
            "sft": {
                "learner": {"ranks": 2, "learning_rate": 1e-3, **learner},
                "batch_size": 4,
                "max_steps": STEPS,
                "save_every": SAVED,
            },
        }
    )


@pytest.fixture(scope="module")
def whole(world: Path, ray_cluster: None) -> Path:
    """The checkpoint of a run that nobody stopped."""
    return sft.train(_config(world, "whole"))


def _kill_a_rank(run: Path) -> None:
    """Kill a worker of Ray Train once the run has a state."""
    while not (run / "state" / "sft" / f"step-{SAVED}").exists():
        time.sleep(0.02)
    ours = psutil.Process().children(recursive=True)
    next(process for process in ours if "RayTrainWorker" in _command(process)).kill()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@pytest.mark.chaos
def test_a_stopped_run_ends_in_the_same_bits(world: Path, whole: Path) -> None:
    config = _config(world, "stopped")
    killer = threading.Thread(target=_kill_a_rank, args=(config.run_dir,))
    killer.start()
    with pytest.raises(sft.SftError, match=r"stopped\. learner rank [01]: The actor is dead") as stopped:
        sft.train(config)
    assert "goes on from the last saved state" in str(stopped.value)
    killer.join()
    assert not (config.run_dir / "checkpoints").exists()
    step, _ = StateFolder(config.run_dir / "state" / "sft").newest()
    assert step == SAVED
    end = sft.train(config)
    wanted, found = (load_file(folder / "model.safetensors") for folder in (whole, end))
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not wanted[name].equal(found[name])] == []

    def losses(run: str) -> dict:
        rows = read_scalars(world / run / "scalars.jsonl")
        return {row["step"]: row["value"] for row in rows if row["name"] == "token_loss"}

    assert losses("stopped") == losses("whole") and len(losses("whole")) == STEPS
