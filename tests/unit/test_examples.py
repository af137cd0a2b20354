"""Training examples out of trajectories (Stage 2) and out of records (Stage 1)."""

from itertools import cycle

import numpy as np
import pytest
from search_episodes import search_trajectory, search_turn

from pipelines.train.records import held_out, record_example, record_rows, rows_in_order, rows_of_rank
from vsr1.episode.trajectory import FinishReason, Turn
from vsr1.formats.atomic import write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.rl.batch import Example
from vsr1.rl.credit import Credit
from vsr1.search.examples import clips_of, trained_examples
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.search.targets import negatives_of
from vsr1.settings.parts import AgentConfig
from vsr1.settings.training import GrpoConfig
from vsr1.video.clips import Clip, ClipReference

REPLY = "<think> 0 red circle. not found. </think> <answer>not_matched</answer> <REFINE>"


def turn(
    number: int, video: str, *, finish: FinishReason = "stop", latents: float | None = None, seed: int = 70
) -> Turn[SearchTurn]:
    """Latents that are all one number."""
    values = None if latents is None else np.full((2, 3), latents, np.float32)
    return search_turn(
        number, video, "not_matched", prompt=[1, number], tokens=[5, number], logprobs=[-0.1, -0.2],
        finish_reason=finish, latents=values, clip_hash=f"hash of {video}", seed=seed + number,
    )  # fmt: skip


@pytest.fixture
def trajectories() -> list[SearchTrajectory]:
    three = [turn(1, "a", latents=1.0), turn(2, "b", finish="length"), turn(3, "d", latents=3.0)]
    first = search_trajectory("q1", three, query="a red ring", gt=("b", (0.0, 1.0), 2.0), negatives=["c", "a"])
    one = [turn(1, "e", latents=4.0, seed=90)]
    second = search_trajectory("q2", one, query="a blue ring", gt=("a", (0.0, 1.0), 2.0), negatives=["b", "a"])
    return [first, second]


CREDITS = [[Credit(1.0, -1.0), Credit(2.0, -2.0), Credit(3.0, -3.0)], [Credit(4.0, -4.0)]]


def examples(trajectories: list[SearchTrajectory], sigma: float = 0.5, **settings: object) -> list[Example]:
    stage = GrpoConfig.model_validate({"latents": {"sigma": sigma}, **settings.get("grpo", {})})
    agent = AgentConfig.model_validate(settings.get("agent", {}))
    return trained_examples(trajectories, CREDITS, stage, agent)


def test_looks_at_right_and_at_wrong_videos_may_weigh_the_same(trajectories: list[SearchTrajectory]) -> None:
    """One look of four is at the right video, that of the second turn."""
    made = examples(trajectories, grpo={"objective": {"balance_verdicts": True}})
    assert [e.sampled.advantage for e in made] == pytest.approx([1.0 * 2 / 3, 2.0 * 2, 3.0 * 2 / 3, 4.0 * 2 / 3])
    assert [e.sampled.latents.advantage for e in made if e.sampled.latents] == [-1.0, -3.0, -4.0]
    stage = GrpoConfig.model_validate({"objective": {"balance_verdicts": True}})
    [one_kind] = trained_examples(trajectories[1:], CREDITS[1:], stage, AgentConfig())
    assert one_kind.sampled.advantage == 4.0


def test_a_turn_becomes_an_example_that_names_its_clip(trajectories: list[SearchTrajectory]) -> None:
    made = examples(trajectories)
    assert [e.clips for e in made] == [(ClipReference(v, f"hash of {v}"),) for v in ("a", "b", "d", "e")]
    assert [(e.sampled.advantage, e.sampled.trained) for e in made] == [(n, None) for n in (1.0, 2.0, 3.0, 4.0)]
    assert (made[2].prompt_ids, made[2].response_ids) == ([1, 3], [5, 3])
    assert made[2].sampled.logprobs == [-0.1, -0.2]
    assert clips_of(trajectories[0]) == [e.clips[0] for e in made[:3]]


def test_latents_are_actions_with_the_seed_of_their_request(trajectories: list[SearchTrajectory]) -> None:
    first, none, third, other = (e.latent_actions for e in examples(trajectories))
    assert none is None
    assert [(a.seed, a.advantage) for a in (first, third, other)] == [(71, -1.0), (73, -3.0), (91, -4.0)]
    np.testing.assert_array_equal(third.values, np.full((2, 3), 3.0))
    assert [e.latent_actions for e in examples(trajectories, sigma=0.0)] == [None] * 4


def test_the_loss_compares_with_what_the_reward_compares_with(trajectories: list[SearchTrajectory]) -> None:
    """The query's negatives and the wrong video that was shown, whatever the search found first."""
    targets = [e.target for e in examples(trajectories)]
    assert targets[1] is None, "the turn has no refined query"
    assert [(t.query, t.positive, t.negatives) for t in targets if t] == [
        ("a red ring", "b", ["c", "a"]),
        ("a red ring", "b", ["c", "a", "d"]),
        ("a blue ring", "a", ["b", "e"]),
    ]


def test_negatives_are_each_there_once_without_the_right_video() -> None:
    assert negatives_of("right", "shown", ["near", "right", "far"]) == ["near", "far", "shown"]
    assert negatives_of("right", "near", ["near", "far", "near"]) == ["near", "far"]
    assert negatives_of("right", "right", []) == []


