"""The report page of a large run: its size, and how long a reader waits for it in a browser.

The run is made up, but its files have the format of a real one and its films are those of the toy world: a film of its
own for every trajectory, so that the page is as large as it can be.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.report import read_run
from pipelines.machine.resources import cores
from vsr1.episode.sample import SampleId
from vsr1.episode.trajectory import Turn
from vsr1.metrics.prediction_rows import prediction_row
from vsr1.metrics.summary import summarise
from vsr1.report import write_report
from vsr1.runs.folder import EVALUATION_LOG, TRAINING_LOG
from vsr1.runs.trajectories import LoggedTrajectory, append_trajectories
from vsr1.search.prompts import assistant_text
from vsr1.search.record import SearchTask, SearchTrajectory, SearchTurn
from vsr1.toy.render import render
from vsr1.toy.world import Example, make_corpus, reasoning
from vsr1.video.clips import ClipReference

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
GROUP = 4  # samples of a training query
BLOCK = 1000  # films of one toy corpus
LISTED = 10  # videos in a ranking
LATENTS, DIM = 8, 16
FIRST_ROW = "#rows [role=option]"

# Runs in the page: from the change of the search field to the frame that shows its result.
_FILTER = """async (text) => {
  const field = document.querySelector("#filters [name=text]"), began = performance.now();
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""
# From the click on a row to the frame that shows the trajectory with its films decoded.
_OPEN = """async (position) => {
  const began = performance.now(), row = document.querySelectorAll("#rows [role=option]")[position];
  row.click();
  const detail = document.getElementById("detail"), wait = () => new Promise((done) => setTimeout(done));
  while (!detail.querySelector(".turn")) await wait();
  const turns = detail.querySelectorAll(".turn").length;
  while (detail.querySelectorAll(".film img").length < turns) await wait();
  await Promise.all([...detail.querySelectorAll(".film img")].map((image) => image.decode()));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""


class BrowserError(RuntimeError):
    """No browser to measure in; the message says what to install."""


def bench_report(trajectories: int, rounds: int, out: Path | None = None) -> dict[str, Any]:
    """Figures of the page of so many trajectories, each time the median of `rounds` fresh browsers.

    Args:
        out: keep the page there.

    Raises:
        BrowserError: no Chromium, or no playwright to drive it.
    """
    browser = find_browser()
    with tempfile.TemporaryDirectory() as folder:
        films = write_synthetic_run(Path(folder) / "synthetic", trajectories)
        page = out or Path(folder) / "report.html"
        began = time.perf_counter()
        run = read_run(Path(folder) / "synthetic", "synthetic", with_frames=False)

        def frames(video: str, clip_hash: str) -> tuple[np.ndarray, np.ndarray]:
            times = np.arange(float(films[video].film.duration))
            return render(films[video].film, times), times

        write_report(page, title="synthetic run", runs=[replace(run, frames=frames)])
        built = time.perf_counter() - began
        measured = [_measure(browser, page.absolute()) for _ in range(rounds)]
        size = page.stat().st_size
    return {
        "bench": "report",
        "trajectories": trajectories,
        "videos": len(films),
        "megabytes": round(size / 1e6, 1),
        "build_seconds": round(built, 1),
        **{name: round(statistics.median(row[name] for row in measured), 2) for name in measured[0]},
        "rounds": rounds,
        "cores": cores(),
    }


def find_browser() -> str:
    """Path of an installed Chromium.

    Raises:
        BrowserError: there is none.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise BrowserError(f"no browser found among {', '.join(BROWSERS)}; install one, as in `apt-get install chromium`")


def _measure(browser: str, page: Path) -> dict[str, float]:
    """Seconds until the first rows show and until all is read; milliseconds to filter and to open a trajectory."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BrowserError("playwright is missing; install the dev dependencies: pip install -e '.[dev]'") from error
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(BROWSER_FLAGS))
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(120_000)
        began = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector(FIRST_ROW)
        opened = time.perf_counter() - began
        tab.wait_for_load_state("load")
        loaded = time.perf_counter() - began
        filtered = max(tab.evaluate(_FILTER, text) for text in ("r", "red circle", "q17", ""))
        shown = max(tab.evaluate(_OPEN, position) for position in (0, 3, 6))
        chromium.close()
    return {"open_seconds": opened, "loaded_seconds": loaded, "filter_ms": filtered, "open_trajectory_ms": shown}


def write_synthetic_run(folder: Path, trajectories: int, seed: int = 0) -> dict[str, Example]:
    """A run folder of two evaluations and training groups, and the example behind each video id.

    Every trajectory shows a film of its own in its first turn.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    examples = list(_examples(trajectories, seed))
    queries = max(1, trajectories // 4)
    for name, first in (("before", 0), ("after", queries)):
        made = [_trajectory(examples, at, at, 0, generator) for at in range(first, min(first + queries, trajectories))]
        if not made:
            continue
        size = max(100, trajectories)
        rows = [prediction_row(item, at, max_turns=3, corpus_size=size) for at, item in enumerate(made)]
        (folder / f"{name}.json").write_text(json.dumps(summarise(rows).to_json()))
        append_trajectories(folder / f"{name}{EVALUATION_LOG}", [LoggedTrajectory(item) for item in made])
    for step, first in enumerate(range(2 * queries, trajectories, GROUP), start=1):
        members = range(first, min(first + GROUP, trajectories))
        made = [_trajectory(examples, first, at, at - first, generator) for at in members]
        append_trajectories(folder / TRAINING_LOG, [LoggedTrajectory(item, step) for item in made])
    scalars = [
        {"stage": "grpo", "step": step, "name": name, "value": float(generator.normal(step / 50, 0.2)), "time": 0.0}
        for step in range(1, 101)
        for name in ("reward/mean", "loss", "entropy")
    ]
    (folder / "scalars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scalars))
    return {example.film.video_id: example for example in examples}


def _examples(count: int, seed: int) -> Iterator[Example]:
    for block in range(0, count, BLOCK):
        for example in make_corpus("test", max(2, min(BLOCK, count - block)), seed + block):
            yield replace(example, film=replace(example.film, video_id=f"{block // BLOCK}_{example.film.video_id}"))


def _trajectory(
    examples: list[Example], asked: int, shown: int, sample: int, rng: np.random.Generator
) -> SearchTrajectory:
    """Return one about the query of `examples[asked]`, whose first turn shows the film of `examples[shown]`."""
    right = examples[asked]
    moment = (float(right.moment[0]), float(right.moment[1]))
    seen = [shown] if shown == asked and rng.random() < 0.6 else [shown, asked if rng.random() < 0.7 else shown]
    ranks = [int(rank) for rank in np.ceil(rng.pareto(1.0, len(seen) + 1))]
    turns = []
    for number, at in enumerate(seen, start=1):
        film, last = examples[at].film, number == len(seen)
        matched = bool(last and (at == asked or rng.random() < 0.3))
        span = (moment[0] + float(rng.integers(-2, 4)), moment[1] + float(rng.integers(-3, 3))) if matched else None
        think = reasoning(list(film.events), right.queried, at == asked)
        others = [examples[int(index)].film.video_id for index in rng.integers(0, len(examples), LISTED - 1)]
        scores = np.sort(rng.random(LISTED))[::-1].tolist()
        latents = {} if last else {"query": rng.normal(size=(LATENTS, DIM)).astype(np.float32)}
        record = SearchTurn(
            video_id=film.video_id,
            verdict="matched" if matched else "not_matched",
            span=span,
            retrieved=list(zip([film.video_id, *others], scores, strict=True)),
            gt_rank_before=min(100, ranks[number - 1]),
            gt_rank_after=None if last else min(100, ranks[number]),
            index_version="synthetic",
            refined=not last,
        )
        turns.append(
            Turn(
                number=number,
                clips=[ClipReference(film.video_id, "")],
                prompt_token_ids=[1] * 100,
                response_token_ids=[2] * 60,
                response_logprobs=[-0.1] * 60,
                text=assistant_text(think, matched, span),
                finish_reason="stop",
                seed=0,
                weight_version=0,
                seconds=float(rng.random()),
                record=record,
                latents=latents,
            )
        )
    for before, after in pairwise(turns):
        before.record.retrieved_after = after.record.retrieved
    rewards = rng.normal(0.5, 0.5, len(turns)).tolist()
    gt = right.film.video_id, moment, float(right.film.duration)
    return SearchTrajectory(
        SearchTask(SampleId(f"q{asked}", sample), f"q{asked}", right.query, *gt),
        turns,
        end_reason="matched" if turns[-1].record.verdict == "matched" else "max_turns",
        terms={"verification": 1.0, "think_format": 1.0, "temporal_iou": 0.5, "retrieval": 0.1},
        turn_rewards=rewards,
        reward=sum(rewards),
    )
