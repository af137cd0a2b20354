"""The report page and the terminal table, made from synthetic trajectories and read back with an HTML parser."""

import base64
import gzip
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from search_episodes import search_trajectory, search_turn

from vsr1.config import Config
from vsr1.episode.trajectory import Turn
from vsr1.metrics.prediction_rows import prediction_row
from vsr1.metrics.summary import EvalSummary, summarise
from vsr1.report.metric_rows import metric_table
from vsr1.report.page import Run, write_report
from vsr1.report.rows import TRAINING, row_of
from vsr1.rl.credit import Credit
from vsr1.search.record import SearchTrajectory, Verdict
from vsr1.video.clips import Clip

OUTCOMES = ("refined and improved", "matched the right video", "matched a wrong video", "not found")
VOID = {"meta", "img", "br", "input"}
RIGHT = "right_video"


def look(turn: int, video: str, verdict: Verdict, before: int, after: int | None = None, text: str = "") -> Turn:
    return search_turn(
        turn, video, verdict, (6.0, 12.0) if verdict == "matched" else None, text=text, ranks=(before, after),
        latents=None if after is None else np.zeros((8, 4), np.float32),
        retrieved=[(video, 0.9), *((f"other_{rank}", 0.9 - 0.1 * rank) for rank in range(2, 8))],
    )  # fmt: skip


def trajectory(
    outcome: str, query: str, text: str = "<think> seen </think> <answer>matched</answer>"
) -> SearchTrajectory:
    better, found = look(1, "wrong", "not_matched", 4, 1, text), look(2, RIGHT, "matched", 1, None, text)
    better.record.retrieved_after = found.record.retrieved
    turns = {
        "refined and improved": [better, found],
        "matched the right video": [look(1, RIGHT, "matched", 1, None, text)],
        "matched a wrong video": [look(1, "wrong", "matched", 3, None, text)],
        "not found": [look(1, "wrong", "unknown", 9, 9, text)],
    }[outcome]
    gt = (RIGHT, (6.0, 14.0), 16.0)
    terms = {"verification": 1.0, "retrieval": -0.25}
    return search_trajectory(query, turns, query=f"query {query}", gt=gt, terms=terms, reward=1.5)


def frames(video_id: str, clip_hash: str) -> Clip:
    return Clip(video_id, np.full((16, 64, 64, 3), 90, np.uint8), np.arange(16.0), clip_hash)


class Page(HTMLParser):
    """Collects tags and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.texts: list[tuple[str, str, str]] = []  # tag, class and text of the innermost elements
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
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        self.texts.append((tag, attributes.get("class") or "", data.strip()))

    @property
    def policy(self) -> str:
        [text] = [found["content"] for _, found in self.tags if found.get("http-equiv") == "Content-Security-Policy"]
        return str(text)

    def texts_of(self, tag: str, class_: str) -> list[str]:
        return [text for name, kind, text in self.texts if (name, kind) == (tag, class_)]

    def count(self, tag: str, **attributes: str) -> int:
        wanted = {("class" if key == "class_" else key): value for key, value in attributes.items()}
        return sum(name == tag and wanted.items() <= found.items() for name, found in self.tags)


SCALARS = [
    {"stage": stage, "step": step, "name": "loss", "value": 1.0 / step, "time": 0.0}
    for stage in ("sft", "grpo")
    for step in (1, 2, 3)
]


def evaluations() -> dict[str, EvalSummary]:
    def scored(*made: SearchTrajectory) -> EvalSummary:
        return summarise([prediction_row(item, i, max_turn=2, corpus_size=20) for i, item in enumerate(made)])

    missed = scored(trajectory("not found", "a"), trajectory("matched the right video", "b"))
    found = scored(*(trajectory("matched the right video", query) for query in "ab"))
    return {"before GRPO": missed, "after GRPO": found}


def run(name: str = "A run", **changes: Any) -> Run:
    rows = [row_of(trajectory(outcome, outcome), "after GRPO", 0) for outcome in OUTCOMES]
    made = Run(name, Config().model_dump(mode="json"), SCALARS, evaluations(), rows, frames)
    return replace(made, **changes)


def html_of(tmp_path: Path, *runs: Run) -> str:
    out = tmp_path / "new folder" / "report.html"
    write_report(out, title=runs[0].name, runs=runs)
    return out.read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    """The data block, decoded as the page's script decodes it."""
    found = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', html)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    html = html_of(tmp_path, run())
    made = Page(html)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in made.tags}
    for tag, attributes in made.tags:
        assert attributes.get("src", "data:").startswith("data:") and "style" not in attributes, tag
        assert (attributes.get("href", "#") or "").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes), tag
    without_names = html.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nothing is fetched from
    assert not [word for word in ("http://", "https://", "url(", "@import", "fetch(") if word in without_names]


