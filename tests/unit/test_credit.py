"""Advantages of turns, of their tokens and of their latents, with numbers worked out by hand."""

import math

import numpy as np
import pytest
from search_episodes import search_trajectory, search_turn

from vsr1.rl.credit import Credit, credits_of
from vsr1.search.record import SearchTrajectory
from vsr1.settings.training import ObjectiveConfig

LIMIT = 10  # tokens of a reply


def sample(
    prompt: str, turns: list[float], retrieval: list[float], lengths: list[int] | None = None
) -> SearchTrajectory:
    """Weighted rewards of the turns, what of them is for the refined query, and tokens of the replies."""
    played = [
        search_turn(number, "v", tokens=length, latents=np.zeros((2, 3), np.float32))
        for number, length in enumerate(lengths or [3] * len(turns), start=1)
    ]
    return search_trajectory(
        "query", played, prompt=prompt, turn_rewards=turns, turn_latent_rewards=retrieval, reward=sum(turns)
    )


def objective(credit: str, advantage: str = "group_centred", overlong_buffer: int = 0) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(
        {"credit": credit, "advantage": advantage, "overlong_buffer": overlong_buffer, "advantage_epsilon": 1e-12}
    )


def tokens(credits: list[list[Credit]]) -> list[list[float]]:
    return [[credit.tokens for credit in turns] for turns in credits]


def latents(credits: list[list[Credit]]) -> list[list[float]]:
    return [[credit.latents for credit in turns] for turns in credits]


@pytest.fixture
def two_groups() -> list[SearchTrajectory]:
    """Totals 4 and 1 of p, 5 and 2 of q, the samples of both groups mixed."""
    return [
        sample("p", [2.0, 2.0], [0.5, 0.25]),
        sample("q", [0.0, 1.0, 4.0], [0.25, 0.5, 0.0]),
        sample("p", [1.0], [-0.5]),
        sample("q", [1.5, 0.5], [0.5, 1.0]),
    ]


def test_credit_by_trajectory_is_the_same_for_all_its_turns(two_groups: list[SearchTrajectory]) -> None:
    credits = credits_of(two_groups, objective("trajectory"), LIMIT)
    assert tokens(credits) == latents(credits) == [[1.5, 1.5], [1.5, 1.5, 1.5], [-1.5], [-1.5, -1.5]]


@pytest.mark.parametrize(
    ("advantage", "value"),
    [
        ("group", math.sqrt(0.5)),  # 1.5 over the deviation of 4 and 1, the same for 5 and 2
        ("batch", math.sqrt(0.75)),  # 1.5 over the deviation of 1.5, 1.5, -1.5, -1.5
    ],
)
def test_credit_by_trajectory_normalised(two_groups: list[SearchTrajectory], advantage: str, value: float) -> None:
    found = [turns[0] for turns in tokens(credits_of(two_groups, objective("trajectory", advantage), LIMIT))]
    assert found == pytest.approx([value, value, -value, -value])


def test_credit_by_turn(two_groups: list[SearchTrajectory]) -> None:
    """Mean rewards from a turn on are 2, 2 against 1 in p, and 5/3, 5/2, 4 against 1, 1/2 in q.

    What the latents answer for is 0.5 + 2, 0.25 against -0.5 in p, and 0.25 + 2.5, 0.5 + 4, 0 against 0.5 + 0.5, 1 in
    q. A turn that no other sample of its group reached has nothing to be compared with.
    """
    credits = credits_of(two_groups, objective("turn"), LIMIT)
    expected = [[0.5, 0.0], [1 / 3, 1.0, 0.0], [-0.5], [-1 / 3, -1.0]]
    assert tokens(credits) == [pytest.approx(turns) for turns in expected]
    assert latents(credits) == [[1.5, 0.0], [0.875, 1.75, 0.0], [-1.5], [-0.875, -1.75]]


def test_with_a_discount_of_0_a_turn_answers_for_itself(two_groups: list[SearchTrajectory]) -> None:
    credits = credits_of(two_groups, objective("turn").model_copy(update={"discount": 0.0}), LIMIT)
    assert tokens(credits) == [[0.5, 0.0], [-0.75, 0.25, 0.0], [-0.5], [0.75, -0.25]]
    assert latents(credits) == [[0.5, 0.0], [-0.125, -0.25, 0.0], [-0.5], [0.125, 0.25]]


def test_credit_by_turn_is_divided_by_the_deviation_of_that_turn(two_groups: list[SearchTrajectory]) -> None:
    credits = credits_of(two_groups, objective("turn", "group"), LIMIT)
    half = math.sqrt(0.5)  # of two numbers, each is that far from the middle in deviations
    for found in (tokens(credits), latents(credits)):
        assert found == [
            pytest.approx([half, 0.0]),
            pytest.approx([half, half, 0.0]),
            pytest.approx([-half]),
            pytest.approx([-half, -half]),
        ]


def test_latents_do_not_answer_for_the_verdict_before_them(two_groups: list[SearchTrajectory]) -> None:
    before = credits_of(two_groups, objective("turn"), LIMIT)
    better = [sample("q", [0.0, 1.0 + 8.0, 4.0], [0.25, 0.5, 0.0]) if i == 1 else t for i, t in enumerate(two_groups)]
    after = credits_of(better, objective("turn"), LIMIT)
    assert latents(after)[1] == [0.875 + 2.0, 1.75, 0.0]  # those of turn 1 led to it, those of turn 2 came after it
    assert latents(after)[3] == [-0.875 - 2.0, -1.75]
    assert tokens(after)[1] == pytest.approx([1 / 3 + 4 / 3, 1.0 + 2.0, 0.0])
    assert (after[0], after[2]) == (before[0], before[2])