def test_replies_cut_at_the_limit_stay_out_if_told_so(trajectories: list[SearchTrajectory]) -> None:
    settings = {"objective": {"train_truncated": False}}
    made = examples(trajectories, grpo=settings, agent={"latents_of_turns": "accumulate"})
    assert [(e.clips[0].video_id, e.sampled.advantage) for e in made] == [("a", 1.0), ("d", 3.0), ("e", 4.0)]
    np.testing.assert_array_equal(made[1].target.earlier_latents, np.full((2, 3), 1.0))


def test_latents_of_earlier_turns_come_along_where_they_stay_in_the_query(trajectories: list[SearchTrajectory]) -> None:
    trajectories[0].turns[1] = turn(2, "b", latents=2.0)
    assert [e.target.earlier_latents for e in examples(trajectories)] == [None] * 4
    targets = [e.target for e in examples(trajectories, agent={"latents_of_turns": "accumulate"})]
    first, second, third, other = (target.earlier_latents for target in targets)
    assert (first, other) == (None, None)
    np.testing.assert_array_equal(second, np.full((2, 3), 1.0))
    np.testing.assert_array_equal(third, np.repeat([1.0, 2.0], 2)[:, None].repeat(3, axis=1))


def test_each_step_takes_its_rows_whatever_was_done_before() -> None:
    rows = [{"n": n} for n in range(24)]
    whole = [list(rows_of_rank(rows, rank, 2, 3, 0)) for rank in range(2)]
    assert sorted(row["n"] for part in whole for row in part) == list(range(24))
    for step in range(4):
        assert [row for part in whole for row in part[3 * step : 3 * step + 3]] == rows[6 * step : 6 * step + 6]
    for rank in range(2):
        assert list(rows_of_rank(rows, rank, 2, 3, 2)) == whole[rank][6:]
        assert next(rows_of_rank(cycle(rows), rank, 2, 3, 6)) == whole[rank][6]  # of rows without end


def test_each_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    rows = [{"n": n} for n in range(8)]
    stream = rows_in_order(rows, 3)
    first, second = ([next(stream)["n"] for _ in rows] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(8)) and first != second
    again = rows_in_order(rows, 3)
    assert [next(again)["n"] for _ in rows] == first


class Processor:
    """A tokenizer and prompts of one token."""

    @property
    def tokenizer(self) -> "Processor":
        return self

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [len(text)]

    def prompt_ids(self, prompt: str, clip: Clip) -> list[int]:
        return [1]


def test_a_record_has_the_nearest_wrong_videos_and_the_one_shown_as_negatives(tmp_path) -> None:
    folder = DatasetFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="vsr1 data build"):
        record_rows(folder, with_rewrites=False)
    records = [
        {"qid": "q", "query": "a ring", "messages": [{"content": REPLY}],
         "meta": {"video_id": shown, "query_pos_video_id": "right"}}
        for shown in ("shown", "right")
    ]  # fmt: skip
    write_json(folder.sft_records(), records)
    write_json(folder.hard_negatives(), {"q": ["near", "far", "farther"]})
    rejected, accepted = record_rows(folder, with_rewrites=False)
    clip = Clip.make("shown", np.zeros((2, 4, 4, 3), np.uint8), np.arange(2.0))
    example = record_example(rejected, clip, Processor(), "system", 2)
    assert (example.target.positive, example.target.negatives) == ("right", ["near", "far", "shown"])
    assert example.clips == (clip.reference,) and example.sampled is None
    assert record_example(accepted, clip, Processor(), "system", 2).target is None, "an accepting reply ends the search"


def test_replies_that_reject_give_the_query_in_new_words_where_that_is_taught(tmp_path) -> None:
    folder = DatasetFolder(tmp_path)
    meta = {"video_id": "shown", "query_pos_video_id": "right"}
    record = {"qid": "q", "query": "a ring", "messages": [{"content": REPLY}], "meta": meta}
    write_json(folder.sft_records(), [record, record | {"meta": meta | {"video_id": "right"}}])
    write_json(folder.hard_negatives(), {})
    with pytest.raises(FileNotFoundError, match="bench toy rewrites"):
        record_rows(folder, with_rewrites=True)
    write_json(folder.rewrites(), {"q": "a round thing"})
    rejected, accepted = record_rows(folder, with_rewrites=True)
    assert "<query>a round thing</query>" in rejected["reply"]
    assert accepted["reply"] == REPLY


def test_records_that_are_evaluated_are_not_trained_on(tmp_path) -> None:
    """Two records a query: the queries of the one side are not on the other."""
    rows = [{"query": f"text {number // 2}", "video_id": f"v{number}"} for number in range(20)]
    trained, evaluated = held_out(rows, 6, seed=3)
    assert len(evaluated) == 6 and sorted(row["video_id"] for row in trained + evaluated) == sorted(
        row["video_id"] for row in rows
    )
    assert not {row["query"] for row in trained} & {row["query"] for row in evaluated}
    assert [row for row in rows if row in trained] == trained, "in their order"
    assert held_out(rows, 6, seed=3) == (trained, evaluated) != held_out(rows, 6, seed=4)
    assert held_out(rows, 0, seed=3) == (rows, [])
    with pytest.raises(ValueError, match=r"sft\.val_records=20 leaves none of 20 records"):
        held_out(rows, 20, seed=3)