def test_policy_admits_the_script_and_the_style_of_the_page_alone(tmp_path: Path) -> None:
    html = html_of(tmp_path, run())
    policy = Page(html).policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_page_shows_each_part(tmp_path: Path) -> None:
    made = Page(html_of(tmp_path, run()))
    assert made.count("figure", class_="chart") == 2
    assert made.count("section", class_="evaluation") == 2
    assert made.count("figure", class_="card") == 2  # of the evaluation whose trajectories are there
    for expected in ("Stage: sft", "min 0.3333 at 3", "100.0 %", "+50.0", "queries (N)", "1 better, 3 the same"):
        assert expected in made.text
    assert made.count("td", class_="change better") > 0
    assert not [row for row in data_of(html_of(tmp_path, run()))["trajectories"] if len(row["turns"]) < 1]


def test_failures_and_fingerprints_are_told_where_a_summary_has_them(tmp_path: Path) -> None:
    found = evaluations()
    details = {"failed": {"EngineError": 3}, "fingerprint": "f00", "settings": {"policy": "abc123"}}
    found["after GRPO"] = found["after GRPO"].model_copy(update=details)
    made = Page(html_of(tmp_path, run(evaluations=found)))
    assert "failed: EngineError" in made.text and "abc123" in made.text
    assert "failed:" not in Page(html_of(tmp_path, run())).text


def test_intervals_are_those_of_the_trajectories(tmp_path: Path) -> None:
    hits = [row_of(trajectory("matched the right video", str(index)), "after GRPO", 0) for index in range(9)]
    made = Page(html_of(tmp_path, run(rows=hits)))
    texts = [text for text in made.texts_of("td", "interval") if text]
    assert len(texts) == 5  # engine R@1, refined R@1, IoU 0.5, mean IoU, verification
    assert texts[0] == "100.0\u2013100.0" and texts[3] == "75.0\u201375.0"


def test_the_data_has_what_a_reader_looks_at_and_no_arrays(tmp_path: Path) -> None:
    data = data_of(html_of(tmp_path, run()))
    row, right = data["trajectories"][:2]
    assert row["id"] == "A run/after GRPO/0/refined and improved/0"
    assert (row["first_rank"], row["last_rank"], row["iou"], row["outcome"]) == (4, 1, 0.75, "right video")
    first, second = row["turns"]
    assert (first["refined"], first["rank_before"], first["rank_after"], first["latent_tokens"]) == (True, 4, 1, 8)
    assert first["after"] == second["before"] and second["after"] is None
    assert (first["right"], first["correct"], second["iou"]) == (False, True, 0.75)
    assert second["film"] == right["turns"][0]["film"] != first["film"]  # one film a video
    kept = json.dumps(data)
    assert not [name for name in ("token_ids", "logprobs", '"latents"', "noise", "negative") if name in kept]


def test_a_ranking_after_the_last_refinement_is_shown_where_it_was_kept() -> None:
    refined = trajectory("refined and improved", "q")
    refined.turns[0].record.retrieved_after = [("kept", 1.0)]
    assert row_of(refined, TRAINING, 3)["turns"][0]["after"] == [["kept", 1.0]]
    trained = row_of(refined, TRAINING, 3, [Credit(0.5, 0.25), Credit(-0.5, 0.0)])
    assert [turn["advantages"] for turn in trained["turns"]] == [
        {"tokens": 0.5, "latents": 0.25},
        {"tokens": -0.5, "latents": 0.0},
    ]
    with pytest.raises(ValueError, match="no turn"):
        row_of(replace(refined, turns=[]), TRAINING, 3)


