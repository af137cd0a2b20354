"""What the shared loop does with searches that navigate: tasks, log, scalars, rows and summary, films of a corpus."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from long_search import RANKED, REJECTS, SECONDS, SEEN, Episode, matches
from navigation import call

from actors.tools import FilmClips, films_of
from pipelines.stage.tasks import PromptStream, group_of
from pipelines.train.environments import training_of
from vsr1.config import ConfigError, load_config
from vsr1.environments.registry import environment_of
from vsr1.environments.spec import Evaluated
from vsr1.episode.rewards import scored
from vsr1.episode.sample import FailedSample
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.rl.credit import credits_of
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories, read_log
from vsr1.search_then_navigate.record import LongSearchTask
from vsr1.toy.long_corpus import LongFilms, write_long_corpus, write_long_videos
from vsr1.toy.long_films import make_long_film
from vsr1.toy.long_seekers import scripted_search, write_search_records
from vsr1.video.decode import probe_video

OPTIONS = ["environment=search_then_navigate", "navigate.eval_budgets=[2,8]"]


@pytest.fixture
def config(tmp_path):
    folder = DatasetFolder(tmp_path)
    rows = [
        {"qid": str(number), "query": "a red ring", "gt_video": "long", "gt_time": [36.0, 44.0], "gt_duration": 2000.0,
         "hard_negative_ids": ["longer"], "is_augmented": False, "retrieved_video": "long"}
        for number in range(12)
    ]  # fmt: skip
    folder.grpo_records().parent.mkdir()
    write_lines(folder.grpo_records(), rows)
    folder.docid2row("test").parent.mkdir(parents=True)
    folder.docid2row("test").write_text(json.dumps({video: row for row, video in enumerate(RANKED)}))
    folder.query_meta("test").parent.mkdir(parents=True)
    write_lines(folder.query_meta("test"), [{"qid": "1_fig"}])
    folder.clips("test").mkdir(parents=True)
    metas = [
        {"video_id": video, "source_video_path": f"raw_videos/test/{video}.mp4", "source_duration_sec": seconds,
         "sampled_timestamps_sec": [0.0, seconds - 1]}
        for video, seconds in SECONDS.items()
    ]  # fmt: skip
    write_lines(folder.clips("test") / "meta.jsonl", metas)
    (folder.clips("test") / "long.npy").touch()
    annotation = {
        "video": "long", "time": [36.0, 44.0], "desc_id": 1, "duration": 2000.0, "cog_desc": "a ring",
        "fig_desc": "a red ring", "fig_desc_score": 1.0,
    }  # fmt: skip
    folder.annotations("test").parent.mkdir(parents=True)
    write_lines(folder.annotations("test"), [annotation])
    return load_config(None, [*OPTIONS, f"data.root={tmp_path}", "data.teacher.kind=none"])


def rewarded(replies, config, **values):
    return scored(Episode(replies, **values).trajectory, environment_of(config).rewards(config))


def test_each_group_has_a_search_with_a_budget(config):
    stream = PromptStream(config)
    tasks = [next(stream) for _ in range(24)]
    assert all(isinstance(task, LongSearchTask) and task.gt_video == "long" for task in tasks)
    assert {task.budget for task in tasks} <= {4, 8, 16, 30} and len({task.budget for task in tasks}) > 1
    assert stream.task(tasks[5].id.prompt) == tasks[5]
    assert {task.budget for task in group_of(tasks[0], 4)} == {tasks[0].budget}


def test_an_evaluation_is_scored_by_budget(config):
    spec = environment_of(config)
    queries = spec.evaluation_queries(config, "test")
    assert [query.task.id.prompt for query in queries] == ["1_fig@2", "1_fig@8"]
    right = rewarded([*SEEN, matches(36, 44)], config, budget=8.0)
    outcomes = {
        "1_fig@2": FailedSample(queries[0].task.id, "ToolError", "gone"),
        "1_fig@8": replace(right, task=queries[1].task),
    }
    rows, summary = spec.scored(config, Evaluated(queries, outcomes, "test", config.agent, "f"))
    assert [(row.status, row.budget) for row in rows] == [("failed", 2.0), ("ok", 8.0)]
    assert (rows[1].calls, rows[1].spent, rows[1].statuses, len(rows[1].turns)) == (2, 2.0, {"ok": 2}, 1)
    assert {budget: one.search.moments.iou_05 for budget, one in summary.budgets.items()} == {"2": 0.0, "8": 1.0}
    assert (summary.failed, summary.budgets["8"].calls, spec.figures(summary)) == (
        {"ToolError": 1},
        2,
        {"IoU@0.5": 0.5},
    )
    values = json.loads(json.dumps(summary.to_json()))
    assert values["budgets"]["8"]["search"]["moments"]["IoU@0.5@R1"] == 1.0
    assert summary.table().row_count == 2
    assert training_of(config).validation(summary, [right])["IoU@0.5_at_8"] == 1.0


def test_the_log_holds_calls_and_judgements(config, tmp_path):
    episode = rewarded([*SEEN, REJECTS, REJECTS, call("find(a ring)"), REJECTS], config)
    credits = credits_of([episode], config.grpo.objective, 96)[0]
    append_trajectories(tmp_path / "t.jsonl", [LoggedTrajectory(episode, 3, credits)])
    [logged] = read_log(tmp_path / "t.jsonl")
    assert logged.trajectory.task == episode.task and logged.credits == credits
    assert [turn.record for turn in logged.trajectory.turns] == [turn.record for turn in episode.turns]
    np.testing.assert_array_equal(logged.trajectory.turns[2].latents["query"], np.full((8, 4), 3.0))


def test_scalars_are_of_searches_and_of_calls(config):
    episodes = [
        rewarded([*SEEN, matches(36, 44)], config), rewarded([SEEN[0], SEEN[0], REJECTS, REJECTS, REJECTS], config),
    ]  # fmt: skip
    values = training_of(config).metrics(episodes, 0)
    assert (values["calls"], values["spent"], values["turns"]) == (2.0, 1.5, 4.0)
    assert values["status/ok"] == 0.75 and values["status/repeat"] == 0.25
    assert values["moment_iou"] == 0.5 and values["verifier/wrong_video_not_matched"] == 0.5
    assert {"reward/location", "reward/repeat", "reward/thrift", "reward/verification"} <= values.keys()


def test_the_videos_of_a_corpus_are_its_films(config):
    captioner = ["kind=openai", "model=m", "url=http://127.0.0.1:9/v1"]
    options = [f"navigate.pools.captioner.{entry}" for entry in captioner]
    films = films_of(load_config(None, [*OPTIONS, f"data.root={config.data.root}", *options]), "test")
    assert films.tree("long").width == 5 and films.tree("longer").borders[-1] == 4000.0
    assert films.films["long"][0] == config.data.root / "raw_videos/test/long.mp4"


def test_one_store_reads_videos_and_nodes():
    class Folder:
        def read(self, video_id):
            return f"video {video_id}"

    class Films:
        def read(self, video_id):
            return f"node {video_id}"

    clips = FilmClips(Folder(), Films())
    assert [clips.read(name) for name in ("a", "a@b", "a@1.2", "a@1.2.3", "a@9.9.9")] == [
        "video a", "video a@b", "video a@1.2", "node a@1.2.3", "video a@9.9.9",
    ]  # fmt: skip


def test_the_long_toy_world_can_be_searched(config, tmp_path):
    folder = DatasetFolder(tmp_path / "toy")
    settings = config.navigate.model_copy(update={"toy_minutes": [10]})
    write_long_corpus(folder, {"test": 2}, settings, 0)
    write_long_videos(folder, "test")
    films = LongFilms.of_split(folder, "test", 2).films
    for film in films.values():
        assert probe_video(folder.raw_videos("test") / f"{film.film}.mp4") == pytest.approx(film.seconds)
    rows = [json.loads(line) for line in folder.annotations("test").read_text().splitlines()]
    [clue] = films["test-0001"].task(None).clues
    assert rows[1]["video"] == "test-0001" and rows[1]["time"] == list(clue)
    assert rows[1]["fig_desc"].endswith(films["test-0001"].task(None).question.partition(" where ")[2].rstrip("?"))


@pytest.mark.parametrize(("budget", "finds"), [(0, False), (2, False), (16, True)])
def test_a_scripted_search_rejects_another_film_and_finds_its_moment(config, budget, finds):
    films = [make_long_film(f"f{number}", 12, 0) for number in range(2)]
    for shown in ([films[1]], films):
        seeker = scripted_search(shown, films[1].query, budget, config.navigate)
        assert len(seeker.films) == len(shown)
        assert all(texts[0].startswith("<|im_start|>system") for texts in seeker.films)
        replies = [texts[1::2] for texts in seeker.films]
        assert sum("<tool>" in reply for own in replies for reply in own) <= budget
        assert all(("<tool>" in reply) != reply.endswith("<REFINE>") for own in replies for reply in own)
        assert all("not_matched" in own[-1] for own in replies[:-1])
        [clue] = films[1].task(None).clues
        assert (f"<start>{clue[0]}</start> <end>{clue[1]}</end> <REFINE>" in replies[-1][-1]) == finds


def test_a_scripted_search_for_another_colour_finds_the_detail_and_rejects_the_film(config):
    film = make_long_film("f", 12, 0)
    colour = film.task(None).answer
    other = "white" if colour != "white" else "red"
    [texts] = scripted_search([film], film.query_for(other), 16, config.navigate).films
    assert re.search(rf", {film.plan.detail} at \d+, {colour}, wanted {other}, no\. \d no\.", texts[-1])
    assert "not_matched" in texts[-1]


def test_stage_1_learns_whole_episodes_where_there_are_some(config):
    folder = DatasetFolder(config.data.root)
    assert environment_of(config).sft_file(config) == folder.sft_records()
    write_long_corpus(folder, {"train": 6}, config.navigate, 0)
    write_search_records(folder, config.navigate, 0)
    rows = training_of(config).sft_rows(config)
    assert environment_of(config).sft_file(config).name == "search_records.jsonl"
    assert {row["query"] for row in rows} == {f"train-000{number}" for number in range(6)}
    assert len(rows) > 6 and all(row["whole"] and len(row["history"]) % 2 == 1 for row in rows)
    assert {"not_matched" in row["reply"] for row in rows} == {True, False}
    longest = max(rows, key=lambda row: len(row["history"]))
    assert "Left:" in longest["history"][-1] and "<tool>" in longest["history"][1]


def test_records_may_be_told_as_the_end_of_a_longer_recording(config):
    folder = DatasetFolder(config.data.root)
    settings = config.navigate.model_copy(update={"budgets": [30], "toy_record_films": 24})
    write_search_records(folder, settings, 0)
    rows = [row for row in training_of(config).sft_rows(config) if "not_matched" not in row["reply"]]
    lengths = [int(re.search(r"The video has (\d+) seconds", row["history"][0])[1]) for row in rows]
    assert min(lengths) < 7200 < max(lengths) <= 8 * 3600
    for row, length in zip(rows, lengths, strict=True):
        start, end = re.search(r"<start>(\d+)\.0</start> <end>(\d+)\.0</end>", row["reply"]).groups()
        assert re.search(rf"-{end}\] .*\b{start} [a-z]+ ", row["history"][-1]) and int(end) <= length
        assert re.search(rf"-{end}\] .* at {start}, (\w+), wanted \1, yes\. \d seen\.", row["reply"])
        for shown, reply in zip(row["history"][2::2], [*row["history"][3::2], row["reply"]], strict=True):
            told = [*re.findall(r"\[\d+-\d+\]", reply), *re.findall(r" at (\d+)", reply)]
            assert all(f" {seconds} " in shown for seconds in told)


def test_films_need_true_seconds():
    with pytest.raises(ConfigError, match=r"take data\.timestamps=true_seconds"):
        load_config(None, ["environment=search_then_navigate", "data.timestamps=legacy_index"])
