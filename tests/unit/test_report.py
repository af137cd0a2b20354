"""The report page and the terminal table, made from synthetic trajectories and read back with an HTML parser."""

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from vsr1.agent.predictions import prediction_row
from vsr1.agent.trajectory import Segment, Span, Trajectory, Verdict
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.report import metric_table, pick_trajectories, write_report
from vsr1.report.selection import OUTCOMES, outcomes

VOID = {"meta", "img", "br"}
RIGHT = "right_video"


def look(turn: int, video: str, verdict: Verdict, before: int, after: int | None = None, text: str = "") -> Segment:
    span: Span | None = (6.0, 12.0) if verdict == "matched" else None
    latents = None if after is None else np.zeros((8, 4), np.float32)
    retrieved = [(video, 0.9), *((f"other_{rank}", 0.9 - 0.1 * rank) for rank in range(2, 8))]
    return Segment(
        turn, video, "", [1], [2, 3], [-0.1, -0.1], text, "stop", verdict, span, latents, None, retrieved, before,
        after, "v", 0, 0.1,
    )  # fmt: skip


def trajectory(outcome: str, query: str, text: str = "<think> seen </think> <answer>matched</answer>") -> Trajectory:
    segments = {
        "refined and improved": [look(1, "wrong", "not_matched", 4, 1, text), look(2, RIGHT, "matched", 1, None, text)],
        "matched the right video": [look(1, RIGHT, "matched", 1, None, text)],
        "matched a wrong video": [look(1, "wrong", "matched", 3, None, text)],
        "not found": [look(1, "wrong", "unknown", 9, 9, text)],
    }[outcome]
    terms = {"verification": 1.0, "retrieval": -0.25}
    return Trajectory(query, f"query {query}", RIGHT, (6.0, 14.0), 16.0, 0, 0, segments, "matched", terms, reward=1.5)


def frames(video_id: str) -> tuple[np.ndarray, np.ndarray]:
    return np.full((16, 64, 64, 3), 90, np.uint8), np.arange(16.0)


