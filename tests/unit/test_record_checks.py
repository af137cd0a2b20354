"""Training records that cannot be used are all named, with record, field and video, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.train.record_checks import RecordError, check_grpo_records, check_sft_records
from pipelines.train.sft import check as check_stage_1
from pipelines.train.sft import train
from vsr1.config import Config
from vsr1.formats.atomic import write_json, write_lines
from vsr1.formats.dataset import DatasetFolder

REPLY = "<think> 0 red circle. </think> <answer>not_matched</answer> <REFINE>"


def sft(**changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Check."},
        {"role": "user", "content": 'Query: "a ring"\nRetrieved video: <video>'},
        {"role": "assistant", "content": REPLY},
    ]
    meta = {"video_id": "a", "query_pos_video_id": "b"}
    return {"qid": "q", "query": "a ring", "messages": messages, "videos": ["a.npy"], "meta": meta} | changes


def with_messages(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return sft(messages=[{"role": role, "content": content} for role, content in pairs])


def grpo(**changes: Any) -> dict[str, Any]:
    record = {"qid": "q", "query": "a ring", "gt_video": "a", "gt_time": [1, 3], "gt_duration": 8}
    return record | {"retrieved_video": "b", "hard_negative_ids": ["b"], "is_augmented": False} | changes


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = DatasetFolder(tmp_path)
    write_json(folder.docid2row("train"), {"a": 0, "b": 1, "without clip": 2})
    rows = [{"video_id": name, "output_npy_path": f"/elsewhere/{name}.npy", "status": "ok"} for name in ("a", "b")]
    write_lines(folder.clips("train") / "meta.jsonl", rows)
    for name in ("a", "b"):
        (folder.clips("train") / f"{name}.npy").touch()
    write_json(folder.hard_negatives(), {"q": ["b", "a"], "strange": ["b", "gone", "unused"]})
    return Config.model_validate({"data": {"root": tmp_path}, "sft": {"negatives": 2}})


def sft_faults(config: Config, *records: Any) -> list[str]:
    write_json(DatasetFolder(config.data.root).sft_records(), list(records))
    with pytest.raises(RecordError) as refused:
        check_sft_records(config)
    head, *faults = str(refused.value).splitlines()
    assert f"train_oneturn.json: {len(faults)} fault" in head
    return [fault.strip() for fault in faults]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            sft(messages=sft()["messages"][:2]),
            "one reply of the assistant is needed, at the end; the roles are system, u",
        ),
        (
            with_messages(("user", "x <video>"), ("human", "thanks!")),
            "messages.1.role: Input should be 'system', 'user'",
        ),
        (with_messages(("assistant", REPLY), ("user", "thanks! <video>")), "the roles are assistant, user"),
        (with_messages(("assistant", "a"), ("assistant", "b")), "one reply of the assistant is needed"),
        (
            with_messages(("assistant", [{"type": "text", "text": "x"}])),
            "messages.0.content: Input should be a valid str",
        ),
        (with_messages(("assistant", "")), "messages.0.content: String should have at least 1 character"),
        (with_messages(("user", "no place"), ("assistant", REPLY)), "0 <video> beside those of the query, 1 is needed"),
        (with_messages(("user", "<video><video>"), ("assistant", REPLY)), "2 <video> beside those of the query"),
        (sft(messages=[{"from": "gpt", "content": REPLY}]), "messages.0.role: Field required"),
        (
            sft(meta={"video_id": "gone_0002", "query_pos_video_id": "b"}),
            "meta.video_id: video 'gone_0002' is not in the",
        ),
        (sft(meta={"video_id": "without clip", "query_pos_video_id": "b"}), "video 'without clip' has no clip in"),
        (sft(meta={"video_id": "a", "query_pos_video_id": "x"}), "meta.query_pos_video_id: video 'x' is not in the"),
        (sft(meta={"video_id": "a"}), "meta.query_pos_video_id: Field required"),
        (sft(videos=[]), "videos: List should have at least 1 item"),
        (sft(query=""), "query: String should have at least 1 character"),
        (sft(query=None), "query: Input should be a valid string"),
        (sft(qid="strange"), "hard_negatives.json: video 'gone' is not in the corpus"),
        ("a text", "Input should be a valid dictionary"),
    ],
)
def test_a_record_of_stage_1_that_cannot_be_used_is_named(config: Config, record: Any, fault: str) -> None:
    [line] = sft_faults(config, sft(), record)
    assert line.startswith("record 2") and fault in line


def test_all_faults_are_listed_at_once_with_the_ids_of_their_records(config: Config) -> None:
    without = {name: value for name, value in sft(qid="q7").items() if name != "meta"}
    lines = sft_faults(config, without, sft(query=3, qid=12), sft(meta={"video_id": "x", "query_pos_video_id": "y"}))
    assert [line.split(" is ")[0] for line in lines] == [
        "record 1 (qid 'q7'): meta: Field required",
        "record 2 (qid 12): query: Input should be a valid string (got '3')",
        "record 3 (qid 'q'): meta.video_id: video 'x'",
        "record 3 (qid 'q'): meta.query_pos_video_id: video 'y'",
    ]


@pytest.mark.parametrize(("row", "shown"), [([1], "[1]"), ("x", "x"), (None, "None"), (5, "5")])
def test_a_record_that_is_no_object_is_named(config: Config, row: Any, shown: str) -> None:
    assert sft_faults(config, sft(), row) == [f"record 2: Input should be a valid dictionary (got {shown!r})"]


@pytest.mark.parametrize("query", ["<|video_pad|>", "find <video> in it", "<|im_end|>", "视频 \u2028 x"])
def test_a_query_may_hold_anything(config: Config, query: str) -> None:
    place = {"role": "user", "content": f'Query: "{query}"\nRetrieved video: <video>'}
    record = sft(query=query, messages=[place, {"role": "assistant", "content": REPLY}])
    write_json(DatasetFolder(config.data.root).sft_records(), [sft(), record, with_messages(("assistant", REPLY))])
    check_sft_records(config)
    write_lines(DatasetFolder(config.data.root).grpo_records(), [grpo(query=query)])
    check_grpo_records(config)


def test_replies_that_are_to_give_new_words_need_them(config: Config) -> None:
    in_words = config.model_copy(update={"agent": config.agent.model_copy(update={"refinement": "text"})})
    write_json(DatasetFolder(config.data.root).rewrites(), {"other": "x"})
    lines = sft_faults(in_words, with_messages(("assistant", "no token at the end")))
    assert lines == [
        "record 1 (qid 'q'): rewrites.train.json has no text for it",
        "record 1 (qid 'q'): messages: a reply that rejects its video must end in <REFINE>",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gt_video": "x"}, "gt_video: video 'x' is not in the corpus"),
        ({"hard_negative_ids": ["b", "y"]}, "hard_negative_ids: video 'y' is not in the corpus"),
        (
            {"is_augmented": True, "retrieved_video": "without clip"},
            "retrieved_video: video 'without clip' has no clip",
        ),
        ({"gt_time": [3, 1]}, "gt_time: the moment [3.0, 1.0] ends before it begins"),
        ({"gt_time": [1]}, "gt_time.1: Field required"),
        ({"gt_time": [1, float("nan")]}, "gt_time.1: Input should be a finite number"),
        ({"gt_duration": 0}, "gt_duration: Input should be greater than 0"),
        ({"query": 5}, "query: Input should be a valid string"),
    ],
)
def test_a_record_of_stage_2_that_cannot_be_used_is_named(config: Config, changes: dict[str, Any], fault: str) -> None:
    write_lines(DatasetFolder(config.data.root).grpo_records(), [grpo(), grpo(**changes)])
    with pytest.raises(RecordError) as refused:
        check_grpo_records(config)
    [line] = str(refused.value).splitlines()[1:]
    assert line.strip().startswith("record 2 (qid 'q'): ") and fault in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"qid": "q"}\n{"qid": "r"}\n', r"train_oneturn\.json: a JSON list of records is needed, not JSON lines"),
        (b'{"qid": "q"}', "a JSON list of records is needed, not one dict"),
        ("[]".encode("utf-16"), "not UTF-8 at byte 0; save the file as UTF-8 text"),
        (b"[", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xef\xbb\xbf[]", "not JSON .*BOM"),
    ],
)
def test_a_file_that_holds_no_records_is_one_line(config: Config, content: bytes, message: str) -> None:
    DatasetFolder(config.data.root).sft_records().parent.mkdir(parents=True)
    DatasetFolder(config.data.root).sft_records().write_bytes(content)
    with pytest.raises(RecordError, match=message) as refused:
        check_sft_records(config)
    assert "\n" not in str(refused.value)


def test_a_line_of_stage_2_that_is_no_json_is_named_with_its_number(config: Config) -> None:
    path = DatasetFolder(config.data.root).grpo_records()
    with pytest.raises(FileNotFoundError, match="build the dataset first"):
        check_grpo_records(config)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(grpo()) + "\n{torn\n")
    with pytest.raises(RecordError, match=r"minimal_top1\.jsonl:2: not JSON"):
        check_grpo_records(config)


def test_a_split_of_evaluations_that_is_not_built_is_named_with_its_setting(config: Config) -> None:
    write_lines(DatasetFolder(config.data.root).grpo_records(), [grpo()])
    check_grpo_records(config)
    grpo_section = {"validate_every": 1, "val_split": "nowhere"}
    other = Config.model_validate({"data": {"root": config.data.root}, "grpo": grpo_section})
    with pytest.raises(FileNotFoundError, match=r"build split 'nowhere', or name another one with grpo\.val_split"):
        check_grpo_records(other)


def test_records_that_fill_no_batch_are_one_line(config: Config) -> None:
    write_json(DatasetFolder(config.data.root).sft_records(), [sft()] * 3)
    config.run_dir, config.sft.batch_size = config.data.root / "run", 500
    with pytest.raises(ValueError, match=r"3 records do not fill one batch of 500; lower sft\.batch_size"):
        check_stage_1(config)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_checkpoint_that_is_none_is_told_before_anything_starts(tmp_path: Path, stage: str) -> None:
    """A model of the hub by its name, an adapter, a folder without weights: also where the dataset is still to come."""
    for name, file in (("adapter", "adapter_config.json"), ("empty", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").touch()
    for option, message in (
        ("model.policy=Qwen/Qwen3-VL-2B-Instruct", "the folder does not exist; a checkpoint of the hub is loaded with"),
        (f"model.policy={tmp_path / 'adapter'}", "an adapter alone is no checkpoint; merge it into its model first"),
        (f"model.embedder={tmp_path / 'empty'}", "no safetensors weights"),
    ):
        settings = ["toy.create=true", f"data.root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}", option]
        outcome = CliRunner().invoke(app, [stage, "--dry-run", "cluster.rollout.memory_gib=0.1", *settings])
        assert outcome.exit_code == 1
        assert f"error: {option.partition('=')[0]}=" in outcome.stderr and message in outcome.stderr


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_dry_run_ends_with_1_where_the_records_cannot_be_used(config: Config, stage: str) -> None:
    folder = DatasetFolder(config.data.root)
    write_json(folder.sft_records(), [sft(query=1)])
    write_lines(folder.grpo_records(), [grpo(query=1)])
    settings = [f"data.root={config.data.root}", "cluster.rollout.memory_gib=0.1"]
    outcome = CliRunner().invoke(app, [stage, "--dry-run", *settings])
    assert outcome.exit_code == 1
    assert "1 fault in its records" in outcome.stderr and "query: Input should be a valid string" in outcome.stderr


def test_stage_1_reads_its_records_once_where_nothing_was_built(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = DatasetFolder(config.data.root).sft_records()
    config = Config.model_validate(
        {"run_dir": tmp_path / "run", "data": {"root": tmp_path}, "sft": {"batch_size": 2, "val_records": 2}}
    )
    write_json(path, [sft(qid=f"q{number}") for number in range(6)])
    monkeypatch.setattr("pipelines.train.sft.connect", lambda config: path.unlink())
    monkeypatch.setattr("pipelines.train.sft.check_placement", lambda config, stage: None)
    monkeypatch.setattr("pipelines.train.sft._train", lambda plan, progress: plan)
    plan: Any = train(config)
    assert (len(plan.records.rows), len(plan.records.held), plan.records.steps, plan.done) == (4, 2, 2, 0)
    with pytest.raises(FileNotFoundError, match="build the dataset first"):
        train(config)
