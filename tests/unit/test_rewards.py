"""Each line of the reward table (method.md §4.4) with a value worked out by hand."""

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_episodes import search_trajectory, search_turn

from vsr1.episode.rewards import RewardError, Term, scored
from vsr1.episode.trajectory import Turn
from vsr1.search.parse import parse_reply
from vsr1.search.record import SearchTrajectory, SearchTurn
from vsr1.search.rewards import SearchRewards, probability_of_first
from vsr1.settings.training import RewardConfig

RIGHT, WRONG = "right", "wrong"
MATCH = "<think> seen </think> <answer>matched</answer> <start>10</start> <end>20</end>"
REJECT = "<think> no </think> <answer>not_matched</answer>"
LOG3 = math.log(3) / 10  # at temperature 0.1 this lead over one negative is odds of 3 to 1, p = 0.75
CONFIG = RewardConfig()


def turn(text: str, video: str = RIGHT, *, before: float | None = 0.0, after: float | None = None) -> Turn[SearchTurn]:
    """A turn; with `after` it was refined, and each score is the right video's lead over a single negative at 0."""
    judgement = parse_reply(text, 100.0)
    return search_turn(
        1, video, judgement.verdict, judgement.span, text=text,
        latents=None if after is None else np.zeros((8, 4), np.float32),
        gt_score_before=before, gt_score_after=after,
        negative_scores_before=None if before is None else [0.0],
        negative_scores_after=None if after is None else [0.0],
    )  # fmt: skip


def episode(*turns: Turn[SearchTurn], gt_span: tuple[float, float] = (10.0, 20.0)) -> SearchTrajectory:
    return search_trajectory("q7", list(turns), gt=(RIGHT, gt_span, 100.0))


def score(trajectory: SearchTrajectory, config: RewardConfig = CONFIG) -> SearchTrajectory:
    return scored(trajectory, SearchRewards(config))


def terms(*turns: Turn[SearchTurn], config: RewardConfig = CONFIG) -> dict[str, float]:
    return score(episode(*turns), config).terms


@pytest.mark.parametrize(
    ("text", "video", "value"),
    [
        (MATCH, RIGHT, 1.0),
        (MATCH, WRONG, -1.0),
        (REJECT, WRONG, 1.0),
        (REJECT, RIGHT, -1.0),
        ("<answer>maybe</answer>", RIGHT, -1.0),
        ("<answer>maybe</answer>", WRONG, -1.0),
        ("", WRONG, -1.0),
    ],
)
def test_verification(text: str, video: str, value: float) -> None:
    assert terms(turn(text, video))["verification"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>x</think>", 1.0),
        ("<think> </think>", 0.0),
        ("<think></think>", 0.0),
        ("<think>x</think><think> </think>", 0.0),  # the last one counts
        ("<think>x", 0.0),
        ("", 0.0),
    ],
)
def test_think_format(text: str, value: float) -> None:
    assert terms(turn(text))["think_format"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>matched</answer><start>1</start><end>2</end>", 1.0),
        ("<answer>matched</answer><start>a</start><end></end>", 1.0),  # presence only
        ("<answer>matched</answer><start>1</start>", 0.0),
        ("<answer>matched</answer>", 0.0),
        ("<answer>not_matched</answer>", 1.0),
        ("<answer>not_matched</answer><start>1</start>", 1.0),  # not both
        ("<answer>not_matched</answer><start>1</start><end>2</end>", 0.0),
        ("<answer>maybe</answer><start>1</start><end>2</end>", 0.0),
        ("<start>1</start><end>2</end>", 0.0),
        ("", 0.0),
    ],
)
def test_time_format(text: str, value: float) -> None:
    assert terms(turn(text))["time_format"] == value


@pytest.mark.parametrize(
    ("text", "video", "value"),
    [
        (MATCH, RIGHT, 1.0),
        ("<answer>matched</answer><start>15</start><end>25</end>", RIGHT, 5 / 15),
        ("<answer>matched</answer><start>0</start><end>40</end>", RIGHT, 10 / 40),
        ("<answer>matched</answer><start>30</start><end>40</end>", RIGHT, 0.0),  # apart
        ("<answer>matched</answer><start>1</start><end>2</end><start>10</start><end>20</end>", RIGHT, 1.0),  # the last
        ("<answer>matched</answer><start>20</start><end>10</end>", RIGHT, 0.0),  # reversed
        ("<answer>matched</answer><start>15</start><end>15</end>", RIGHT, 0.0),  # empty
        ("<answer>matched</answer><start>10</start>", RIGHT, 0.0),  # missing
        ("<answer>matched</answer><start>ten</start><end>20</end>", RIGHT, 0.0),
        ("<answer>matched</answer><start>nan</start><end>20</end>", RIGHT, 0.0),
        (MATCH, WRONG, 0.0),  # wrong verdict
        (REJECT, RIGHT, 0.0),
        (REJECT, WRONG, 0.5),  # a correct rejection
        (REJECT + "<start>1</start>", WRONG, 0.0),
        (REJECT + "<start>1</start><end>2</end>", WRONG, 0.0),
        ("", WRONG, 0.0),
    ],
)
def test_temporal_iou(text: str, video: str, value: float) -> None:
    assert terms(turn(text, video))["temporal_iou"] == pytest.approx(value)


