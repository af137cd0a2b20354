"""The long toy world: real frames, captions that lose detail, questions with one answer, scripted agents."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from bench.navigators import AGENTS
from bench.optimum import best_accuracy
from vsr1.episode.sample import SampleId
from vsr1.navigate.calls import ToolCall, clip_node, node_clip
from vsr1.navigate.ranking import ranked_nodes
from vsr1.navigate.record import is_right, spent
from vsr1.navigate.rewards import NavigateRewards, location
from vsr1.settings.navigate import NavigateConfig, NavigateRewardConfig
from vsr1.toy.long_films import LongFilm, make_long_film
from vsr1.toy.navigators import play
from vsr1.toy.render import render
from vsr1.toy.world import DOING, ToyWorldError

FILMS = [make_long_film(f"f{number}", 12, 3) for number in range(150)]
SETTINGS = NavigateConfig()


@pytest.mark.parametrize("minutes", [10, 17, 24.3, 33, 67, 112, 120, 480])
def test_a_film_has_about_its_minutes_and_its_leaves_whole_seconds(minutes):
    film = make_long_film("f", minutes, 0)
    assert film.seconds == pytest.approx(minutes * 60, rel=0.06)
    assert film.tree.width == film.width and len(film.tree.borders) == film.width**3 + 1
    assert film.tree.span((1, 1, 2)) == (film.leaf_seconds, 2 * film.leaf_seconds)


@pytest.mark.parametrize("minutes", [9, 481])
def test_other_lengths_are_refused(minutes):
    with pytest.raises(ToyWorldError, match="10 to 480 minutes"):
        make_long_film("f", minutes, 0)


def test_a_film_follows_from_its_numbers():
    film = FILMS[0]
    same = LongFilm(film.film, film.leaf_seconds, film.width, film.seed)
    assert same.plan == film.plan and [same.leaf(n) for n in range(64)] == [film.leaf(n) for n in range(64)]
    assert make_long_film("f0", 12, 4).plan != film.plan or make_long_film("f0", 12, 4).leaf(0) != film.leaf(0)


def test_frames_are_those_of_the_toy_films():
    film = FILMS[0]
    times = np.array([0.5, film.leaf_seconds - 0.25, film.leaf_seconds + 0.5, film.seconds])
    frames = film.frames(times)
    assert (frames[:2] == render(film.leaf(0), times[:2])).all()
    assert (frames[2:3] == render(film.leaf(1), np.array([0.5]))).all()
    assert frames.shape == (4, 64, 64, 3) and frames[3].std() > 0
    clip = film.clip((1, 1, 1), 4)
    assert clip.frames.shape[0] == 4 and clip.timestamps.max() < film.leaf_seconds
    assert clip_node(clip.video_id) == ("f0", (1, 1, 1)) and clip_node(node_clip("a@b", (2, 3))) == ("a@b", (2, 3))


def test_captions_lose_detail_by_level():
    dropped = []
    for film in FILMS[:20]:
        shape, motion = film.plan.scenes[0]
        assert film.caption((1,)) == f"a {shape}"
        parts = [film.caption((1, number)) for number in range(1, 5)]
        dropped += [f"a {shape} {DOING[motion]}" not in part for part in parts]
        assert all(part.startswith(f"a {shape}") for part in parts)
        leaf = film.caption((1, 1, 2))
        assert leaf.startswith(str(film.leaf_seconds)) and DOING[motion] in leaf
    assert 0.08 < fmean(dropped) < 0.35


def test_a_question_has_one_answer_and_its_clue_is_in_one_leaf():
    for film in FILMS:
        task = film.task(SampleId("p"), 8)
        [number] = task.tree.covered(task.clues)
        leaf = film.tree.leaf(number)
        assert leaf in film.plan.places and leaf[0] == film.plan.right
        assert f"{task.answer} {film.plan.detail} " in film.caption(leaf)
        right = [n for n, scene in enumerate(film.plan.scenes, 1) if scene == (film.plan.shape, film.plan.motion)]
        assert right == [film.plan.right]
        for branch in film.plan.look_alikes:
            leaves = [leaf for part in film.tree.children((branch,)) for leaf in film.tree.children(part)]
            details = [leaf for leaf in leaves if film.plan.detail in film.caption(leaf)]
            assert len(details) == 1 and details[0] in film.plan.places


def test_a_model_that_is_asked_says_what_is_there():
    film = FILMS[0]
    right = next(place for place in film.plan.places if place[0] == film.plan.right)
    question = film.task(SampleId("p")).question
    said = film.result(ToolCall("f0", "video_qa", right, question)).text
    assert said is not None and film.task(SampleId("p")).answer in said
    shapes = {event.shape for event in film.events((1, 1, 1))}
    missing = next(shape for shape in ("ring", "cross", "square", "circle", "triangle") if shape not in shapes)
    assert film.answer((1, 1, 1), f"where is the {missing}?") == "that is not in this part"


def test_a_search_ranks_by_rare_words_in_common():
    captions = {(1, 1): "a cross moving left", (1, 2): "a cross moving left, a ring", (2, 1): "a square, a ring"}
    assert ranked_nodes(captions, "cross left ring", 2) == [(1, 2), (1, 1)]
    assert ranked_nodes(captions, "a ball", 3) != [] and ranked_nodes(captions, "ball", 3) == []


def test_a_search_knows_what_words_say_together_and_prefers_who_says_no_more():
    captions = {
        (1, 1): "a ring moving left, a cross moving up", (1, 2): "a cross moving left, a ring moving up, a square",
        (2, 1): "a cross moving left, a ring moving up",
    }  # fmt: skip
    assert ranked_nodes(captions, "a cross moving left, a ring", 3) == [(2, 1), (1, 2), (1, 1)]


def test_a_search_names_nodes_of_the_level_that_is_set_and_opens_them():
    film = FILMS[0]
    right = next(place for place in film.plan.places if place[0] == film.plan.right)
    settings = NavigateConfig(find_level=3)
    trajectory, _ = play(film, film.task(SampleId(film.film), 2), settings, AGENTS["searcher"])
    assert [turn.record.status for turn in trajectory.turns] == ["ok", "ok", "answered"] and is_right(trajectory)
    assert trajectory.turns[0].record.nodes[0] == trajectory.turns[1].record.node == right


def accuracy(name, budget):
    trajectories = [play(film, film.task(SampleId(film.film), budget), SETTINGS, AGENTS[name])[0] for film in FILMS]
    assert all(spent(one) <= budget and one.turns[-1].record.status != "malformed" for one in trajectories)
    return fmean(map(is_right, trajectories)), fmean(map(spent, trajectories))


@pytest.mark.parametrize("budget", [2, 8])
def test_scripted_agents_are_ordered_and_the_optimal_one_reaches_the_computed_optimum(budget):
    best = fmean(best_accuracy(film.width, len(film.plan.look_alikes), budget) for film in FILMS)
    tolerance = 3 * (best * (1 - best) / len(FILMS)) ** 0.5
    optimal, _ = accuracy("optimal", budget)
    assert optimal == pytest.approx(best, abs=tolerance)
    assert accuracy("greedy", budget)[0] <= best + tolerance
    assert accuracy("uniform", budget)[0] <= best + tolerance
    assert accuracy("oracle", budget)[0] == 1


@pytest.mark.parametrize("budget", [4, 8, 30])
def test_the_reader_is_nearly_as_good_as_the_best_and_knows_only_what_it_read(budget):
    best = fmean(best_accuracy(film.width, len(film.plan.look_alikes), budget) for film in FILMS)
    assert accuracy("reader", budget)[0] >= 0.9 * best - 3 * (best * (1 - best) / len(FILMS)) ** 0.5
    for film in FILMS[:20]:
        task = film.task(SampleId(film.film), budget)
        played, _ = play(film, task, SETTINGS, AGENTS["reader"])
        blind, _ = play(film, replace(task, answer="?", clues=[(0.0, 1.0)]), SETTINGS, AGENTS["reader"])
        assert [turn.text for turn in played.turns] == [turn.text for turn in blind.turns]


def test_the_reader_says_what_it_saw_and_what_follows_from_it():
    film = next(film for film in FILMS if min(film.plan.look_alikes) != film.plan.right)
    trajectory, _ = play(film, film.task(SampleId(film.film), 8), SETTINGS, AGENTS["reader"])
    first, second = (turn.text for turn in trajectory.turns[:2])
    wanted = f"<think>wanted {film.plan.shape} {DOING[film.plan.motion]}, {film.plan.detail}. "
    branches = sorted(film.plan.look_alikes)
    shapes = [shape for shape, _ in film.plan.scenes]
    marks = {number: "next" if number in branches else "no" for number in range(1, 5)}
    assert first.startswith(
        wanted + ", ".join(f"{n} {shapes[n - 1]} {mark}" for n, mark in marks.items()) + ".</think>"
    )
    assert first.endswith(f"<tool>caption({branches[0]},1)</tool>")
    assert second.startswith(f"{wanted}{branches[0]},1 {film.plan.shape}")


def test_a_careless_reader_takes_the_first_look_alike_for_the_right_scene():
    def play_careless(film):
        return play(film, film.task(SampleId(film.film), 30), SETTINGS, AGENTS["reader"], careless=True)[0]

    right_first = [min(film.plan.look_alikes) == film.plan.right for film in FILMS]
    played = [play_careless(film) for film in FILMS]
    assert all(is_right(one) for one, first in zip(played, right_first, strict=True) if first)
    others = [one for one, first in zip(played, right_first, strict=True) if not first]
    assert 0 < fmean(map(is_right, others)) < 0.35  # by chance one of six colours is the right one
    for one in others:
        assert len({turn.record.node[:1] for turn in one.turns[:-1]}) == 1
        assert " seen.<" in one.turns[-1].text


def test_a_search_saves_calls():
    assert accuracy("finder", 4)[0] > accuracy("optimal", 4)[0] + 0.1
    assert accuracy("searcher", 30)[0] == 1 and accuracy("searcher", 30)[1] < accuracy("optimal", 30)[1]


def test_the_oracle_makes_detours_and_leaves_them():
    rewards, calls = NavigateRewards(NavigateRewardConfig()), []
    for film in FILMS[:30]:
        trajectory, shown = play(film, film.task(SampleId(film.film), 8), SETTINGS, AGENTS["oracle"])
        calls.append(len(trajectory.turns) - 1)
        assert len(shown) == len(trajectory.turns) and trajectory.end_reason == "answered"
        assert rewards.of_end(trajectory)["location"] > 0
        assert location(trajectory.task.tree, [trajectory.turns[-2].record.node], trajectory.task.clues) == 1
    assert min(calls) == 2 and max(calls) > 3


def test_a_budget_of_zero_leaves_a_guess_or_an_abstention():
    assert accuracy("optimal", 0)[0] == pytest.approx(1 / 6, abs=0.1)
    trajectory, _ = play(FILMS[0], FILMS[0].task(SampleId("p"), 0), SETTINGS, AGENTS["oracle"])
    assert trajectory.end_reason == "abstained"
