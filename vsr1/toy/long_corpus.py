"""The long toy world as a dataset: films, questions, and records of the reader to begin a training with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from vsr1.episode.sample import SampleId, hashed_seed
from vsr1.formats.atomic import read_lines, write_lines
from vsr1.formats.dataset import TRAIN, DatasetFolder
from vsr1.formats.digest import value_sha256
from vsr1.navigate.calls import ToolCall, ToolResult, clip_node
from vsr1.navigate.files import Question, Record, questions_file, records_file, write_rows
from vsr1.navigate.record import drawn_budget
from vsr1.navigate.tree import ClipTree
from vsr1.settings.navigate import LONGEST_MINUTES, NavigateConfig
from vsr1.toy.long_films import LongFilm, make_long_film
from vsr1.toy.navigators import play, reader
from vsr1.toy.render import write_mp4
from vsr1.video.clips import Clip

FRAMES_PER_SECOND = 2  # of videos: events last seconds
MODEL = "toy captioner 1"  # changes with what it says
_SPAN = r"(?<=\[)\d+(?=-)|(?<=-)\d+(?=\])"
_SECONDS = re.compile(rf"{_SPAN}|(?<=has )\d+(?= seconds)|(?:(?<=\] )|(?<=, ))\d+(?= [a-z])")  # in what is shown
_TOLD = re.compile(rf"{_SPAN}|(?<= at )\d+|(?<=<start>)\d+|(?<=<end>)\d+")  # in replies


@dataclass(frozen=True)
class LongFilms:
    """The films of a split, with the captioner that knows them (`vsr1.navigate.plane.Films`)."""

    films: Mapping[str, LongFilm]
    frames: int  # of a look
    model: str = MODEL

    @classmethod
    def of_split(cls, folder: DatasetFolder, split: str, frames: int) -> LongFilms:
        """Read the films of a split."""
        films = (LongFilm(**row) for row in read_lines(films_file(folder, split)))
        return cls({film.film: film for film in films}, frames)

    def digest(self, film: str) -> str:
        return value_sha256(_row(self.films[film]))

    def tree(self, film: str) -> ClipTree:
        return self.films[film].tree

    def start(self) -> None:
        """Do nothing: it knows its films."""

    def answer(self, call: ToolCall) -> ToolResult:
        return self.films[call.film].result(call)

    def read(self, video_id: str) -> Clip:
        film, node = clip_node(video_id)
        return self.films[film].clip(node, self.frames)


def films_file(folder: DatasetFolder, split: str) -> Path:
    """Return where the films of a split are described."""
    return folder.root / "navigate" / f"{split}.films.jsonl"


def write_long_corpus(folder: DatasetFolder, sizes: Mapping[str, int], settings: NavigateConfig, seed: int) -> None:
    """Write films and questions of each split, and the reader's records of the training split.

    Args:
        sizes: films of each split, whose lengths are `settings.toy_minutes` in turn; of those that are not trained on
            `settings.toy_test_minutes`, where there are any.
    """
    for split, count in sizes.items():
        minutes = settings.toy_minutes if split == TRAIN else settings.toy_test_minutes or settings.toy_minutes
        films = [make_long_film(f"{split}-{i:04d}", minutes[i % len(minutes)], seed) for i in range(count)]
        films_file(folder, split).parent.mkdir(parents=True, exist_ok=True)
        write_lines(films_file(folder, split), [_row(film) for film in films])
        if split == TRAIN:
            write_rows(records_file(folder), [_record(film, settings, seed) for film in films])
        write_rows(questions_file(folder, split), [_question(film) for film in films])


def write_long_videos(folder: DatasetFolder, split: str) -> None:
    """Write the films of a split as videos, and the moments of their questions as annotations: a corpus to search."""
    films = list(LongFilms.of_split(folder, split, 2).films.values())
    folder.raw_videos(split).mkdir(parents=True, exist_ok=True)
    folder.annotations(split).parent.mkdir(parents=True, exist_ok=True)
    for film in films:
        frames = film.frames(np.arange(film.seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND)
        write_mp4(frames, folder.raw_videos(split) / f"{film.film}.mp4", FRAMES_PER_SECOND)
    write_lines(folder.annotations(split), [_annotation(film, number) for number, film in enumerate(films, start=1)])


def _annotation(film: LongFilm, number: int) -> dict[str, object]:
    [clue] = film.task(SampleId(film.film)).clues
    return {
        "video": film.film, "time": list(clue), "desc_id": number, "duration": film.seconds, "cog_desc": film.query,
        "fig_desc": film.query, "fig_desc_score": 1.0,
    }  # fmt: skip


def _question(film: LongFilm) -> Question:
    task = asdict(film.task(SampleId(film.film)))
    return Question(**{name: value for name, value in task.items() if name not in ("id", "budget")})


def told_later(texts: Sequence[str], seconds: float, rng: np.random.Generator) -> list[str]:
    """Return what was shown and replied in turn about a film, in half of the cases as of the end of a recording.

    That has up to 8 hours, and its seconds begin long before the film: a policy that has seen the seconds of short
    films only does not read those of long ones.

    Args:
        seconds: length of the film.
    """
    before = int(rng.integers(LONGEST_MINUTES * 60 - int(seconds) + 1)) * int(rng.integers(2))
    patterns = cycle((_SECONDS, _TOLD))
    return [
        pattern.sub(lambda found: str(int(found[0]) + before), text)
        for pattern, text in zip(patterns, texts, strict=False)
    ]


def _record(film: LongFilm, settings: NavigateConfig, seed: int) -> Record:
    """Return the record of an episode of the reader, careful or careless, under a budget as a training draws it."""
    budget = drawn_budget(settings.budgets, hashed_seed(seed, "records"), film.film)
    careless = np.random.default_rng(hashed_seed(seed, "careless", film.film)).random() < settings.toy_careless
    trajectory, shown = play(film, film.task(SampleId(film.film), budget), settings, reader, careless=careless)
    texts = [text for pair in zip(shown, (turn.text for turn in trajectory.turns), strict=True) for text in pair]
    rng = np.random.default_rng(hashed_seed(seed, "clocks", film.film))
    *history, reply = told_later(texts, film.seconds, rng)
    return Record(question_id=film.film, history=history, reply=reply, whole=True)


def _row(film: LongFilm) -> dict[str, object]:
    return {"film": film.film, "leaf_seconds": film.leaf_seconds, "width": film.width, "seed": film.seed}
