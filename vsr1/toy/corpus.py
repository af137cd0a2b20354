"""Write a toy corpus in the layout of a real one: MP4 files and annotations; the same seed gives the same corpus."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.render import encode_mp4
from vsr1.toy.world import HARD, Example, Film, ToyWorldError, describe, further_queries, make_corpus

WRITERS = 2  # films drawn and encoded at one time; more threads wait for the interpreter's lock


def write_toy_corpus(
    out: Path,
    train: int,
    test: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    val: int = 0,
    hard: int = 0,
    queries: int = 1,
    skip: int = 0,
) -> None:
    """Render and annotate the splits.

    Args:
        out: dataset folder; must be empty or absent.
        train: videos in the training split.
        test: videos in the test split.
        seed: of the films and their sentences.
        progress: gets the number of videos that are written, and of all.
        val: videos in the validation split, which 0 leaves out.
        hard: videos in a test split with more confusers, which 0 leaves out.
        queries: of each training film, all about the same moment; the other films have one.
        skip: first films of the training split that are left to another corpus of the same seed.

    Raises:
        ToyWorldError: the folder is not empty, a split of fewer than two videos, or more queries than there are.
    """
    if out.exists() and any(out.iterdir()):
        raise ToyWorldError(f"{out} is not empty; choose a new folder or delete it first")
    sizes = {"train": train, "test": test} | {split: size for split, size in (("val", val), (HARD, hard)) if size}
    corpora = {
        split: make_corpus(split, skip + videos, seed)[skip:] if split == "train" else make_corpus(split, videos, seed)
        for split, videos in sizes.items()
    }
    folder, written, ids = DatasetFolder(out), 0, count(1)
    numbered = {split: [_annotation(example, next(ids)) for example in examples] for split, examples in corpora.items()}
    for example in corpora["train"]:  # after all others, whose ids do not depend on how many there are
        for query in further_queries(example, queries - 1, seed):
            numbered["train"].append(_annotation(replace(example, query=query), next(ids)))
    for split, examples in corpora.items():
        folder.raw_videos(split).mkdir(parents=True)
        films = [example.film for example in examples]
        paths = [folder.raw_videos(split) / f"{film.video_id}.mp4" for film in films]
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(encode_mp4, films, paths):
                written += 1
                if progress:
                    progress(written, sum(sizes.values()))
        write_lines(folder.annotations(split), numbered[split])
        write_lines(folder.events(split), [_events(example.film, example.first) for example in examples])


def _annotation(example: Example, desc_id: int) -> dict[str, object]:
    return {
        "video": example.film.video_id,
        "time": list(example.moment),
        "desc_id": desc_id,
        "duration": float(example.film.duration),
        "cog_desc": describe(example.queried[0]),
        "fig_desc": example.query,
        "fig_desc_score": 1.0,
    }


def _events(film: Film, first: int) -> dict[str, object]:
    events = [asdict(event) for event in film.events]
    return {"video": film.video_id, "duration": float(film.duration), "first": first, "events": events}