def test_a_better_query_is_credited_to_its_latents(two_groups: list[SearchTrajectory]) -> None:
    better = [sample("q", [0.0, 1.0 + 8.0, 4.0], [0.25, 8.5, 0.0]) if i == 1 else t for i, t in enumerate(two_groups)]
    assert latents(credits_of(better, objective("turn"), LIMIT))[1] == [0.875 + 2.0, 1.75 + 4.0, 0.0]


@pytest.mark.parametrize("credit", ["trajectory", "turn"])
def test_an_overlong_reply_costs_the_mean_over_the_turns(credit: str) -> None:
    """With a buffer of 4 the cost begins at 6 tokens: 8 cost 1/2, in the mean of two turns 1/4; 10 cost 1."""
    trajectories = [sample("p", [0.0, 0.0], [0.0, 0.0], [8, 6]), sample("p", [0.0], [0.0], [10])]
    credits = credits_of(trajectories, objective(credit, overlong_buffer=4), LIMIT)
    if credit == "trajectory":
        assert tokens(credits) == latents(credits) == [[0.375, 0.375], [-0.375]]
    else:
        assert tokens(credits) == [[0.375, 0.0], [-0.375]]
        assert latents(credits) == [[0.0, 0.0], [0.0]]  # the reply that came before them was long
    without = credits_of(trajectories, objective(credit), LIMIT)
    assert tokens(without) == latents(without) == [[0.0, 0.0], [0.0]]


@pytest.mark.parametrize("advantage", ["group", "group_centred", "batch"])
@pytest.mark.parametrize("credit", ["trajectory", "turn"])
def test_equal_rewards_teach_nothing(credit: str, advantage: str) -> None:
    trajectories = [sample("p", [0.1, 0.7], [0.2, 0.3]) for _ in range(3)]
    credits = credits_of(trajectories, objective(credit, advantage), LIMIT)
    assert tokens(credits) == latents(credits) == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("credit", ["trajectory", "turn"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_an_error(credit: str, value: float) -> None:
    trajectories = [sample("p", [0.0, value], [0.0, 0.0]), sample("p", [1.0, 1.0], [0.0, 0.0])]
    with pytest.raises(ValueError, match="must be finite"):
        credits_of(trajectories, objective(credit), LIMIT)


def test_a_retrieval_reward_that_is_not_finite_is_an_error() -> None:
    trajectories = [sample("p", [0.0], [math.nan]), sample("p", [1.0], [0.0])]
    with pytest.raises(ValueError, match="must be finite"):
        credits_of(trajectories, objective("turn"), LIMIT)


def apart(prompt: str, terms: dict[str, list[float]]) -> SearchTrajectory:
    """A sample with the values of its terms by turn, a rare one of much and a common one of little weight."""
    weights = {"verdict": 1.0, "overlap": 0.25}
    turns = [dict(zip(terms, values, strict=True)) for values in zip(*terms.values(), strict=True)]
    played = [search_turn(number, "v") for number in range(1, len(turns) + 1)]
    rewards = [sum(weights[name] * value for name, value in turn.items()) for turn in turns]
    return search_trajectory(
        "query", played, prompt=prompt, turn_rewards=rewards, turn_latent_rewards=[0.0] * len(turns),
        reward=sum(rewards) / len(turns), turn_terms=turns, weights=weights,
        terms={name: sum(values) / len(turns) for name, values in terms.items()},
    )  # fmt: skip


@pytest.mark.parametrize("credit", ["turn", "trajectory"])
def test_terms_apart_weigh_as_they_should_however_much_each_varies(credit: str) -> None:
    """Overlaps that differ a hundred times less than verdicts count with their own weight all the same."""
    samples = [
        apart("p", {"verdict": [verdict], "overlap": [overlap]})
        for verdict, overlap in ((1.0, 0.51), (1.0, 0.50), (-1.0, 0.51), (-1.0, 0.50))
    ]
    settings = objective(credit, "group").model_copy(update={"terms": "apart"})
    unit = math.sqrt(3) / 2  # two samples above, two below: deviation 1 by n - 1
    found = [turns[0] for turns in tokens(credits_of(samples, settings, LIMIT))]
    assert found == pytest.approx([1.25 * unit, 0.75 * unit, -0.75 * unit, -1.25 * unit])
    summed = [turns[0] for turns in tokens(credits_of(samples, objective(credit, "group"), LIMIT))]
    assert summed[0] - summed[1] < 0.01, "as one sum the overlap is lost beside the verdict"


def test_terms_apart_take_the_turns_after_along() -> None:
    samples = [apart("p", {"verdict": [1.0, value], "overlap": [0.0, 0.0]}) for value in (1.0, -1.0)]
    settings = objective("turn", "group").model_copy(update={"terms": "apart"})
    better, worse = tokens(credits_of(samples, settings, LIMIT))
    assert better == pytest.approx([math.sqrt(0.5)] * 2) and worse == pytest.approx([-math.sqrt(0.5)] * 2)


def test_terms_apart_need_something_to_be_divided_by() -> None:
    with pytest.raises(ValueError, match="take group"):
        ObjectiveConfig(terms="apart", advantage="group_centred")
