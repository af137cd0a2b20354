"""Files of others, in their schema: CG-Bench annotations, captions and training rows of LongVideo-R1; and our own."""

import json
import re

import pytest

from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import parse_reply
from vsr1.navigate.files import (
    NavigateFileError,
    Question,
    merged,
    questions_file,
    read_captions,
    read_cgbench,
    read_published_records,
    read_questions,
    read_records,
    records_file,
    write_rows,
)
from vsr1.navigate.record import drawn_budget
from vsr1.settings.navigate import NavigateConfig
from vsr1.toy.long_corpus import LongFilms, write_long_corpus
from vsr1.toy.navigators import play, reader

ANNOTATION = {
    "qid": 7, "video_uid": "film_a", "question": "Who opens the gate?", "choices": ["a child", "a guard", "nobody"],
    "right_answer": "B", "clue_intervals": [[100, 104], [60, 62.5], [107, 110]], "duration": 2000, "domain": "x",
    "sub_category": "y",
}  # fmt: skip


def written(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_cgbench_annotations_become_questions(tmp_path):
    [question] = read_cgbench(written(tmp_path / "cg.json", [ANNOTATION]))
    task = question.task(SampleId("0/0/7", 2), 8.0)
    assert (task.question_id, task.film, task.seconds, task.answer, task.budget) == ("7", "film_a", 2000, "B", 8)
    assert task.options[1] == "a guard" and task.clues == [(60, 62.5), (100, 110)]
    assert task.tree.width == 5


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"right_answer": "D"}, "none of the letters A, B, C"),
        ({"duration": 0}, "seconds"),
        ({"clue_intervals": [[3]]}, "not a CG-Bench annotation"),
        ({"choices": None}, "options"),
        ({"clue_intervals": [[9, 3]]}, "start not after end"),
    ],
)
def test_faults_of_annotations_are_named(tmp_path, change, fault):
    path = written(tmp_path / "cg.json", [ANNOTATION, ANNOTATION | change])
    with pytest.raises(NavigateFileError, match=f"cg.json row 1: .*{fault}"):
        read_cgbench(path)
    with pytest.raises(NavigateFileError, match="a JSON list is needed, not dict"):
        read_cgbench(written(path, ANNOTATION))


def test_clues_that_are_near_are_one():
    assert merged([(10, 12), (0, 5), (17, 20), (26, 30)]) == [(0, 20), (26, 30)]
    assert merged([]) == []


def captions(sizes):
    return [
        [{"segment_id": i + 1, "level": level, "caption": f"<caption>{level} {i}</caption>", "frame_time": [0.0],
          "frame_ids": [0]} for i in range(size)]
        for level, size in enumerate(sizes)
    ]  # fmt: skip


def test_published_captions_become_a_tree(tmp_path):
    file = {"video_name": "film_a.mp4", "width": 4, "captions": captions([4, 16, 64])}
    name, width, tree = read_captions(written(tmp_path / "c.json", file))
    assert (name, width, len(tree)) == ("film_a.mp4", 4, 84)
    h, m, leaf = 3, 2, 4
    assert tree[(h,)].endswith(f"0 {h - 1}</caption>")
    assert tree[(h, m)].endswith(f"1 {(h - 1) * 4 + m - 1}</caption>")
    assert tree[(h, m, leaf)].endswith(f"2 {(h - 1) * 16 + (m - 1) * 4 + leaf - 1}</caption>")


def test_the_older_layout_begins_with_the_whole_film(tmp_path):
    file = {"video_name": "a", "width": 4, "captions": captions([1, 4, 16, 64])}
    _, _, tree = read_captions(written(tmp_path / "c.json", file))
    assert tree[(1,)] == "<caption>1 0</caption>" and len(tree) == 84


@pytest.mark.parametrize("sizes", [[4, 16], [4, 16, 63], [1, 4, 16]])
def test_captions_that_are_no_tree_are_refused(tmp_path, sizes):
    file = {"video_name": "a", "width": 4, "captions": captions(sizes)}
    with pytest.raises(NavigateFileError, match="no tree of width 4"):
        read_captions(written(tmp_path / "c.json", file))


