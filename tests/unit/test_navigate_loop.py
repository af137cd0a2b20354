"""What the shared loop does with navigation: its tasks, its examples, its log, its scalars, its summary."""

import json

import pytest
from navigation import call, play, task

from pipelines.stage.tasks import PromptStream, group_of
from pipelines.train.environments import training_of
from pipelines.train.records import spoken_rows
from vsr1.config import ConfigError, load_config
from vsr1.environments.registry import environment_of
from vsr1.episode.rewards import scored
from vsr1.episode.sample import FailedSample, SampleId
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.examples import navigate_examples, spoken_example
from vsr1.navigate.files import records_file
from vsr1.navigate.rewards import NavigateRewards
from vsr1.navigate.summary import failed_navigate_row, navigate_row, summarise_navigation
from vsr1.rl.credit import Credit, credits_of
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories, read_log
from vsr1.settings.navigate import NavigateRewardConfig
from vsr1.settings.training import GrpoConfig
from vsr1.toy.long_corpus import write_long_corpus
from vsr1.video.clips import ClipReference

NAVIGATE = ["environment=navigate", "agent.refinement=none"]
RIGHT = [call("caption(1,1)"), call("caption(1,1,3)"), "<think>seen</think><answer>red</answer>"]


def trajectory(replies, **values):
    return scored(play(replies, task(**values))[1], NavigateRewards(NavigateRewardConfig()))


@pytest.fixture
def config(tmp_path):
    options = [*NAVIGATE, f"data.root={tmp_path}", "navigate.eval_budgets=[2,8]"]
    settings = load_config(None, options)
    write_long_corpus(DatasetFolder(tmp_path), {"train": 8, "test": 3}, settings.navigate, 0)
    return settings


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_prompt_that_grows_has_no_limit_of_its_own(stage: str):
    with pytest.raises(ConfigError, match=rf"{stage}.max_prompt_tokens=900 .*grows with each call; leave it out"):
        load_config(None, [*NAVIGATE, f"{stage}.max_prompt_tokens=900"])


def test_navigation_refines_nothing():
    with pytest.raises(ConfigError, match=r"take agent\.refinement=none"):
        load_config(None, ["environment=navigate"])


def test_prompts_come_with_the_budget_of_their_group(config):
    stream = PromptStream(config)
    tasks = [next(stream) for _ in range(24)]
    assert {one.budget for one in tasks} <= {4, 8, 16, 30} and len({one.budget for one in tasks}) > 1
    assert sorted(one.question_id for one in tasks[:8]) == [f"train-000{i}" for i in range(8)]
    assert len({one.id.prompt for one in tasks}) == 24
    assert stream.task(tasks[9].id.prompt) == tasks[9]
    assert {one.budget for one in group_of(tasks[0], 4)} == {tasks[0].budget}
    assert next(PromptStream(config, position=9)) == tasks[9]


def test_an_evaluation_plays_each_question_with_each_budget(config):
    queries = environment_of(config).evaluation_queries(config, "test")
    assert [query.task.id.prompt for query in queries[:3]] == ["test-0000@2", "test-0000@8", "test-0001@2"]
    assert len(queries) == 6 and queries[1].task.budget == 8


def test_an_episode_is_an_example_of_the_agents_own_tokens(config):
    groups = [
        trajectory(RIGHT, id=SampleId("p", 0)), trajectory(["<answer>blue</answer>"], id=SampleId("p", 1)),
    ]  # fmt: skip
    credits = credits_of(groups, config.grpo.objective, 96)
    examples = navigate_examples(groups, credits, config.grpo)
    one, other = examples
    turns = groups[0].turns
    assert one.prompt_ids == turns[0].prompt_token_ids and other.prompt_ids == groups[1].turns[0].prompt_token_ids
    assert one.prompt_ids + one.response_ids == turns[-1].prompt_token_ids + turns[-1].response_token_ids
    own = [token for token, flag in zip(one.response_ids, one.trained, strict=True) if flag]
    assert own == [token for turn in turns for token in turn.response_token_ids]
    known = [value for value, flag in zip(one.sampled.logprobs, one.trained, strict=True) if flag]
    assert known == [value for turn in turns for value in turn.response_logprobs]
    assert other.sampled.trained is None and other.target is None
    assert one.sampled.advantage > 0 > other.sampled.advantage


