"""What an engine refuses before it starts, with what to change."""

import asyncio
from pathlib import Path

import pytest

from vsr1.engine import plugin
from vsr1.engine.engine import PolicyEngine
from vsr1.model.checkpoint import CheckpointError
from vsr1.settings.parts import EngineConfig

POLICY = Path(__file__).parents[2] / "checkpoints/toy/policy"


def test_longer_sequences_than_the_policy_was_made_for() -> None:
    with pytest.raises(CheckpointError, match=r"max_model_len=6144, and the policy in .* sequences of 4096 tokens"):
        asyncio.run(PolicyEngine.start(POLICY, EngineConfig(max_model_len=6144)))


def test_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "entry_points", lambda group: [])
    with pytest.raises(RuntimeError, match=r"not installed in this Python: `pip install --no-deps -e \.`"):
        asyncio.run(PolicyEngine.start(POLICY, EngineConfig()))
