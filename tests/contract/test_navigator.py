"""The shipped navigator finds its way in new films of the long toy world: a whole evaluation with the real engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)


def test_the_shipped_navigator_answers_questions_about_new_films(tmp_path: Path) -> None:
    settings = [
        f"run_dir={tmp_path / 'run'}", f"data.root={tmp_path / 'data'}", "model.policy=checkpoints/toy/navigate",
        "data.splits=[test]", "toy.train=2", "toy.val=0", "toy.test=10", "navigate.toy_minutes=[12,120]",
        "navigate.eval_budgets=[2,16]", "seed=5",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pipelines", "eval", "-c", "configs/navigate.yaml", *settings]
    subprocess.run(command, cwd=ROOT, check=True)
    summary = json.loads((tmp_path / "run/eval.json").read_text())
    budgets = summary["budgets"]
    assert summary["failed"] == {} and {at["questions"] for at in budgets.values()} == {10}
    assert budgets["16"]["accuracy"] >= 0.9 and 5 < budgets["16"]["calls"] < 11
    assert budgets["2"]["accuracy"] < 0.6, "with two calls nobody knows which branch is the right one"
