"""What is imported where: only processes that hold a model pay for torch and its friends."""

import subprocess
import sys

LIGHT = (
    "actors.learner",
    "actors.rollout",
    "pipelines.cli",
    "pipelines.machine.nodes",
    "pipelines.machine.placement",
    "pipelines.stage.connection",
    "pipelines.stage.workers",
    "pipelines.serve.deploy",
    "pipelines.serve.library.library",
    "vsr1.versions",
)
HEAVY = {"torch", "transformers", "vllm", "deepspeed"}


def test_who_starts_models_holds_none() -> None:
    code = f"import {', '.join(LIGHT)}, sys; print(*{HEAVY!r} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout.strip()) == (0, ""), process.stderr