def test_turns_are_one_example_where_the_objective_does_not_count_replies():
    one = trajectory(RIGHT)
    first, second, last = (len(turn.response_token_ids) for turn in one.turns)

    def trained(credits=(1.0, 1.0, 1.0), **objective):
        stage = GrpoConfig.model_validate({"objective": objective})
        made = navigate_examples([one], [[Credit(value, 0.0) for value in credits]], stage)
        return [(sum(example.trained), example.sampled.advantage) for example in made]

    assert trained() == [(first + second + last, 1.0)]
    assert trained(loss="gspo") == trained(normalise="sequence_mean") == [(first, 1.0), (second, 1.0), (last, 1.0)]
    assert trained(credits=(1.0, 2.0, 2.0)) == [(first, 1.0), (second + last, 2.0)]
    one.turns[1].finish_reason = "length"
    assert trained() == [(first + second + last, 1.0)]
    assert trained(train_truncated=False) == [(first, 1.0), (last, 1.0)]


def test_a_new_clip_begins_another_example():
    one = trajectory([call("caption(1,1)"), call("caption(1,1,3)"), call("look(1,1,3)"), "<answer>red</answer>"])
    one.turns[3].clips = [ClipReference("f@1.1.3", "hash")]
    made = navigate_examples([one], [[Credit(1.0, 0.0)] * 4], GrpoConfig())
    replies = [len(turn.response_token_ids) for turn in one.turns]
    assert [sum(example.trained) for example in made] == [sum(replies[:3]), replies[3]]
    assert [example.clips for example in made] == [(), (ClipReference("f@1.1.3", "hash"),)]


def test_records_become_examples_text_by_text(config):
    rows = spoken_rows(records_file(DatasetFolder(config.data.root)))
    last = [row for row in rows if row["query"] == "train-0000"][-1]

    def encode(text):
        return [len(text)] if text else []

    example = spoken_example(last["history"], last["reply"], encode)
    assert example.response_ids == [len(last["reply"])]
    assert len(example.prompt_ids) >= len(last["history"]) and example.clips == ()


def test_a_whole_record_learns_every_reply_and_where_it_ends_in_one_example():
    history = ["shown", "one", "<|im_end|> a part", "two!", "no end"]

    def encode(text):
        end = text.startswith("<|im_end|>")
        return [0] * end + [ord(letter) for letter in text.removeprefix("<|im_end|>")]

    example = spoken_example(history, "three", encode, whole=True)
    assert example.prompt_ids == encode("shown")
    assert example.response_ids == [token for text in [*history[1:], "three"] for token in encode(text)]
    shown = [True] + [False] * len(" a part"), [False] * len("no end")
    assert example.trained == [*[True] * 3, *shown[0], *[True] * 4, *shown[1], *[True] * 5]


def test_records_of_the_reader_are_whole_episodes_and_older_files_still_read(config, tmp_path):
    rows = spoken_rows(records_file(DatasetFolder(config.data.root)))
    assert [row["query"] for row in rows] == [f"train-{number:04d}" for number in range(len(rows))]
    assert all(row["whole"] and len(row["history"]) % 2 for row in rows)
    (tmp_path / "old.jsonl").write_text('{"question_id": "q", "history": ["shown"], "reply": "said"}\n')
    assert spoken_rows(tmp_path / "old.jsonl") == [{"query": "q", "history": ["shown"], "reply": "said"}]


def test_the_log_gives_navigation_back(tmp_path):
    episodes = [trajectory(RIGHT), trajectory([call("find(red)"), "<answer>unknown</answer>"], id=SampleId("q"))]
    path = tmp_path / "log.jsonl"
    append_trajectories(path, [LoggedTrajectory(one, 3) for one in episodes])
    assert [logged.trajectory for logged in read_log(path)] == episodes
    assert json.loads(path.read_text().splitlines()[0])["turns"][0]["record"]["status"] == "ok"


def test_what_a_step_follows(config):
    episodes = [trajectory(RIGHT), trajectory(["x", "<answer>unknown</answer>"])]
    values = training_of(config).metrics(episodes, 0)
    assert values["accuracy"] == 0.5 and values["abstained"] == 0.5 and values["spent"] == 1
    assert values["status/ok"] == 2 / 5 and values["status/malformed"] == 1 / 5
    assert values["reward/location"] == 0.5 and values["turns"] == 2.5


def test_a_summary_counts_what_failed_as_wrong():
    rows = [
        navigate_row(trajectory(RIGHT)), navigate_row(trajectory(["<answer>unknown</answer>"], budget=0.0)),
        failed_navigate_row(task(budget=4.0), FailedSample(SampleId("p"), "ToolError", "no answer")),
    ]  # fmt: skip
    summary = summarise_navigation(rows)
    assert summary.budgets["4"].accuracy == 0.5 and summary.budgets["4"].calls == 1
    assert summary.budgets["0"].abstained == 1 and summary.failed == {"ToolError": 1}
    assert rows[0].nodes == [(1, 1), (1, 1, 3)] and rows[0].location == 1
    assert summary.to_json()["budgets"]["0"]["questions"] == 1
