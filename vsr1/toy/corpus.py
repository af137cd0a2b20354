"""Writes a toy corpus in the layout of a real one: MP4 files and annotations; the same seed gives the same corpus."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.render import encode_mp4
from vsr1.toy.world import Example, ToyWorldError, describe, make_corpus

WRITERS = 2  # films drawn and encoded at one time; more threads wait for the interpreter's lock


def write_toy_corpus(
    out: Path,
    train: int,
    test: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    val: int = 0,
) -> None:
    """Render and annotate the splits.

    Args:
        out: dataset folder; must be empty or absent.
        train: videos in the training split. test: in the test split. val: in the validation split, which 0 leaves out.
        progress: called with videos done and videos in all.

    Raises:
        ToyWorldError: the folder is not empty, or a split of fewer than two videos.
    """
    if out.exists() and any(out.iterdir()):
        raise ToyWorldError(f"{out} is not empty; choose a new folder or delete it first")
    sizes = {"train": train, "test": test} | ({"val": val} if val else {})
    corpora = {split: make_corpus(split, videos, seed) for split, videos in sizes.items()}
    folder, done, first_id = DatasetFolder(out), 0, 1
    for split, examples in corpora.items():
        folder.raw_videos(split).mkdir(parents=True)
        films = [example.film for example in examples]
        paths = [folder.raw_videos(split) / f"{film.video_id}.mp4" for film in films]
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(encode_mp4, films, paths):
                done += 1
                if progress:
                    progress(done, sum(sizes.values()))
        write_lines(folder.annotations(split), [_annotation(e, first_id + i) for i, e in enumerate(examples)])
        write_lines(folder.events(split), [_events(e) for e in examples])
        first_id += len(examples)


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


def _events(example: Example) -> dict[str, object]:
    film = example.film
    events = [asdict(event) for event in film.events]
    return {"video": film.video_id, "duration": float(film.duration), "first": example.first, "events": events}
