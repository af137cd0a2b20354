"""What toy films look like: the named motion can be told from frames a second apart, also after encoding."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vsr1.formats.annotations import read_annotations
from vsr1.formats.dataset import DatasetFolder
from vsr1.toy.corpus import write_toy_corpus
from vsr1.toy.render import SIDE, encode_mp4, render
from vsr1.toy.world import COLOURS, MOTIONS, SHAPES, Event, Film, ToyWorldError, load_events, make_corpus
from vsr1.video.decode import sample_video


def film(motion: str = "left", shape: str = "circle", colour: str = "white", seconds: int = 16) -> Film:
    return Film("f", seconds, (Event(0, seconds, colour, shape, motion),), 7)


def mask(frames: np.ndarray) -> np.ndarray:
    return frames.min(axis=-1) > 150  # a white shape on a dark ground


def shift(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """By how many pixels (x, y) a shape moved on a screen that wraps around: where the two overlap most."""
    overlap = np.fft.ifft2(np.fft.fft2(after) * np.conj(np.fft.fft2(before))).real
    y, x = np.unravel_index(overlap.argmax(), overlap.shape)
    return (int(x) + SIDE // 2) % SIDE - SIDE // 2, (int(y) + SIDE // 2) % SIDE - SIDE // 2


@pytest.mark.parametrize(("motion", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_straight_motions_go_their_way_each_second(motion: str, way: tuple[int, int]) -> None:
    shapes = mask(render(film(motion), np.arange(16.0)))
    for before, after in pairwise(shapes):
        x, y = shift(before, after)
        assert (np.sign(x), np.sign(y)) == way
        assert 8 <= abs(x) + abs(y) <= 12


def test_a_pulsing_shape_grows_and_shrinks_in_place() -> None:
    pulsing = mask(render(film("pulsing"), np.arange(16.0)))
    sizes = pulsing.sum(axis=(1, 2))
    assert sizes.max() > 2 * sizes.min()
    assert {np.sign(after - before) for before, after in pairwise(sizes)} == {-1, 1}
    # The smaller of two is part of the larger.
    assert all((before & after).sum() == min(before.sum(), after.sum()) for before, after in pairwise(pulsing))


def test_a_frame_depends_on_film_and_time_only() -> None:
    together = render(film(), np.array([3.0, 0.5, 9.25]))
    assert together.shape == (3, SIDE, SIDE, 3)
    assert together.dtype == np.uint8
    for time, frame in zip((3.0, 0.5, 9.25), together, strict=True):
        np.testing.assert_array_equal(frame, render(film(), np.array([time]))[0])


def test_every_look_differs_from_every_other() -> None:
    frames = [render(film(m, s, c), np.array([0.0, 1.0])) for m in MOTIONS for s in SHAPES for c in COLOURS]
    assert len({frame.tobytes() for frame in frames}) == len(MOTIONS) * len(SHAPES) * len(COLOURS)


def test_encoded_frames_are_those_rendered_at_their_times(tmp_path: Path) -> None:
    shown = film("pulsing", "triangle", "red")
    encode_mp4(shown, tmp_path / "a.mp4")
    encode_mp4(shown, tmp_path / "b.mp4")
    first, second = (
        sample_video(tmp_path / name, fps=1.0, max_frames=64, max_pixels=200_704) for name in ("a.mp4", "b.mp4")
    )
    np.testing.assert_array_equal(first.frames, second.frames)
    assert (first.duration, first.raw_fps, first.total_frames) == (16.0, 4.0, 64)
    error = np.abs(first.frames.astype(float) - render(shown, first.timestamps))
    assert error.mean() < 8


def test_a_corpus_repeats_and_reads_as_a_dataset(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    for name in ("a", "b"):
        write_toy_corpus(tmp_path / name, 2, 2, 5, lambda done, total: steps.append((done, total)), val=2)
    assert steps[:6] == [(done, 6) for done in range(1, 7)]
    a, b = DatasetFolder(tmp_path / "a"), DatasetFolder(tmp_path / "b")
    ids: set[int] = set()
    for split in ("train", "val", "test"):
        assert a.annotations(split).read_bytes() == b.annotations(split).read_bytes()
        assert a.events(split).read_bytes() == b.events(split).read_bytes()
        events = load_events(a.events(split))
        for row in read_annotations(a.annotations(split)):
            shown, first = events[row.video]
            assert row.time == (shown[first].start, shown[first + 1].end)
            assert row.duration == shown[-1].end
            ids.add(row.desc_id)
            films = [
                sample_video(folder.raw_videos(split) / f"{row.video}.mp4", fps=1.0, max_frames=64, max_pixels=200_704)
                for folder in (a, b)
            ]
            assert films[0].duration == row.duration
            np.testing.assert_array_equal(films[0].frames, films[1].frames)
    assert len(ids) == 6


def test_training_films_can_have_further_queries(tmp_path: Path) -> None:
    for name, queries in (("one", 1), ("three", 3)):
        write_toy_corpus(tmp_path / name, 4, 2, 5, queries=queries)
    one, three = DatasetFolder(tmp_path / "one"), DatasetFolder(tmp_path / "three")
    assert three.annotations("test").read_bytes() == one.annotations("test").read_bytes()
    alone, rows = (read_annotations(folder.annotations("train")) for folder in (one, three))
    assert rows[:4] == alone
    assert sorted(row.desc_id for row in rows) == [1, 2, 3, 4, *range(7, 15)]
    for own in alone:
        about = [row for row in rows if row.video == own.video]
        assert len({row.fig_desc for row in about}) == 3
        assert {row.time for row in about} == {own.time}
    with pytest.raises(ToyWorldError, match="44 further queries, not 45"):
        write_toy_corpus(tmp_path / "many", 2, 2, 5, queries=46)


def test_a_validation_split_of_no_videos_is_left_out(tmp_path: Path) -> None:
    write_toy_corpus(tmp_path, 2, 2, 5)
    assert not DatasetFolder(tmp_path).annotations("val").exists()


def test_a_corpus_is_not_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToyWorldError, match="not empty"):
        write_toy_corpus(tmp_path, 2, 2, 0)


def test_a_corpus_may_leave_the_first_films_to_another_one(tmp_path: Path) -> None:
    """Together they are those of one corpus, so no query of one names what a film of the other shows."""
    whole = [example.film.events for example in make_corpus("train", 5, 7)]
    films = []
    for name, train, skip in (("few", 2, 0), ("more", 3, 2)):
        write_toy_corpus(tmp_path / name, train, 2, 7, hard=2, skip=skip, queries=2)
        folder = DatasetFolder(tmp_path / name)
        films += [tuple(events) for events, _ in load_events(folder.events("train")).values()]
        assert len(read_annotations(folder.annotations("train"))) == 2 * train
        assert len(read_annotations(folder.annotations("hard"))) == 2
    assert films == whole