def test_a_span_that_is_not_finite_has_no_overlap() -> None:
    endless = turn(MATCH)
    endless.record.span = (10.0, math.inf)
    assert terms(endless)["temporal_iou"] == 0.0


def test_an_empty_true_moment_has_no_overlap() -> None:
    assert score(episode(turn(MATCH), gt_span=(10.0, 10.0))).terms["temporal_iou"] == 0.0


def test_a_true_moment_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"temporal_iou.*'q7'"):
        score(episode(turn(MATCH), gt_span=(10.0, math.nan)))


@pytest.mark.parametrize(
    ("form", "before", "after", "value"),
    [
        ("delta_p", 0.0, LOG3, 0.75 - 0.5),
        ("delta_p", LOG3, 0.0, 0.5 - 0.75),
        ("delta_p", 0.2, 0.2, 0.0),
        ("p_after", 0.0, LOG3, 0.75),
        ("p_after", LOG3, -LOG3, 0.25),
    ],
)
def test_retrieval(form: str, before: float, after: float, value: float) -> None:
    config = RewardConfig.model_validate({"retrieval_form": form})
    for video in (RIGHT, WRONG):  # what was shown makes no difference
        result = terms(turn(REJECT, video, before=before, after=after), config=config)
        assert result["retrieval"] == pytest.approx(value)


@pytest.mark.parametrize(("form", "value"), [("delta_p", 0.0), ("p_after", 0.75)])
def test_an_accepted_video_leaves_the_query_as_it_was(form: str, value: float) -> None:
    for video in (RIGHT, WRONG):
        result = terms(turn(MATCH, video, before=LOG3), config=RewardConfig.model_validate({"retrieval_form": form}))
        assert result["retrieval"] == pytest.approx(value)
        assert result["refine_presence"] == 1.0


@pytest.mark.parametrize("penalty", [-0.3, 0.0])
def test_no_refinement_costs_the_penalty(penalty: float) -> None:
    for text in (REJECT, ""):
        result = terms(turn(text), config=RewardConfig(no_refine_penalty=penalty))
        assert result["retrieval"] == penalty
        assert result["refine_presence"] == 0.0


@pytest.mark.parametrize("form", ["delta_p", "p_after"])
def test_no_negatives_no_reward(form: str) -> None:
    alone = turn(MATCH, before=0.0, after=0.5)
    alone.record.negative_scores_before = alone.record.negative_scores_after = []
    result = terms(alone, config=RewardConfig.model_validate({"retrieval_form": form}))
    assert result["retrieval"] == 0.0
    assert result["refine_presence"] == 1.0


def test_scores_that_were_not_asked_for_are_an_error() -> None:
    with pytest.raises(RewardError, match=r"retrieval of query 'q7', turn 1: the scores before"):
        terms(turn(MATCH, before=None, after=0.1))
    uneven = turn(MATCH, before=0.1, after=0.1)
    uneven.record.negative_scores_after = [0.0, 0.0]
    with pytest.raises(RewardError, match="1 negatives before the refinement and 2 after"):
        terms(uneven)


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"q7.*reward term retrieval is nan"):
        terms(turn(MATCH, before=0.0, after=math.nan))


def test_extreme_scores_do_not_overflow() -> None:
    assert probability_of_first([1e6] + [-1e6] * 24, 0.1) == 1.0
    assert probability_of_first([-1e6] + [1e6] * 24, 0.1) == 0.0


def test_an_episode_averages_its_turns_and_grounds_with_the_last() -> None:
    first = turn(
        "<answer>matched</answer>", WRONG, before=0.0, after=LOG3
    )  # wrong, no reasoning, no times, p .5 to .75
    second = turn(MATCH, RIGHT, before=LOG3)
    assert terms(first, second) == pytest.approx(
        {
            "verification": 0.0,
            "think_format": 0.5,
            "time_format": 0.5,
            "temporal_iou": 1.0,
            "refine_presence": 1.0,
            "retrieval": 0.25 / 2,
        }
    )


