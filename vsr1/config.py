"""The one typed configuration of every job: what a run reads, trains and places where.

YAML files and `key=value` overrides are merged and checked against `Config`. An unknown key is an error that names the
nearest known one, and a key that was renamed is read under its new name, so that the configurations of old run folders
stay readable. Nothing is read from environment variables.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from yaml import YAMLError, safe_load
from yaml.reader import ReaderError

from vsr1.settings.data import DataConfig, ToyConfig
from vsr1.settings.navigate import NavigateConfig
from vsr1.settings.parts import (
    AbsolutePath,
    AgentConfig,
    ClusterConfig,
    FleetConfig,
    ModelConfig,
    RetrievalConfig,
    RolloutConfig,
    Section,
    Seed,
    StorageConfig,
)
from vsr1.settings.serving import ServeConfig
from vsr1.settings.training import EvalConfig, GrpoConfig, RewardConfig, SftConfig, TrackingConfig
from vsr1.storage import cache_at

RENAMED = {  # old key to new key
    "sft.retrieval_loss.negatives": "sft.negatives",
    "grpo.retrieval_loss.negatives": "grpo.negatives",
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the place and the fix."""


class Config(Section):
    environment: Literal["search", "navigate", "search_then_navigate"] = Field(
        "search",
        description="search: moments in a corpus; navigate: answers inside one long film; search_then_navigate: "
        "moments in a corpus, whose long videos are navigated before they are judged",
    )
    seed: Seed = 0
    run_dir: AbsolutePath = Path("runs/run")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    rewards: RewardConfig = RewardConfig()
    tracking: TrackingConfig = TrackingConfig()
    agent: AgentConfig = AgentConfig()
    navigate: NavigateConfig = NavigateConfig()
    rollout: RolloutConfig = RolloutConfig()
    fleet: FleetConfig = FleetConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig = StorageConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()
    toy: ToyConfig = ToyConfig()

    @property
    def served_models(self) -> dict[str, Path]:
        """Policy checkpoints that are served, by name; the first is the default."""
        return {self.serve.model: self.model.policy, **self.serve.models}

    @model_validator(mode="wrap")
    @classmethod
    def _urls_have_places(cls, values: Any, read: ModelWrapValidatorHandler[Config]) -> Config:
        storage = values.get("storage") if isinstance(values, dict) else None
        folder = storage.get("cache") if isinstance(storage, dict) else getattr(storage, "cache", None)
        with cache_at(Path(folder) if isinstance(folder, (str, Path)) else None):
            return read(values)

    @model_validator(mode="after")
    def _reply_fits_the_context(self) -> Config:
        if self.agent.max_new_tokens >= self.rollout.engine.max_model_len:
            raise ValueError(
                f"agent.max_new_tokens={self.agent.max_new_tokens} leaves no room for a prompt in "
                f"rollout.engine.max_model_len={self.rollout.engine.max_model_len}"
            )
        return self

    @model_validator(mode="after")
    def _navigation_refines_nothing(self) -> Config:
        if self.environment == "navigate" and self.agent.refinement != "none":
            raise ValueError(
                f"environment=navigate has no query to refine, but agent.refinement={self.agent.refinement}; take "
                "agent.refinement=none"
            )
        return self

    @model_validator(mode="after")
    def _prompts_that_grow_have_no_length(self) -> Config:
        limits = {"sft": self.sft.max_prompt_tokens, "grpo": self.grpo.max_prompt_tokens}
        for stage, limit in limits.items():
            if self.environment != "search" and limit is not None:
                raise ValueError(
                    f"{stage}.max_prompt_tokens={limit} is the length of one prompt, but with "
                    f"environment={self.environment} a prompt grows with each call; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _films_have_true_seconds(self) -> Config:
        if self.environment == "search_then_navigate" and self.data.timestamps != "true_seconds":
            raise ValueError(
                f"environment=search_then_navigate navigates films by their seconds, but data.timestamps="
                f"{self.data.timestamps}; take data.timestamps=true_seconds"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_travel(self) -> Config:
        if self.model.device == "cpu" and self.rollout.transfer != "file":
            raise ValueError(
                f"rollout.transfer={self.rollout.transfer} works between GPUs; with model.device=cpu take "
                "rollout.transfer=file"
            )
        return self

    @model_validator(mode="after")
    def _evaluated_agents_are_agents(self) -> Config:
        for name, changes in self.eval.agents.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ValueError(f"eval.agents: {name!r} names files; use letters, digits, '_', '.' and '-'")
            try:
                AgentConfig.model_validate(self.agent.model_dump() | changes)
            except ValidationError as error:
                raise ValueError(f"eval.agents.{name}: " + "; ".join(_explain(e, "") for e in error.errors())) from None
        return self


def load_config(path: Path | str | Sequence[Path] | None, overrides: list[str] | None = None) -> Config:
    """Read YAML files, apply `section.key=value` overrides and validate.

    Args:
        path: YAML file, or several of which later ones win key by key, or None for the defaults.
        overrides: OmegaConf dot-list entries; later ones win.

    Raises:
        ConfigError: missing or malformed file, unknown key (with the nearest known one), old and new name of one key
            together, or a value of the wrong type.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else list(path or [])
    for file in paths:
        if not file.exists():
            raise ConfigError(f"config file {file} does not exist")
    where = ", ".join(str(file) for file in paths)
    for entry in overrides or []:
        if "=" not in entry:
            raise ConfigError(f"override {entry!r} is not of the form section.key=value")
    # Under a partly given section lie its own defaults; `data.splits` follows what else is given.
    defaults = Config().model_dump(mode="json", exclude={"data": {"splits"}})
    try:
        trees = [with_new_names(_read(file), f"{file}: ") for file in paths]
        trees.append(
            with_new_names(OmegaConf.from_dotlist([_whole(entry) for entry in overrides or []]), "overrides: ")
        )
        for source, given in zip([*map(str, paths), "overrides"], trees, strict=True):
            _check_sections(defaults, OmegaConf.to_container(given), source)
        tree = OmegaConf.merge(OmegaConf.create(defaults), *trees)
        values = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ConfigError(f"{where or 'overrides'}: {' '.join(str(error).split())}") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, where) for item in error.errors())) from error


def _whole(entry: str) -> str:
    """Return an override whose text YAML takes as it is: a shell leaves no comments, so a # belongs to a text."""
    key, _, text = entry.partition("=")
    is_text = " #" in text and text.strip()[:1] not in ("'", '"') and isinstance(safe_load(text), str)
    return f"{key}={json.dumps(text, ensure_ascii=False)}" if is_text else entry


def _check_sections(defaults: dict[str, Any], given: Any, source: str, above: str = "") -> None:
    """Raise a `ConfigError` for a list where a section is needed, or the other way round: they cannot be merged."""
    for name, value in given.items():
        key, default = f"{above}{name}", defaults.get(name)
        if isinstance(default, dict) and isinstance(value, dict):
            _check_sections(default, value, source, f"{key}.")
        elif isinstance(default, (dict, list)) and isinstance(value, (dict, list)) and type(default) is not type(value):
            needed = f"{key}.NAME=VALUE" if isinstance(default, dict) else f"{key}=[VALUE]"
            raise ConfigError(f"{source}: {key}: {value!r} is of another kind than is needed; write {needed}")


def _read(file: Path) -> DictConfig:
    """Return the tree of a file; YAML finds out by itself whether it is UTF-8 or UTF-16."""
    try:
        with file.open("rb") as stream:
            tree = OmegaConf.load(stream)
    except ReaderError as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}; save the file as UTF-8 text") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{file}: a mapping of sections is needed, as in `sft: {{epochs: 1}}`")
    return tree