def test_names_of_trajectories_differ_even_where_a_step_was_done_again(tmp_path: Path) -> None:
    twice = [row_of(trajectory("not found", "q"), TRAINING, 1)] * 2
    names = [row["id"] for row in data_of(html_of(tmp_path, run(rows=twice)))["trajectories"]]
    assert names == ["A run/training/1/q/0", "A run/training/1/q/0/2"]


def test_every_video_has_one_film_whichever_run_shows_it(tmp_path: Path) -> None:
    html = html_of(tmp_path, run("a"), run("b"))
    assert len(re.findall(r'id="film-\d+"', html)) == 2
    assert 'id="film-' not in html_of(tmp_path, run(frames=None))


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    other = Config(seed=5).model_dump(mode="json")
    made = Page(html_of(tmp_path, run("first"), run("second", settings=other)))
    assert made.count("polyline", class_="curve run-0") == made.count("polyline", class_="curve run-1") == 2
    for expected in ("first: before GRPO", "second: after GRPO", "What differs between the runs"):
        assert expected in made.text
    assert len(made.texts_of("td", "change ")) == 0


def test_texts_are_escaped(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=y>"
    hostile = [row_of(trajectory("not found", attack, attack), attack, 0)]
    scalars = [{**row, "name": attack, "stage": attack} for row in SCALARS]
    summary = {attack: evaluations()["after GRPO"].model_copy(update={"failed": {attack: 1}})}
    found = run(
        attack, rows=hostile, scalars=scalars, settings={attack: attack}, evaluations=summary, unfinished=[attack]
    )
    html = html_of(tmp_path, found)
    made = Page(html)
    scripts = [attributes for tag, attributes in made.tags if tag == "script"]
    images = [attributes for tag, attributes in made.tags if tag == "img"]
    assert len(scripts) == 2 and [image["src"][:16] for image in images] == ["data:image/webp;"]  # a film
    assert "<script>alert" not in html
    assert made.text.count(attack) >= 5
    assert data_of(html)["trajectories"][0]["query_id"] == attack


def test_an_evaluation_that_did_not_end_is_told(tmp_path: Path) -> None:
    assert "eval did not end" in Page(html_of(tmp_path, Run("one", unfinished=["eval"]))).text
    several = Page(html_of(tmp_path, Run("one", unfinished=["eval"]), Run("two")))
    assert "one: eval did not end" in several.text and "No evaluation" not in several.text


def test_events_are_told_in_seconds_since_the_first(tmp_path: Path) -> None:
    events = [
        {"time": 100.0, "kind": "member died", "member": "rollout-1"},
        {"time": 101.5, "kind": "member serves", "member": "rollout-1", "seconds": {"start": 1.2, "push": 0.3}},
    ]
    html = html_of(tmp_path, Run("one", events=events))
    assert "member serves" in Page(html).text and 'href="#events"' in html
    assert "<td>1.5</td>" in html and "member rollout-1, seconds start 1.2; push 0.3" in html
    assert 'href="#events"' not in html_of(tmp_path, Run("two"))


def test_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    made = Page(html_of(tmp_path, Run("nothing")))
    for expected in ("No evaluation", "No scalars", "No trajectories", "nothing has no config.yaml"):
        assert expected in made.text


def test_frames_that_cannot_be_had_are_an_error(tmp_path: Path) -> None:
    def missing(video_id: str, clip_hash: str) -> Clip:
        raise FileNotFoundError(f"no clip of {video_id}")

    with pytest.raises(FileNotFoundError, match="no clip of wrong"):
        html_of(tmp_path, run(frames=missing))
    assert not list(tmp_path.rglob("*.html"))


def test_terminal_table_has_a_column_an_evaluation() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    table = metric_table(evaluations())
    console.print(table)
    text = console.export_text()
    assert [str(column.header) for column in table.columns] == ["metric", "before GRPO", "after GRPO"]
    assert table.row_count == 13
    for expected in ("engine alone: R@10", "after refinement: R@1", "IoU ≥ 0.7", "last turn", "latent tokens", "+50.0"):
        assert expected in text
