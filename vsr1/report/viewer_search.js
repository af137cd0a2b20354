// Searches: what was looked at, what was said of it, and where the right video was.
"use strict";

KINDS.search = {
  prepare(row) {
    row.gain = Math.log(row.first_rank) - Math.log(row.last_rank); // 2 to 1 counts as much as 200 to 100
    row.wrong = row.turns.filter((turn) => turn.correct === false).length; // a call is neither
    row.names = [row.gt_video, ...row.turns.map((turn) => turn.video)];
  },
  line: (row) => [
    make("span", { class: "ranks" }, rankChange(row.first_rank, row.last_rank)),
    make("span", { class: "iou" }, `IoU ${fixed(row.iou, 2)}`),
    make("span", { class: row.wrong ? "verdict bad" : "verdict good", title: row.wrong ? `wrong verdicts: ${row.wrong}` : "every verdict correct" },
      mark(!row.wrong), make("span", { class: "unseen" }, row.wrong ? " a wrong verdict" : " verdicts correct")),
  ],
  badges: (row) => [
    badge(row.outcome !== "right video" ? "bad" : "good", {
      "right video": "✓ matched the right video", "wrong video": "✗ matched a wrong video", "not found": "✗ not found",
    }[row.outcome]),
    isRefined(row) && badge("", "refined"),
  ],
  facts: (row) => [
    ["Right video", row.gt_video], ["Moment", span(row.gt_span)],
    ["Rank", rankChange(row.first_rank, row.last_rank)], ["IoU", fixed(row.iou, 2)],
  ],
  brief: (row) => [["Rank", rankChange(row.first_rank, row.last_rank)], ["IoU", fixed(row.iou, 2)]],
  overview: () => null,
  turn: lookSection,
};

function rankChange(before, after) {
  if (before === after) return `rank ${before}`;
  return [`rank ${before} → `, make("strong", { class: after < before ? "good" : "bad" }, String(after))];
}

function lookSection(row, turn, index, narrow) {
  const picture = make("div", { class: "film" });
  fillFilm(picture, row, turn, narrow);
  return make("section", { class: "turn" },
    make("h4", {}, `Turn ${index + 1}: `, make("span", { class: "video" }, turn.video), " ",
      badge(turn.right ? "good" : "", turn.right ? "right video" : "wrong video"),
      badge(turn.correct ? "good" : "bad", `${mark(turn.correct)} ${words(turn.verdict)}, ${turn.correct ? "correct" : "wrong"}`)),
    picture,
    make("div", { class: narrow ? "" : "columns" },
      make("div", {},
        make("pre", { class: "reply" }, reply(turn.text)),
        turn.rewrite === null ? null : make("p", { class: "faint" }, "Searched next: ", make("q", {}, turn.rewrite)),
        make("p", { class: "faint" }, turnNumbers(row, turn, index))),
      narrow ? make("p", { class: "faint" }, rankOf(turn)) : ranking(row, turn)));
}

function rankOf(turn) {
  if (turn.rank_after === null) return `Right video at rank ${turn.rank_before}; no refinement.`;
  const kind = turn.rank_after < turn.rank_before ? "good" : turn.rank_after > turn.rank_before ? "bad" : "";
  return [`Right video at rank ${turn.rank_before} → `, make("strong", { class: kind }, String(turn.rank_after)), " after refinement."];
}

function ranking(row, turn) {
  const cell = (entry) => {
    if (!entry) return [make("td", {}), make("td", {})];
    const [video, score] = entry;
    const notes = [video === row.gt_video && "right", video === turn.video && "shown"].filter(Boolean).join(", ");
    return [
      make("td", { class: "video" + (video === row.gt_video ? " right-video" : "") }, video, notes && make("small", {}, ` ${notes}`)),
      make("td", { class: "number" }, fixed(score, 3)),
    ];
  };
  const after = turn.after;
  const lines = Math.max(turn.before.length, after ? after.length : 0);
  return make("table", { class: "ranking" },
    make("caption", {}, rankOf(turn)),
    make("thead", {}, make("tr", {},
      make("th", { scope: "col", class: "number" }, "#"), make("th", { scope: "col", colspan: 2 }, after ? "Before" : "Ranking and score"),
      after && make("th", { scope: "col", colspan: 2 }, "After refinement"))),
    make("tbody", {}, Array.from({ length: lines }, (_, index) => make("tr", {},
      make("td", { class: "number faint" }, String(index + 1)), cell(turn.before[index]), after && cell(after[index])))));
}

async function fillFilm(target, row, turn, narrow) {
  const image = await film(turn.film);
  if (!image && !turn.right) return;
  const { count, seconds } = image ? image.dataset : {};
  const duration = turn.right ? Math.max(row.gt_duration, row.gt_span[1]) : Number(seconds);
  if (image) {
    image.alt = `${count} frames of ${turn.video}, spread over ${fixed(Number(seconds), 1)} seconds`;
    const strip = make("div", { class: "strip" }, image);
    strip.style.width = `${Math.min(100, 100 * seconds / duration)}%`;
    strip.style.setProperty("--frames", count);
    target.append(strip);
  }
  target.append(timeline(row, turn, duration, narrow ? 5 : 8), legend(row, turn));
}

function timeline(row, turn, duration, mostTicks) {
  const bars = [turn.right && ["true", row.gt_span], turn.span && ["predicted", turn.span]].filter(Boolean);
  return axis(duration, bars.map(([kind, pair], index) => [kind, pair, 2 + 10 * index, 8]), 4 + 10 * bars.length, mostTicks,
    "Time axis; the moments are written below");
}

function legend(row, turn) {
  return make("p", { class: "legend" },
    turn.right && key("true", `true moment ${span(row.gt_span)}`),
    turn.span ? key("predicted", `predicted ${span(turn.span)}`) : make("span", { class: "faint" }, "no moment predicted"),
    turn.iou === null ? null : make("span", {}, `IoU ${fixed(turn.iou, 2)}`));
}
