"""The trajectories of a run on disk: what comes back, after a kill at any byte too, and from earlier versions."""

import json
from pathlib import Path

import numpy as np
import pytest
from search_episodes import search_trajectory, search_turn

from vsr1.rl.credit import Credit
from vsr1.runs.trajectories import (
    LATENTS,
    LoggedTrajectory,
    TrajectoryLogError,
    append_trajectories,
    read_log,
    write_trajectories,
)
from vsr1.search.record import SearchTrajectory

EARLIER = Path(__file__).parent / "earlier_trajectories.jsonl"


def trajectory(number: int, size: int = 3) -> SearchTrajectory:
    """Two turns of prompt `number`; the first has latents of which every value is another."""
    latents = np.arange(8 * size, dtype=np.float32).reshape(8, size) / 16 + number
    turns = [
        search_turn(
            1, "a", "not_matched", text="não\u2028gefunden", prompt=[7, 9, 9, 9, 9, 8], tokens=[3, 4],
            logprobs=[-0.25, float(np.float32(-1e-9))], latents=latents, retrieved=[("a", 0.5), ("b", 0.25)],
            ranks=(2, 1), seed=2**55 + number, retrieved_after=[("b", 0.75)], gt_score_before=0.25,
            negative_scores_before=[0.5], clip_hash="c" * 64,
        ),
        search_turn(2, "b", "matched", (1.0, 3.5), logprobs=[-0.5] * 3, finish_reason="length", weight_version=4),
    ]  # fmt: skip
    results = {"terms": {"verification": 1.0}, "turn_rewards": [0.5, 1.5], "turn_latent_rewards": [0.25, 0.0]}
    return search_trajectory(
        f"q{number}", turns, prompt=f"0/{number}/q{number}", sample=3, gt=("b", (1.0, 4.0), 8.0), reward=1.0, **results
    )


def logged(number: int) -> LoggedTrajectory:
    return LoggedTrajectory(trajectory(number), step=number, credits=[Credit(0.5, -0.5), Credit(1.0, 0.0)])


def comparable(trajectory: SearchTrajectory) -> str:
    turns = [vars(turn) | {"latents": None} for turn in trajectory.turns]
    return repr(vars(trajectory) | {"turns": turns})


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "train_trajectories.jsonl"
    append_trajectories(path, [logged(1), logged(2)])
    append_trajectories(path, [LoggedTrajectory(trajectory(3), fingerprint="f")])
    first, second, third = read_log(path)
    for number, entry in enumerate((first, second, third), start=1):
        assert comparable(entry.trajectory) == comparable(trajectory(number))
        expected = trajectory(number).turns[0].latents["query"]
        np.testing.assert_array_equal(entry.trajectory.turns[0].latents["query"], expected.astype(np.float16))
        assert entry.trajectory.turns[1].latents == {}
    assert (first.step, first.credits, first.fingerprint) == (1, [Credit(0.5, -0.5), Credit(1.0, 0.0)], "")
    assert (third.step, third.credits, third.fingerprint) == (0, None, "f")


def test_a_log_that_was_cut_at_any_byte_is_read_up_to_there_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    append_trajectories(whole, [logged(1), logged(2)])
    text, numbers = whole.read_bytes(), whole.with_suffix(LATENTS).read_bytes()
    ends = [text.index(b"\n") + 1, len(text)]
    for cut in [*range(0, len(text), 97), ends[0] - 1, *ends]:
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(text[:cut])
        path.with_suffix(LATENTS).write_bytes(numbers)
        count = sum(end <= cut for end in ends)
        assert [entry.step for entry in read_log(path)] == [1, 2][:count]
        append_trajectories(path, [logged(3)])
        entries = list(read_log(path))
        assert [entry.step for entry in entries] == [*[1, 2][:count], 3]
        np.testing.assert_array_equal(
            entries[-1].trajectory.turns[0].latents["query"], trajectory(3).turns[0].latents["query"].astype(np.float16)
        )


