"""Searches on a GPU are compared: with a FAISS that has but the names of one for GPUs, on a GPU that is declared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .faiss_folder import write_faiss

pytestmark = pytest.mark.measured
SMALL = ["--videos", "600", "--dim", "16", "--batch", "8", "--shards", "2", "--rounds", "2", "--singles", "3"]


def measured(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "retrieval", *SMALL, *options]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=240)


def test_ours_and_plain_faiss_are_timed_on_cpu_and_gpu_in_one_line(tmp_path: Path) -> None:
    write_faiss(tmp_path, on_gpus=True)
    result = measured("--gpu", "--faiss", str(tmp_path), RAY_OVERRIDE_RESOURCES='{"GPU": 1}')
    assert result.returncode == 0, result.stderr
    [row] = [line for line in result.stdout.splitlines() if line.startswith("{")]
    figures = json.loads(row)
    assert figures["same_results"]
    ways = ("faiss", "service", "gpu_faiss", "gpu_service")
    assert all(figures[f"{way}_queries_per_s"] > 0 and figures[f"{way}_p50_ms"] > 0 for way in ways)
    assert figures["gpu_service_to_faiss"] > 0
