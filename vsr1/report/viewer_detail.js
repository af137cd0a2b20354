// One trajectory in full, and the samples of a group side by side.
"use strict";

const TAG = /(<\/?(?:think|answer|start|end|query)>|<REFINE>)/;

function detail(row, group) {
  const outcome = badge(row.outcome !== "right video" ? "bad" : "good", {
    "right video": "✓ matched the right video", "wrong video": "✗ matched a wrong video", "not found": "✗ not found",
  }[row.outcome]);
  const link = make("a", { href: "#t=" + encodeURIComponent(row.id) }, "link to this trajectory");
  const compare = group.length > 1
    && make("a", { class: "button", href: "#g=" + encodeURIComponent(row.id) }, `Compare group: ${group.length} samples`);
  return [
    make("header", {},
      make("h3", { tabindex: -1 }, row.query),
      make("p", {}, outcome, isRefined(row) && badge("", "refined")),
      make("p", { class: "faint" }, `${row.from} · query ${row.query_id} · ended: ${words(row.end || "no reason given")}`,
        make("span", { class: "screen" }, " · ", link)),
      facts([
        ["Right video", row.gt_video], ["Moment", span(row.gt_span)],
        ["Rank", rankChange(row.first_rank, row.last_rank)], ["IoU", fixed(row.iou, 2)],
        ["Reward", signed(row.reward, 3)], ["Tokens", tokens(row)],
        ["Seconds", fixed(row.turns.reduce((sum, turn) => sum + turn.seconds, 0), 2)],
      ]),
      compare),
    row.turns.map((turn, index) => turnSection(row, turn, index, false)),
    rewards(row),
  ];
}

function groupView(rows) {
  const row = rows[0];
  const mean = rows.reduce((sum, item) => sum + item.reward, 0) / rows.length;
  return [
    make("header", {},
      make("h3", { tabindex: -1 }, row.query),
      make("p", { class: "faint" }, `${rows.length} samples of query ${row.query_id} in training step ${row.step} · mean reward ${signed(mean, 3)}`)),
    make("div", { class: "group-columns", tabindex: 0, role: "region", "aria-label": "Samples of the group" },
      rows.map((item) => make("section", { class: "sample", "aria-label": `Sample ${item.sample}` },
        make("h4", {}, `Sample ${item.sample}`, " ", make("a", { href: "#t=" + encodeURIComponent(item.id) }, "open")),
        facts([
          ["Reward", signed(item.reward, 3)], ["Against the mean", signed(item.reward - mean, 3)],
          ["Rank", rankChange(item.first_rank, item.last_rank)], ["IoU", fixed(item.iou, 2)],
          ["Ended", words(item.end)],
        ]),
        item.turns.map((turn, index) => turnSection(item, turn, index, true))))),
  ];
}

const badge = (kind, text) => make("span", { class: `badge ${kind}` }, text);
const facts = (pairs) => make("dl", { class: "facts" },
  pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

function tokens(row) {
  const sum = (name) => row.turns.reduce((total, turn) => total + turn[name], 0);
  return `${sum("text_tokens")} text, ${sum("latent_tokens")} latent`;
}

function turnSection(row, turn, index, narrow) {
  const reward = row.turn_rewards[index];
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
        make("p", { class: "faint" }, `${turn.text_tokens} text tokens, ${turn.latent_tokens} latents, ${fixed(turn.seconds, 2)} s`
          + (reward === undefined ? "" : `, reward ${signed(reward, 3)}`)
          + numbers(turn.advantages).map(([name, value]) => `, advantage of ${words(name)} ${signed(value, 3)}`).join(""))),
      narrow ? make("p", { class: "faint" }, rankOf(turn)) : ranking(row, turn)));
}

const numbers = (named) => Object.entries(named).filter(([, value]) => typeof value === "number");

function reply(text) {
  const parts = [];
  let inside = "";
  for (const part of text.split(TAG)) {
    if (!part) continue;
    if (!TAG.test(part)) {
      parts.push(inside ? make("span", { class: `in-${inside}` }, part) : part);
      continue;
    }
    const name = part.replace(/[</>]/g, "").toLowerCase();
    parts.push(make("span", { class: `tag tag-${name}` }, part));
    inside = part[1] !== "/" && name !== "refine" ? name : "";
  }
  return parts;
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

function rewards(row) {
  const terms = Object.entries(row.terms);
  if (!terms.length && !row.turn_rewards.length) return null;
  return make("section", { class: "rewards", "aria-label": "Reward" },
    make("h4", {}, "Reward"),
    facts([...terms.map(([name, value]) => [words(name), signed(value, 3)]),
      ...row.turn_rewards.map((value, index) => [`turn ${index + 1}, weighted`, signed(value, 3)]),
      ["total, weighted", make("strong", {}, signed(row.reward, 3))]]));
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
  const base = 4 + 10 * bars.length;
  const percent = (seconds) => `${(100 * Math.min(Math.max(seconds, 0), duration) / duration).toFixed(2)}%`;
  const bar = ([kind, pair], index) => draw("rect", {
    class: kind, x: percent(pair[0]), width: percent(pair[1] - pair[0]), y: 2 + 10 * index, height: 8, rx: 2,
  });
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find((value) => duration / value <= mostTicks) ?? duration / mostTicks;
  const ticks = Array.from({ length: Math.floor(duration / step) + 1 }, (_, index) => index * step);
  return draw("svg", { class: "axis", width: "100%", height: base + 18, role: "img", "aria-label": "Time axis; the moments are written below" },
    bars.map(bar),
    draw("line", { x1: 0, x2: "100%", y1: base + 0.5, y2: base + 0.5 }),
    ticks.map((at) => [
      draw("line", { x1: percent(at), x2: percent(at), y1: base, y2: base + 5 }),
      draw("text", { x: percent(at), y: base + 16, "text-anchor": at < duration * 0.03 ? "start" : at > duration * 0.97 ? "end" : "middle" }, `${at} s`),
    ]));
}

function legend(row, turn) {
  const key = (kind, text) => make("span", {}, make("span", { class: `key ${kind}` }), text);
  return make("p", { class: "legend" },
    turn.right && key("true", `true moment ${span(row.gt_span)}`),
    turn.span ? key("predicted", `predicted ${span(turn.span)}`) : make("span", { class: "faint" }, "no moment predicted"),
    turn.iou === null ? null : make("span", {}, `IoU ${fixed(turn.iou, 2)}`));
}
