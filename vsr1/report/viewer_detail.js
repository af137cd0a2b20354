// One trajectory in full, and the samples of a group side by side; what differs between environments is in KINDS.
"use strict";

const TAG = /(<\/?(?:think|answer|start|end|query|tool)>|<REFINE>)/;
const KINDS = {}; // by kind of a row, filled by the scripts of the environments

function detail(row, group) {
  const kind = KINDS[row.kind];
  const link = make("a", { href: "#t=" + encodeURIComponent(row.id) }, "link to this trajectory");
  const compare = group.length > 1
    && make("a", { class: "button", href: "#g=" + encodeURIComponent(row.id) }, `Compare group: ${group.length} samples`);
  return [
    make("header", {},
      make("h3", { tabindex: -1 }, row.query),
      make("p", {}, kind.badges(row)),
      make("p", { class: "faint" }, `${row.from} · query ${row.query_id} · ended: ${words(row.end || "no reason given")}`,
        make("span", { class: "screen" }, " · ", link)),
      facts([
        ...kind.facts(row), ["Reward", signed(row.reward, 3)], ["Tokens", tokens(row)],
        ["Seconds", fixed(row.turns.reduce((sum, turn) => sum + turn.seconds, 0), 2)],
      ]),
      compare),
    kind.overview(row),
    row.turns.map((turn, index) => kind.turn(row, turn, index, false)),
    rewards(row),
  ];
}

function groupView(rows) {
  const row = rows[0];
  const kind = KINDS[row.kind];
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
          ...kind.brief(item), ["Ended", words(item.end)],
        ]),
        item.turns.map((turn, index) => kind.turn(item, turn, index, true))))),
  ];
}

const badge = (kind, text) => make("span", { class: `badge ${kind}` }, text);
const facts = (pairs) => make("dl", { class: "facts" },
  pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));

function tokens(row) {
  const sum = (name) => row.turns.reduce((total, turn) => total + turn[name], 0);
  const latents = sum("latent_tokens");
  return `${sum("text_tokens")} text` + (latents ? `, ${latents} latent` : "");
}

// What a turn cost and earned, in words.
function turnNumbers(row, turn, index) {
  const reward = row.turn_rewards[index];
  return `${turn.text_tokens} text tokens, ` + (turn.latent_tokens ? `${turn.latent_tokens} latents, ` : "") + `${fixed(turn.seconds, 2)} s`
    + (reward === undefined ? "" : `, reward ${signed(reward, 3)}`)
    + numbers(turn.advantages).map(([name, value]) => `, advantage of ${words(name)} ${signed(value, 3)}`).join("");
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

function rewards(row) {
  const terms = Object.entries(row.terms);
  if (!terms.length && !row.turn_rewards.length) return null;
  return make("section", { class: "rewards", "aria-label": "Reward" },
    make("h4", {}, "Reward"),
    facts([...terms.map(([name, value]) => [words(name), signed(value, 3)]),
      ...row.turn_rewards.map((value, index) => [`turn ${index + 1}, weighted`, signed(value, 3)]),
      ["total, weighted", make("strong", {}, signed(row.reward, 3))]]));
}

// A time axis under bars, which are [class, [start, end], y, height, attributes]; `top` is where it is drawn.
function axis(duration, bars, top, mostTicks, label) {
  const percent = (seconds) => `${(100 * Math.min(Math.max(seconds, 0), duration) / duration).toFixed(2)}%`;
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find((value) => duration / value <= mostTicks) ?? duration / mostTicks;
  const ticks = Array.from({ length: Math.floor(duration / step) + 1 }, (_, index) => index * step);
  return draw("svg", { class: "axis", width: "100%", height: top + 18, role: "img", "aria-label": label },
    bars.map(([kind, pair, y, height, note]) => [
      draw("rect", { class: kind, x: percent(pair[0]), width: percent(pair[1] - pair[0]), y, height, rx: 2 }),
      note ? draw("text", { class: kind, x: percent((pair[0] + pair[1]) / 2), y: y + height / 2 + 4, "text-anchor": "middle" }, note) : null,
    ]),
    draw("line", { x1: 0, x2: "100%", y1: top + 0.5, y2: top + 0.5 }),
    ticks.map((at) => [
      draw("line", { x1: percent(at), x2: percent(at), y1: top, y2: top + 5 }),
      draw("text", { x: percent(at), y: top + 16, "text-anchor": at < duration * 0.03 ? "start" : at > duration * 0.97 ? "end" : "middle" }, `${at} s`),
    ]));
}

const key = (kind, text) => make("span", {}, make("span", { class: `key ${kind}` }), text);
