"""The configuration: several files, overrides, and settings that contradict each other."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vsr1.config import RENAMED, Config, ConfigError, load_config, with_new_names

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


TABLE = {"sft.batch_size": "sft.examples", "seed": "data.random.seed"}  # a table of its own, to keep for ever


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("{sft: {batch_size: 3, epochs: 2}}", {"sft": {"epochs": 2, "examples": 3}}),
        ("{seed: 7}", {"data": {"random": {"seed": 7}}}),
        ("{seed: 7, data: {root: /d}}", {"data": {"root": "/d", "random": {"seed": 7}}}),
        ("{sft: {batch_size: '${eval.limit}'}}", {"sft": {"examples": "${eval.limit}"}}),
        ("{sft: {examples: 3}}", {"sft": {"examples": 3}}),
        ("{sft: null, grpo: {steps: 1}}", {"sft": None, "grpo": {"steps": 1}}),
        ("{}", {}),
    ],
)
def test_a_key_that_was_renamed_is_read_under_its_new_name(text: str, new: dict[str, object]) -> None:
    assert OmegaConf.to_container(with_new_names(OmegaConf.create(text), renamed=TABLE)) == new


def test_old_and_new_name_of_a_key_together_are_an_error_that_names_both() -> None:
    tree = OmegaConf.create({"sft": {"batch_size": 3, "examples": 3}})
    message = "a.yaml: sft.batch_size is the old name of sft.examples, and both are there; keep sft.examples only"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        with_new_names(tree, "a.yaml: ", TABLE)


def test_files_and_overrides_may_use_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED, "sft.examples", "sft.batch_size")
    (tmp_path / "old.yaml").write_text("sft: {examples: 6}\n")
    (tmp_path / "new.yaml").write_text("sft: {batch_size: 4}\n")
    (tmp_path / "both.yaml").write_text("sft: {examples: 6, batch_size: 4}\n")

    def batch_size(names: list[str], *overrides: str) -> int:
        return load_config([tmp_path / name for name in names], list(overrides)).sft.batch_size

    assert batch_size(["old.yaml"]) == batch_size(["new.yaml", "old.yaml"]) == 6
    assert batch_size(["old.yaml", "new.yaml"]) == batch_size(["old.yaml"], "sft.batch_size=4") == 4
    assert batch_size(["new.yaml"], "sft.examples=8") == 8
    with pytest.raises(ConfigError, match=r"both\.yaml: sft\.examples is the old name of sft\.batch_size"):
        batch_size(["both.yaml"])
    with pytest.raises(ConfigError, match=r"^overrides: sft\.examples is the old name of sft\.batch_size"):
        batch_size([], "sft.examples=6", "sft.batch_size=4")


def test_renamed_keys_lead_to_keys_that_there_are() -> None:
    tree = OmegaConf.create(Config().model_dump(mode="json"))
    for old, new in RENAMED.items():
        assert OmegaConf.select(tree, new) is not None and OmegaConf.select(tree, old) is None


def test_the_configuration_of_an_old_run_is_read(tmp_path: Path) -> None:
    """As it was written with all keys, before negatives were settings of the stages."""
    tree = OmegaConf.create(Config().model_dump(mode="json"))
    for stage, count in {"sft": 7, "grpo": 9}.items():
        tree[stage].retrieval_loss.negatives = count
        del tree[stage]["negatives"]
    OmegaConf.save(tree, tmp_path / "config.yaml")
    old = load_config(tmp_path / "config.yaml", ["grpo.retrieval_loss.negatives=5"])
    assert (old.sft.negatives, old.grpo.negatives) == (7, 5)


@pytest.mark.parametrize("text", ["- 1\n", "3\n"])
def test_a_file_that_holds_no_sections_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: "):
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_dir: runs/José\n".encode("latin-1"), "save the file as UTF-8 text"),
        ("seed: 3\n".encode("utf-16-le"), "save the file as UTF-8 text"),  # without a mark that says so
        (b"- seed: 3\n", "a mapping of sections is needed"),
        (b"seed: 3\nseed: 4\n", "found duplicate key seed"),
        (b"seed: 3\n---\nseed: 4\n", "but found another document"),
        (b"grpo:\n\tsteps: 3\n", "found character that cannot start any token"),
        (b"grpo:\n", "grpo: Input should be a valid dictionary .*; leave the key out to have the default"),
    ],
)
def test_a_file_that_is_no_settings_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml.*{message}") as refused:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.yaml").write_bytes("run_dir: /runs/José\r\nseed: 7\r\n".encode(encoding))
    config = load_config(tmp_path / "a.yaml")
    assert (config.seed, config.run_dir) == (7, Path("/runs/José"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.learner.learning_rate=.inf", "grpo.learner.learning_rate: Input should be a finite number"),
        ("rewards.verification=.nan", "rewards.verification: Input should be a finite number"),
        ("data.teacher.temperature=.inf", "data.teacher.temperature: Input should be a finite number"),
        ("cluster.learner.gpus=.nan", "cluster.learner.gpus: Input should be"),
        ("sft.learner.learning_rate=yes", "sft.learner: learning_rate: a number is needed, not true"),
        ("grpo.limit_s=off", "grpo: limit_s: a number is needed, not false"),
        ("seed=99999999999999999999", "seed: Input should be less than 4294967296"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("rollout.engine.seed=4294967296", "rollout.engine.seed: Input should be less than 4294967296"),
        ("rollout.temperature=0", "rollout.temperature: Input should be greater than or equal to 0.01"),
        ("data.splits=train", "data.splits: .*; write a list, as in data.splits=[train]"),
        ("grpo.steps=", "grpo.steps: .*; leave the key out to have the default"),
        ("run_dir=", "run_dir: .*; leave the key out to have the default"),
        ("run_dir=''", "run_dir: a path is needed"),
        ("run_dir=$HOME/runs", "run_dir: shell variables are not replaced in settings; write ${oc.env:NAME}"),
        ("model.policy=~no-such-user/x", "model.policy: no home folder of ~no-such-user is known"),
        ("sft.batch_size=5", "sft.batch_size=5 cannot be shared by sft.learner.ranks=2; take 4 or 6"),
        ("sft.batch_size=1", "sft.batch_size=1 cannot be shared by sft.learner.ranks=2; take 2"),
        ("grpo.learner.ranks=33", "are 32 samples a step, too few for grpo.learner.ranks=33"),
        ("rollout.transfer=nccl", "rollout.transfer=nccl works between GPUs; .* take rollout.transfer=file"),
        ("rollout.transfer=ipc", "rollout.transfer=ipc works between GPUs"),
        (
            "data.annotations=[a.jsonl]",
            "overrides: data.annotations: ['a.jsonl'] is of another kind than is needed; "
            "write data.annotations.NAME=VALUE",
        ),
        ("sft=[1]", "overrides: sft: [1] is of another kind"),
        (
            "serve.cors_origins.a=1",
            "serve.cors_origins: {'a': 1} is of another kind .* write serve.cors_origins=[VALUE]",
        ),
        ("tracking.wandb=team/project", "tracking.wandb: String should match pattern"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        load_config(None, [override])


def test_a_list_for_a_section_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {annotations: [a.jsonl]}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: data\.annotations: .* is of another kind than is needed"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["/data/my set #2", "/x/it's #1 日本", "films # old"])
def test_a_hash_in_an_override_is_no_comment(text: str) -> None:
    assert load_config(None, [f"data.videos={text}"]).data.videos == Path(text).absolute()
    assert load_config(None, ["grpo.steps=5 # five"]).grpo.steps == 5


def test_a_path_may_begin_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: {root: ~/data, annotations: {train: ~/a.jsonl}}\n")
    config = load_config(tmp_path / "a.yaml", ["run_dir=~/runs/x", "serve.corpora.films.root=~/films"])
    assert config.run_dir == tmp_path / "runs" / "x"
    assert (config.data.root, config.data.annotations["train"]) == (tmp_path / "data", tmp_path / "a.jsonl")
    assert config.serve.corpora["films"].root == tmp_path / "films"
