"""A Ray head for jobs, a tiny random policy of the real architecture with clips for it, and a corpus to build."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from playwright.sync_api import Browser, expect, sync_playwright
from safetensors.torch import load_file, save_file

from bench.toy.models import write_random_models
from bench.toy.tokenizer import train_tokenizer, vocabulary_texts
from pipelines.data.build import ensure_dataset
from vsr1.config import load_config
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.checkpoint import refine_token_id
from vsr1.model.processor import ClipProcessor
from vsr1.toy.corpus import write_toy_corpus
from vsr1.video.clips import Clip, write_clip
from vsr1.video.decode import SampledVideo

from .chromium import FLAGS, find_chromium

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
expect.set_options(timeout=30_000)  # a page waits for an engine on a busy machine


@dataclass(frozen=True)
class LocalHead:
    """A running head.

    Attributes:
        env: the process environment of a client: addresses and token.
        gcs: host:port for `ray.init`.
    """

    env: dict[str, str]
    gcs: str

    def submit(self, working_dir: Path, *entrypoint: str, limit_s: float = 500) -> subprocess.CompletedProcess[str]:
        """`ray job submit` and wait for the end; stdout holds the log of the job."""
        command = [RAY, "job", "submit", "--working-dir", str(working_dir), "--", *entrypoint]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=limit_s)


def read_env_file(path: Path) -> dict[str, str]:
    pairs = (shlex.split(line)[1].split("=", 1) for line in path.read_text().splitlines())
    return {name: value for name, value in pairs}


@contextmanager
def start_head() -> Iterator[LocalHead]:
    """The head of `cluster/local_head.sh` on free ports; afterwards all that it started is gone."""
    # Not pytest's tmp_path: Ray's socket paths under it would be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vsr1-", dir="/tmp") as folder:
        log = Path(folder) / "local_head.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("w") as output:
            script = subprocess.Popen(
                [str(REPOSITORY / "cluster" / "local_head.sh"), "--temp-dir", folder, "--num-cpus", "2"],
                env=os.environ | {"PATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started: list[psutil.Process] = []
        try:
            env_file, deadline = Path(folder) / "head.env", time.monotonic() + 90
            while not env_file.exists():
                assert script.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            variables = read_env_file(env_file)
            yield LocalHead(os.environ | {"PATH": path} | variables, variables["RAY_ADDRESS"])
            started = psutil.Process(script.pid).children(recursive=True)
        finally:
            script.send_signal(signal.SIGTERM)
            script.wait(timeout=60)
        _, left = psutil.wait_procs(started, timeout=15)
        for process in left:
            process.kill()
        assert not left, f"the head left processes behind: {left}"


@pytest.fixture(scope="session")
def own_head() -> Callable[[], AbstractContextManager[LocalHead]]:
    """Starts a head for a `with`."""
    return start_head


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """A random policy that often samples the refine token: its row in the tied table is made long."""
    folder, _ = write_random_models(tmp_path_factory.mktemp("models"), train_tokenizer(vocabulary_texts(0, 200)))
    path = folder / "model.safetensors"
    weights = load_file(path)
    token = refine_token_id(ClipProcessor(folder).tokenizer)
    weights["model.language_model.embed_tokens.weight"][token] *= -15  # this way round it is likely
    for name, tensor in weights.items():
        if "visual" in name and tensor.ndim == 2:
            tensor *= 3  # so that a difference in vision features shows
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def clips():
    rng = np.random.default_rng(0)
    return [
        Clip.make(f"v{i}", rng.integers(0, 255, (count, side, 64, 3), dtype=np.uint8), np.arange(count) * 1.3)
        for i, (count, side) in enumerate([(16, 64), (24, 64), (10, 96)])
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The folder of a toy corpus of six training videos and four test videos, before it is built; copy it."""
    root = tmp_path_factory.mktemp("corpus") / "toy"
    write_toy_corpus(root, 6, 4, 0)
    return root


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory, own_ray: Callable[[], AbstractContextManager[None]]) -> Path:
    """A built toy dataset of 16 training, 4 validation and 24 test videos, for all workers; copy it to change it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    options = [f"data.root={shared / 'toy'}", "toy.train=16", "toy.val=4", "toy.test=24"]
    config = load_config(REPOSITORY / "configs" / "toy.yaml", options)
    with FileLock(shared / "toy.lock"):
        if not DatasetFolder(config.data.root).sft_records().is_file():
            with own_ray():
                ensure_dataset(config)
    return config.data.root


@pytest.fixture(scope="session")
def pool():
    """Seven pairs of a pool, right and wrong in turn, of queries `query 0` to `query 6`."""
    return [
        {
            "pair_id": f"p{i}", "query": f"query {i}", "gold_label": "not_match" if i % 2 else "match",
            "top1_video_id": f"v{i % 3}", "gt_start": 1.0, "gt_end": 4.0,
        }
        for i in range(7)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def clip_rows():
    """Writes the three clips that `pool` shows into a folder and returns their rows of `meta.jsonl`."""

    def write(folder):
        rows = []
        for i in range(3):
            frames = np.random.default_rng(i).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
            times = np.arange(4) * 1.3
            sampled = SampledVideo(frames, times, [0, 1, 2, 3], 4, 5.2, 0.77, [0, 1, 2, 3], False, 4)
            source = folder / f"v{i}.mp4"
            rows.append(write_clip(folder, f"v{i}", sampled, source=source, target_fps=1.0, max_frames=4))
        return rows

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield chromium
        chromium.close()