def test_latents_that_were_cut_in_the_middle_of_a_number_are_stepped_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.with_suffix(LATENTS).write_bytes(b"\x01\x02\x03")
    append_trajectories(path, [logged(5)])
    [entry] = read_log(path)
    assert entry.trajectory.turns[0].latents["query"][0, 0] == 5.0


def test_a_line_that_is_no_trajectory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_trajectories(path, [logged(1)])
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    with pytest.raises(TrajectoryLogError, match=r"log\.jsonl:2: not a trajectory .*KeyError"):
        list(read_log(path))


def test_latents_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_trajectories(path, [logged(1)])
    path.with_suffix(LATENTS).unlink()
    with pytest.raises(TrajectoryLogError, match=r"log\.jsonl:1"):
        list(read_log(path))


def test_a_log_is_written_anew_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_trajectories(path, [logged(1), logged(2), logged(3)])
    write_trajectories(path, [entry for entry in read_log(path) if entry.step != 2])
    assert [entry.step for entry in read_log(path)] == [1, 3]
    assert [entry.trajectory.turns[0].latents["query"][0, 0] for entry in read_log(path)] == [1.0, 3.0]
    assert path.with_suffix(LATENTS).stat().st_size == 2 * 8 * 3 * 2


def test_a_step_at_real_size_is_small(tmp_path: Path) -> None:
    """2B: latents of 2,048 numbers and prompts of 6,400 video tokens; two refinements a sample, 128 samples a step."""
    path = tmp_path / "log.jsonl"
    rng = np.random.default_rng(0)
    frame = [151652, *[151656] * 200, 151653, 27, 15, 13, 20, 6486, 29]
    turns = [
        search_turn(
            number, "video_0123456789", "not_matched", text="word " * 100, prompt=[5] * 60 + frame * 32,
            tokens=rng.integers(0, 150_000, 120).tolist(), logprobs=(-rng.random(120)).tolist(),
            latents=rng.normal(size=(8, 2048)).astype(np.float32),
            retrieved=[(f"video_{i:010d}", rng.random()) for i in range(10)],
            retrieved_after=[(f"video_{i:010d}", rng.random()) for i in range(10)],
            negative_scores_before=rng.random(25).tolist(), negative_scores_after=rng.random(25).tolist(),
        )
        for number in (1, 2)
    ]  # fmt: skip
    append_trajectories(path, [LoggedTrajectory(search_trajectory("q", turns))])
    sample = path.stat().st_size + path.with_suffix(LATENTS).stat().st_size
    assert sample * 128 * 1000 < 10e9, f"{sample} bytes a sample"


def test_a_log_of_an_earlier_version_is_read() -> None:
    """Rows as version 0.1 wrote them: `segments`, latents and noise as lists, a seed of the whole sample."""
    first, second = read_log(EARLIER)
    row = json.loads(EARLIER.read_text(encoding="utf-8").splitlines()[0])
    turn, segment = first.trajectory.turns[0], row["segments"][0]
    assert (first.trajectory.id.prompt, first.trajectory.id.sample) == (row["query_id"], row["sample"])
    assert first.trajectory.task.gt_span == tuple(row["gt_span"])
    assert (turn.number, turn.seed, turn.response_token_ids) == (1, row["seed"] + 1, segment["response_token_ids"])
    np.testing.assert_array_equal(turn.latents["query"], np.asarray(segment["latents"], np.float32))
    assert (turn.record.verdict, turn.record.refined) == (segment["verdict"], True)
    assert turn.clips[0].content_hash == segment["clip_hash"]
    assert first.trajectory.turn_latent_rewards == row["turn_retrieval_rewards"]
    assert (first.step, len(first.credits or [])) == (row["step"], len(row["segments"]))
    assert second.trajectory.reward == json.loads(EARLIER.read_text(encoding="utf-8").splitlines()[1])["reward"]
