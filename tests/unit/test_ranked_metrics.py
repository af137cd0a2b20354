"""Ranked-list scores and the metrics under them against other people's code, on 1,000 random cases each."""

import random
from functools import lru_cache
from statistics import fmean

import numpy as np
import portion
import pytest
import pytrec_eval

from vsr1.episode.moments import temporal_iou
from vsr1.metrics.ranked import (
    DETR_THRESHOLDS,
    Moment,
    RankedScoreError,
    TrueMoment,
    moment_detr_scores,
    tvr_scores,
)
from vsr1.metrics.summary import mrr, recall_at

CASES = 1000
KS = (1, 5, 10, 100)
RIGHT = TrueMoment("a", ((10.0, 20.0),))


def test_recall_and_mrr_agree_with_pytrec_eval() -> None:
    """Scores have ties, ranked by the rule of trec_eval; corpora may be smaller than K."""
    draw = random.Random(0)
    qrels, run, ranks = {}, {}, {}
    for case in range(CASES):
        videos = [f"v{i:03}" for i in range(draw.randint(1, 130))]
        scores = {video: draw.randint(0, 8) / 4 for video in videos}
        right = draw.choice(videos)
        order = sorted(videos, key=lambda video: (scores[video], video), reverse=True)  # trec_eval: later ids first
        qrels[str(case)], run[str(case)], ranks[str(case)] = {right: 1}, scores, order.index(right) + 1
    measures = {"recip_rank", "recall.1,5,10,100"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for case, rank in ranks.items():
        assert mrr([rank]) == pytest.approx(theirs[case]["recip_rank"])
        assert [recall_at([rank], k) for k in KS] == [theirs[case][f"recall_{k}"] for k in KS]
    everything = list(ranks.values())
    assert mrr([*everything, None]) == pytest.approx(
        sum(their["recip_rank"] for their in theirs.values()) / (CASES + 1)
    )


def test_temporal_iou_agrees_with_interval_arithmetic() -> None:
    def length(interval: portion.Interval) -> float:
        return sum(part.upper - part.lower for part in interval if not part.empty)

    draw = random.Random(1)
    for _ in range(CASES):
        (a, b), (c, d) = (sorted(draw.randint(0, 40) / 4 for _ in range(2)) for _ in range(2))
        first, second = portion.closed(a, b), portion.closed(c, d)
        union = length(first | second)
        expected = length(first & second) / union if a < b and c < d else 0.0
        assert temporal_iou((a, b), (c, d)) == pytest.approx(expected)


def random_span(draw: random.Random) -> tuple[float, float]:
    """In eighths of a second, so that float32 would change nothing; sometimes empty."""
    start, end = sorted(draw.randint(0, 80) / 8 for _ in range(2))
    return start, end


@lru_cache(None)
def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    both, either = portion.closed(*a) & portion.closed(*b), portion.closed(*a) | portion.closed(*b)
    if both.empty or either.enclosure.upper == either.enclosure.lower:
        return 0.0
    return (both.upper - both.lower) / (either.enclosure.upper - either.enclosure.lower)


def test_tvr_scores_agree_with_pytrec_eval_over_the_entries_that_hit() -> None:
    draw = random.Random(2)
    truth: dict[int, TrueMoment] = {}
    rankings: dict[int, list[Moment]] = {}
    for case in range(CASES):
        spans = tuple(random_span(draw) for _ in range(draw.choice((1, 1, 4, 5))))
        truth[case] = TrueMoment(draw.choice("abc"), spans)
        rankings[case] = [(draw.choice("abcd"), *random_span(draw)) for _ in range(draw.choice((1, 3, 12, 120)))]
    ours = tvr_scores({"VCMR": rankings, "SVMR": rankings, "VR": rankings}, truth)

    def success(task: str, threshold: float) -> dict[str, float]:
        qrels, run = {}, {}
        for case, ranking in rankings.items():
            right = truth[case]
            numbered = list(enumerate(ranking[:100]))
            if task == "SVMR":
                numbered = [(place, moment) for place, moment in numbered if moment[0] == right.video]
            hits = {
                str(place): int(
                    moment[0] == right.video
                    and (
                        task == "VR"
                        or sum(overlap(moment[1:], span) >= threshold for span in right.spans)
                        >= (1 if len(right.spans) == 1 else 2)
                    )
                )
                for place, moment in numbered
            }
            qrels[str(case)] = hits | {"none": 0}  # a query stays in, even if nothing is relevant
            run[str(case)] = {str(place): -float(place) for place, _ in numbered} | {"none": -1e6}
        theirs = pytrec_eval.RelevanceEvaluator(qrels, {"success.1,5,10,100"}).evaluate(run)
        return {f"r{k}": round(100 * fmean(row[f"success_{k}"] for row in theirs.values()), 2) for k in KS}

    assert ours["VR"] == success("VR", 0)
    for task in ("VCMR", "SVMR"):
        expected = {f"{t}-{name}": v for t in (0.5, 0.7) for name, v in success(task, t).items()}
        assert ours[task] == expected


def average_precision(windows: list, truth: list, threshold: float) -> float:
    """By the definition: at each recall level that is reached, the best precision from there on."""
    free, hits = list(truth), []
    for window in windows[:10]:
        found = max(reversed(free), key=lambda span: overlap(window, span), default=None)  # of equals the last
        hits.append(found is not None and overlap(window, found) >= threshold)
        if hits[-1]:
            free.remove(found)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return sum(float(precision[at:].max()) for at, hit in enumerate(hits) if hit) / len(truth)


def test_moment_detr_scores_agree_with_the_definition() -> None:
    draw = random.Random(3)
    windows = {case: [random_span(draw) for _ in range(draw.randint(1, 14))] for case in range(CASES)}
    truth = {case: list({random_span(draw) for _ in range(draw.randint(1, 4))}) for case in range(CASES)}
    ours = moment_detr_scores(windows, truth)
    best = [max(overlap(windows[case][0], span) for span in truth[case]) for case in range(CASES)]
    assert ours["MR-mIoU"] == pytest.approx(100 * fmean(best), abs=0.006)
    assert ours["MR-R1"] == {str(t): round(100 * fmean(iou >= t for iou in best), 2) for t in DETR_THRESHOLDS}
    expected = [fmean(average_precision(windows[c], truth[c], t) for c in range(CASES)) for t in DETR_THRESHOLDS]
    assert [ours["MR-mAP"][str(t)] for t in DETR_THRESHOLDS] == pytest.approx([100 * ap for ap in expected], abs=0.006)
    assert ours["MR-mAP"]["average"] == pytest.approx(100 * fmean(expected), abs=0.006)


def test_tvr_rules_by_hand() -> None:
    ranking = [("b", 10.0, 20.0), ("a", 0.0, 5.0), ("a", 10.0, 15.0), ("a", 10.0, 20.0)]
    scores = [tvr_scores({task: {1: ranking[:k]} for task in ("VCMR", "SVMR", "VR")}, {1: RIGHT}) for k in (1, 2, 3, 4)]
    assert [of["VR"]["r1"] for of in scores] == [0] * 4
    assert [of["VR"]["r5"] for of in scores] == [0, 100, 100, 100]
    assert [of["VCMR"]["0.5-r5"] for of in scores] == [0, 0, 100, 100]  # the bound counts: 5 s of 10 s
    assert [of["VCMR"]["0.7-r5"] for of in scores] == [of["SVMR"]["0.7-r5"] for of in scores] == [0, 0, 0, 100]
    late = [("b", 0.0, 1.0)] * 100 + [("a", 10.0, 20.0)]
    for task, name in (("VCMR", "0.5-r100"), ("SVMR", "0.5-r1"), ("VR", "r100")):
        assert tvr_scores({task: {1: late}}, {1: RIGHT})[task][name] == 0
        assert tvr_scores({task: {1: late[1:]}}, {1: RIGHT})[task][name] == 100


def test_with_four_true_spans_two_must_be_hit() -> None:
    span, other = (0.0, 10.0), (20.0, 30.0)
    for spans, expected in (((span, other, other, other), 0.0), ((span, span, other, other), 100.0)):
        found = tvr_scores({"VCMR": {1: [("a", 0.0, 10.0)]}}, {1: TrueMoment("a", spans)})
        assert found["VCMR"]["0.5-r1"] == expected
    with pytest.raises(RankedScoreError, match="2 true spans"):
        TrueMoment("a", (span, other))


def test_queries_must_be_exactly_those_of_the_truth() -> None:
    with pytest.raises(RankedScoreError, match="VCMR misses 1 queries: 2;"):
        tvr_scores({"VCMR": {1: []}}, {1: RIGHT, 2: RIGHT})
    with pytest.raises(RankedScoreError, match="has too much 1 queries: 3;"):
        moment_detr_scores({1: [], 3: []}, {1: [(0.0, 1.0)]})
    with pytest.raises(RankedScoreError, match="a submission holds"):
        tvr_scores({"VQA": {}}, {1: RIGHT})
    assert moment_detr_scores({1: []}, {1: [(0.0, 1.0)]})["MR-mIoU"] == 0.0


def test_moment_detr_cuts_a_list_in_its_order_and_then_sorts_by_score() -> None:
    truth = {1: [(20.0, 30.0)], 2: [(0.0, 10.0), (100.0, 150.0)]}
    scored = {1: [(0.0, 10.0, 0.1), (20.0, 30.0, 0.9)], 2: [(60.0, 70.0, 0.3), (100.0, 150.0, 0.8), (0.0, 10.0, 0.95)]}
    scores = moment_detr_scores(scored, truth)
    assert (scores["MR-mAP"]["average"], scores["MR-R1"]["0.5"]) == (100.0, 0.0)
    in_order = moment_detr_scores(
        {query: [window[:2] for window in windows] for query, windows in scored.items()}, truth
    )
    assert in_order["MR-mAP"]["average"] == pytest.approx(100 * (0.5 + 2 / 3) / 2, abs=0.01)
    late = {1: [(0.0, 1.0, 0.0)] * 10 + [(20.0, 30.0, 1.0)], 2: scored[2]}  # the eleventh does not count
    assert moment_detr_scores(late, truth)["MR-mAP"]["average"] == 50.0
    tied = {1: [(0.0, 10.0, 0.5), (20.0, 30.0, 0.5)], 2: scored[2]}  # of equal scores the order counts
    assert moment_detr_scores(tied, truth)["MR-mAP"]["average"] == 75.0


def test_moment_detr_figures_by_length_take_only_the_true_windows_of_it() -> None:
    truth = {1: [(0.0, 10.0)], 2: [(0.0, 10.5), (0.0, 60.0)], 3: [(5.0, 5.0)]}
    windows = {1: [(0.0, 10.0, 1.0)], 2: [(0.0, 60.0, 1.0), (0.0, 10.5, 0.5)], 3: [(0.0, 1.0, 1.0)]}
    scores = moment_detr_scores(windows, truth)
    by_length = {name: scores[name]["MR-mAP"]["average"] for name in ("short", "middle", "long")}
    assert by_length == {"short": 100.0, "middle": 50.0, "long": 100.0}
    assert (scores["middle"]["MR-R1"]["0.5"], scores["long"]["MR-R1"]["0.95"]) == (0.0, 100.0)
    assert {"short", "middle", "long"} & moment_detr_scores({1: windows[1]}, {1: truth[1]}).keys() == {"short"}
