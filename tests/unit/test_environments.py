"""Every environment that a configuration can name is described, for the stages and for training."""

from typing import get_args

import pytest

from pipelines.train.environments import training_of
from vsr1.config import Config
from vsr1.environments.registry import ENVIRONMENTS, environment_of

NAMES = get_args(Config.model_fields["environment"].annotation)


def test_each_name_has_its_description():
    assert set(ENVIRONMENTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_an_environment_needs_is_described(name, tmp_path):
    config = Config.model_validate(
        {"environment": name, "agent": {"refinement": "none"}, "data": {"root": tmp_path}},
    )
    spec = environment_of(config)
    assert spec.has_corpus or spec.has_films
    assert spec.rewards(config).terms and not spec.is_built(config)
    assert spec.sft_file(config) != spec.training_file(config)
    assert training_of(config).shown
    with pytest.raises(FileNotFoundError, match="is missing"):
        spec.training_rows(config)


def test_settings_of_the_other_stage_do_not_count():
    config = Config.model_validate({"environment": "navigate", "agent": {"refinement": "none"}})
    training, evaluation = (environment_of(config).settings(config, flag)["navigate"] for flag in (True, False))
    assert training.keys() ^ evaluation.keys() == {"budgets", "eval_budgets"} and "pools" not in training
    assert len(environment_of(config).vectors(config).matrix) == 0