def config_values(file: Path) -> dict[str, Any]:
    """Return the settings of a file under their present names, unchecked."""
    values: Any = OmegaConf.to_container(with_new_names(_read(file), f"{file}: "))
    return dict(values)


def with_new_names(tree: DictConfig, where: str = "", renamed: Mapping[str, str] = RENAMED) -> Any:
    """Return the OmegaConf tree of one source with each key that was renamed under its new name.

    Args:
        where: names the source in front of an error's message.
        renamed: new key by old key, both as `section.key`.

    Raises:
        ConfigError: the source holds a key under both names.
    """
    values, moved = OmegaConf.to_container(tree), OmegaConf.create()
    for old, new in renamed.items():
        section, name = _place(values, old)
        if name not in section:
            continue
        new_section, new_name = _place(values, new)
        if new_name in new_section:
            raise ConfigError(f"{where}{old} is the old name of {new}, and both are there; keep {new} only")
        OmegaConf.update(moved, new, section.pop(name))
    return OmegaConf.merge(values, moved) if moved else tree


def _place(values: Any, key: str) -> tuple[dict[str, Any], str]:
    """Return the section of nested settings that holds a key, empty if there is none, and the key's name in it."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.get(section) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}, name


def dump_config(config: Config) -> str:
    """Return the resolved configuration as YAML text that `load_config` reads back to an equal value."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _explain(error: Any, files: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    where = f"{files}: " if files else ""
    if error["type"] != "extra_forbidden":
        value = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
        fix = ""
        if error["input"] is None:
            fix = "; leave the key out to have the default"
        elif error["type"] in ("tuple_type", "list_type"):
            fix = f"; write a list, as in {key}=[{error['input']}]"
        return f"{where}{key or 'config'}: {error['msg'].removeprefix('Value error, ')}{value}{fix}"
    nearest = difflib.get_close_matches(key, _known_keys(Config), n=1, cutoff=0.0)[0]
    return f"{where}unknown key {key!r}; the nearest known key is {nearest!r}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