class Page(HTMLParser):
    """Collects tags and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        wanted = {("class" if key == "class_" else key): value for key, value in attributes.items()}
        return sum(name == tag and wanted.items() <= found.items() for name, found in self.tags)


def page(tmp_path: Path, **changes: Any) -> Page:
    arguments: dict[str, Any] = {
        "title": "A run",
        "settings": {"seed": "0"},
        "scalars": [
            {"stage": stage, "step": step, "name": "loss", "value": 1.0 / step, "time": 0.0}
            for stage in ("sft", "grpo")
            for step in (1, 2, 3)
        ],
        "evaluations": {},
        "trajectories": [trajectory(outcome, outcome) for outcome in OUTCOMES],
        "frames": frames,
    }
    out = tmp_path / "new folder" / "report.html"
    write_report(out, **{**arguments, **changes})
    return Page(out.read_text(encoding="utf-8"))


def evaluations() -> dict[str, dict[str, Any]]:
    def scored(*made: Trajectory) -> EvalSummary:
        return summarise([prediction_row(item, i, max_turns=2, corpus_size=20) for i, item in enumerate(made)])

    missed = scored(trajectory("not found", "a"), trajectory("matched the right video", "b"))
    found = scored(*(trajectory("matched the right video", query) for query in "ab"))
    return {"before GRPO": missed.to_json(), "after GRPO": found.to_json()}


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    made = page(tmp_path, evaluations=evaluations())
    html = (tmp_path / "new folder" / "report.html").read_text(encoding="utf-8")
    assert not [word for word in ("http://", "https://", "url(", "@import") if word in html]
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in made.tags}
    for tag, attributes in made.tags:
        assert (attributes.get("src", "data:image/jpeg;base64,") or "").startswith("data:image/jpeg;base64,"), tag
        assert (attributes.get("href", "#") or "").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes), tag


def test_page_shows_each_part(tmp_path: Path) -> None:
    made = page(tmp_path, evaluations=evaluations())
    assert made.count("figure", class_="chart") == 2
    assert made.count("article", class_="episode") == 4
    assert made.count("section", class_="turn") == 5
    assert made.count("img", class_="pixelated") == 5 * 12
    assert all(attributes.get("alt") for tag, attributes in made.tags if tag == "img")
    for expected in ("Stage: sft", "min 0.3333 at 3", "verification", "+1.500", "refined and improved", "stayed 9"):
        assert expected in made.text
    assert made.count("span", class_="change better") > 0
    assert "100.0 %" in made.text
    assert "+50.0" in made.text


def test_true_moment_is_drawn_only_on_the_right_video(tmp_path: Path) -> None:
    wrong = page(tmp_path, trajectories=[trajectory("matched a wrong video", "a")])
    assert (wrong.count("rect", class_="true"), wrong.count("rect", class_="predicted")) == (0, 1)
    right = page(tmp_path, trajectories=[trajectory("matched the right video", "a")])
    bar = next(attributes for tag, attributes in right.tags if tag == "rect" and attributes["class"] == "true")
    assert (bar["x"], bar["width"]) == ("37.50%", "50.00%")  # 6 s to 14 s of 16 s
    assert "IoU 0.75" in right.text


def test_texts_are_escaped_and_tags_coloured(tmp_path: Path) -> None:
    attack = "<think> <script>alert(1)</script> <img src=x onerror=y> </think> <answer>matched <REFINE>"
    made = page(
        tmp_path,
        title="<script>t</script>",
        settings={"<script>k</script>": "<b>v</b>"},
        trajectories=[trajectory("not found", "<script>q</script>", attack)],
    )
    assert not {"script", "b"} & {tag for tag, _ in made.tags}
    assert attack in made.text
    for style in ("tag-think", "in-think", "tag-answer", "in-answer", "tag-refine"):
        assert made.count("span", class_=style) >= 1


def test_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    made = page(tmp_path, scalars=[], trajectories=[], settings={})
    assert all(expected in made.text for expected in ("no evaluation", "no scalars", "no trajectories"))


def test_frames_that_cannot_be_had_are_an_error(tmp_path: Path) -> None:
    def missing(video_id: str) -> tuple[np.ndarray, np.ndarray]:
        raise FileNotFoundError(f"no clip of {video_id}")

    with pytest.raises(FileNotFoundError, match="no clip of wrong"):
        page(tmp_path, frames=missing)
    with pytest.raises(ValueError, match="video 'wrong' are float64"):
        page(tmp_path, frames=lambda _: (np.zeros((2, 4, 4, 3)), np.arange(2.0)))
    with pytest.raises(ValueError, match="'wrong' has 2 frames but times of shape"):
        page(tmp_path, frames=lambda _: (np.zeros((2, 4, 4, 3), np.uint8), np.arange(3.0)))
    assert not (tmp_path / "new folder").exists()


def test_evaluation_of_another_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        page(tmp_path, evaluations={"before": {"N": 3}})


def test_pick_shows_every_outcome_that_exists() -> None:
    crowd = [trajectory("matched the right video", f"r{index}") for index in range(50)]
    rare = [trajectory(outcome, outcome) for outcome in OUTCOMES if outcome != "matched the right video"]
    picked = pick_trajectories(crowd + rare, 4)
    assert {name for item in picked for name in outcomes(item)} == set(OUTCOMES)
    assert len(pick_trajectories(crowd + rare, 10)) == 10
    assert pick_trajectories(crowd + rare, 10) == pick_trajectories(crowd + rare, 10)


def test_pick_gives_each_once_and_prefers_other_queries() -> None:
    group = [trajectory("not found", "same") for _ in range(8)]
    other = trajectory("not found", "other")
    picked = pick_trajectories([*group, other], 2)
    assert [item.query_id for item in picked] == ["same", "other"]
    assert len({id(item) for item in pick_trajectories([*group, other], 20)}) == 9
    assert pick_trajectories([], 10) == []


def test_terminal_table_has_a_column_an_evaluation() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    table = metric_table(evaluations())
    console.print(table)
    text = console.export_text()
    assert [str(column.header) for column in table.columns] == ["metric", "before GRPO", "after GRPO"]
    assert table.row_count == 13
    for expected in ("engine alone: R@10", "after refinement: R@1", "IoU ≥ 0.7", "last turn", "latent tokens", "+50.0"):
        assert expected in text
    with pytest.raises(ValueError, match="no evaluations"):
        metric_table({})