def test_published_training_rows_become_records(tmp_path):
    row = {
        "system": "You answer.",
        "history": [["Question: <tool> in words", "<think>a</think><tool>get_caption((1,2))</tool>"]],
        "instruction": "The caption is: <caption>rain</caption>", "input": "",
        "output": "<think>b</think><tool>video_qa((1,2,3), \"is it raining?\")</tool>",
    }  # fmt: skip
    [record] = read_published_records(written(tmp_path / "t.json", [row]))
    assert [len(record.history), record.history[1]] == [3, row["history"][0][1]]
    assert record.history[0].startswith("<|im_start|>system\nYou answer.<|im_end|>\n<|im_start|>user\n")
    assert record.history[2].startswith("<|im_end|>\n<|im_start|>user\n") and record.history[2].endswith("assistant\n")
    assert parse_reply(record.history[1]).node == (1, 2) and parse_reply(record.reply).words == "is it raining?"
    with pytest.raises(NavigateFileError, match="row 0: not a training row"):
        read_published_records(written(tmp_path / "t.json", [{"system": "x"}]))


def test_the_toy_world_is_written_and_read(tmp_path):
    folder, settings = DatasetFolder(tmp_path), NavigateConfig(toy_minutes=[12, 33])
    write_long_corpus(folder, {"train": 4, "test": 2}, settings, 1)
    questions = read_questions(questions_file(folder, "train"))
    assert [question.film for question in questions] == [f"train-000{i}" for i in range(4)]
    assert {question.task(SampleId("p"), 4).tree.width for question in questions} == {4, 5}
    films = LongFilms.of_split(folder, "train", 4)
    assert films.films["train-0001"].task(SampleId("p"), 4) == questions[1].task(SampleId("p"), 4)
    clip = films.read("train-0001@2.1.3")
    assert clip.video_id == "train-0001@2.1.3" and len(clip.frames) == 4
    records = read_records(records_file(folder))
    assert [record.question_id for record in records] == [question.question_id for question in questions]
    assert all(record.whole for record in records) and "Left: 0. Answer now." not in records[0].history[0]
    assert any(
        record.reply.endswith(f"<answer>{question.answer}</answer>")
        for record, question in zip(records, questions, strict=True)
    )


def test_half_of_the_records_are_told_with_the_seconds_of_a_longer_recording(tmp_path):
    folder, settings = DatasetFolder(tmp_path), NavigateConfig(toy_minutes=[12])
    write_long_corpus(folder, {"train": 12}, settings, 1)
    films, clocks = LongFilms.of_split(folder, "train", 4).films, []
    for record in read_records(records_file(folder)):
        film = films[record.question_id]
        budget = drawn_budget(settings.budgets, hashed_seed(1, "records"), film.film)
        _, shown = play(film, film.task(SampleId(film.film), budget), settings, reader)
        [length] = re.findall(r"has (\d+) seconds", record.history[0])
        before = int(length) - int(film.seconds)
        for told, said in zip(record.history[::2], shown, strict=True):
            assert re.sub(r"\d+", "#", told) == re.sub(r"\d+", "#", said)
            for seconds in (r"\[(\d+)-", r"-(\d+)\]", r"[\],] (\d+) [a-z]"):  # of parts, and of what a leaf shows
                now, then = ([int(number) for number in re.findall(seconds, text)] for text in (told, said))
                assert now == [number + before for number in then]
            assert re.findall(r"Left: \d+|^[\d,]+ ", told, re.M) == re.findall(r"Left: \d+|^[\d,]+ ", said, re.M)
        clocks.append(before)
        assert 0 <= before <= 480 * 60 - film.seconds
    assert 0 < clocks.count(0) < len(clocks)


def test_films_that_are_not_trained_on_may_have_other_lengths(tmp_path):
    folder = DatasetFolder(tmp_path)
    write_long_corpus(folder, {"train": 2, "test": 2}, NavigateConfig(toy_minutes=[12], toy_test_minutes=[12, 48]), 1)
    widths = {
        split: [
            question.task(SampleId("p"), 4).tree.width for question in read_questions(questions_file(folder, split))
        ]
        for split in ("train", "test")
    }
    assert widths == {"train": [4, 4], "test": [4, 6]}


def test_faults_of_our_own_files_are_named(tmp_path):
    path = tmp_path / "q.jsonl"
    question = Question(question_id="a", film="f", seconds=20, question="?", answer="red")
    write_rows(path, [question, question])
    with pytest.raises(NavigateFileError, match="same question_id"):
        read_questions(path)
    path.write_text('{"question_id": "a"}\n{')
    with pytest.raises(NavigateFileError, match="row 2: not JSON"):
        read_questions(path)
    path.write_text("")
    with pytest.raises(NavigateFileError, match="holds no question"):
        read_questions(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_records(tmp_path / "none.jsonl")