def test_the_weighted_sum() -> None:
    result = score(episode(turn(MATCH, before=0.0, after=LOG3)))
    assert list(result.terms) == [term.name for term in SearchRewards(CONFIG).terms]
    assert result.reward == pytest.approx(1.2 + 0.05 + 0.05 + 0.45 + 0.1 + 0.8 * 0.25)


class OneTerm:
    """An environment whose only term is what it is told."""

    terms = (Term("guess", 2.0),)

    def __init__(self, values: dict[str, float]) -> None:
        self._values = values

    def of_turns(self, trajectory: SearchTrajectory) -> list[dict[str, float]]:
        return [self._values for _ in trajectory.turns]

    def of_end(self, trajectory: SearchTrajectory) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"reward terms \[\] are not \['guess'\]"),
        ({"guess": 0.5, "other": 0.5}, r"reward terms \['guess', 'other'\] are not \['guess'\]"),
        ({"guess": 1.5}, r"reward term guess is 1.5, outside \[0.0, 1.0\]"),
        ({"guess": math.nan}, r"reward term guess is nan"),
    ],
)
def test_an_environment_gives_exactly_its_terms_within_their_bounds(values: dict[str, float], message: str) -> None:
    with pytest.raises(RewardError, match=rf"q7.*{message}"):
        scored(episode(turn(MATCH)), OneTerm(values))
    assert scored(episode(turn(MATCH)), OneTerm({"guess": 0.5})).reward == 1.0


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RewardError, match="weighted reward is inf"):
        score(episode(turn(MATCH)), RewardConfig(verification=1.7e308, think_format=1.7e308))


def test_an_episode_without_turns_is_not_scored() -> None:
    with pytest.raises(RewardError, match=r"q7.*has no turns"):
        terms()


def test_rewards_of_turns_by_hand() -> None:
    first = turn(REJECT, WRONG, before=0.0, after=LOG3)  # p from .5 to .75
    second = turn("<answer>matched</answer><start>15</start><end>25</end>", RIGHT, before=LOG3)  # IoU 1/3
    result = score(episode(first, second))
    rewards, of_retrieval = result.turn_rewards, result.turn_latent_rewards
    assert of_retrieval == pytest.approx([0.8 * 0.25, 0.0])
    assert rewards == pytest.approx([1.2 + 0.05 + 0.05 + 0.1 + of_retrieval[0], 1.2 + 0.05 + 0.1 + 0.45 / 3])


def test_a_rejection_in_an_early_turn_earns_no_temporal_iou() -> None:
    """Alone it would earn half of it: only the last turn's counts."""
    early, late = score(episode(turn(REJECT, WRONG), turn(REJECT, WRONG))).turn_rewards
    assert late - early == pytest.approx(0.45 * 0.5)


SCORES = st.floats(-1, 1)
TURNS = st.lists(
    st.tuples(st.sampled_from([MATCH, REJECT, ""]), st.sampled_from([RIGHT, WRONG]), SCORES, st.none() | SCORES),
    min_size=1,
    max_size=6,
)
FORMS = st.sampled_from(["delta_p", "p_after"])


@given(TURNS, FORMS)
def test_the_reward_is_the_mean_of_the_turns_and_the_outcome(
    turns: list[tuple[str, str, float, float | None]], form: str
) -> None:
    config = RewardConfig.model_validate({"retrieval_form": form})
    result = score(episode(*(turn(text, video, before=b, after=a) for text, video, b, a in turns)), config)
    outcome = config.temporal_iou * result.terms["temporal_iou"]
    own = [*result.turn_rewards[:-1], result.turn_rewards[-1] - outcome]
    assert fmean(own) + outcome == pytest.approx(result.reward)
    assert fmean(result.turn_latent_rewards) == pytest.approx(config.retrieval * result.terms["retrieval"])
    assert len(result.turn_rewards) == len(result.turn_latent_rewards) == len(turns)


@given(TURNS, FORMS)
def test_every_term_is_bounded(turns: list[tuple[str, str, float, float | None]], form: str) -> None:
    config = RewardConfig.model_validate({"retrieval_form": form})
    result = terms(*(turn(text, video, before=b, after=a) for text, video, b, a in turns), config=config)
    for term in SearchRewards(config).terms:
        assert term.low <= result[term.name] <= term.high
