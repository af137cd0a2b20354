"""The configuration: several files, overrides, and settings that contradict each other."""

import re
from pathlib import Path

import pytest

from vsr1.config import ConfigError, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_of_several_files_the_later_wins_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\ngrpo: {steps: 5, group_size: 3}\n")
    (tmp_path / "b.yaml").write_text("grpo: {steps: 7}\n")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["seed=2"])
    assert (config.seed, config.grpo.steps, config.grpo.group_size) == (2, 7, 3)
    with pytest.raises(ConfigError, match=r"config file .*c\.yaml does not exist"):
        load_config([tmp_path / "a.yaml", tmp_path / "c.yaml"])


def test_an_unknown_key_is_named_with_the_files_and_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("grpo: {step: 5}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: unknown key 'grpo\.step'; the nearest known key is 'grpo\.steps'"):
        load_config(tmp_path / "a.yaml")


def test_without_refinement_several_turns_need_the_exclusion_of_rejected_videos() -> None:
    load_config(None, ["agent.refinement=none"])
    with pytest.raises(ConfigError, match=r"exclude_rejected=true"):
        load_config(None, ["agent.refinement=none", "agent.exclude_rejected=false"])


@pytest.mark.parametrize("arm", sorted(path.name for path in (CONFIGS / "arms").glob("*.yaml")))
def test_every_arm_of_the_benchmark_is_a_valid_configuration(arm: str) -> None:
    config = load_config([CONFIGS / "toy-bench.yaml", CONFIGS / "arms" / arm])
    turns = [config.agent.max_turns, *(agent.get("max_turns") for agent in config.eval.agents.values())]
    assert config.grpo.evaluate_after and 3 in turns, "arms are compared at three turns"
    assert (config.agent.depth > 0) == (arm != "text.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.agents.fewer.max_turns=0", "eval.agents.fewer: max_turns: Input should be greater than or equal to 1"),
        ("eval.agents.fewer.max_turn=1", "eval.agents.fewer: unknown key 'max_turn'; the nearest known key is"),
        ("eval.agents.a/b.max_turns=1", "eval.agents: 'a/b' names files"),
    ],
)
def test_further_agents_are_checked_when_the_config_is_read(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, [override])


def test_served_models_have_names_of_their_own() -> None:
    config = load_config(None, ["model.policy=/a", "serve.model=first", "serve.models.second=/b"])
    assert config.served_models == {"first": Path("/a"), "second": Path("/b")}
    with pytest.raises(ConfigError, match=r"'first' names model\.policy already"):
        load_config(None, ["serve.model=first", "serve.models.first=/b"])
    with pytest.raises(ConfigError, match="'a b' cannot name a model"):
        load_config(None, ["serve.model=a b"])
