// Navigation: the tree of the film with what was read of it, the calls in their order, and what they cost.
"use strict";

const LEVEL = 22; // pixels of a level of the tree
const ENDS = { "right answer": "✓ right answer", "wrong answer": "✗ wrong answer", "abstained": "– abstained", "no answer": "✗ no answer" };
const isRight = (row) => row.outcome === "right answer";
const nodeName = (node) => (node.length ? node.join(",") : "all");
const amount = (value) => String(Number(value.toFixed(2)));

function callName(turn) {
  if (turn.tool === null) return { answered: `answer ${turn.words}`, abstained: "no answer known" }[turn.status] ?? "no call";
  return `${turn.tool}(${[...(turn.node ? [nodeName(turn.node)] : []), ...(turn.words ? [turn.words] : [])].join(", ")})`;
}

KINDS.navigate = {
  prepare(row) {
    row.spent = row.turns.reduce((sum, turn) => sum + (turn.cost ?? 0), 0);
    row.calls = row.turns.filter((turn) => turn.status === "ok").length;
    row.location = row.terms.location ?? 0;
    row.names = [row.film, row.answer];
  },
  line: (row) => [
    make("span", {}, `${amount(row.spent)} of ${amount(row.budget)}`),
    make("span", { class: isRight(row) ? "verdict good" : "verdict bad", title: row.outcome },
      ENDS[row.outcome][0], make("span", { class: "unseen" }, ` ${row.outcome}`)),
  ],
  badges: (row) => badge(isRight(row) ? "good" : row.outcome === "abstained" ? "" : "bad", ENDS[row.outcome]),
  facts: (row) => [
    ["Film", row.film], ["Right answer", row.answer], ["Answered", row.answered || "–"], ...brief(row),
  ],
  brief,
  overview: (row) => make("section", { class: "turn" },
    row.options.length ? make("ol", { type: "A" }, row.options.map((option) => make("li", {}, option))) : null,
    make("h4", {}, "Film"), tree(row), make("h4", {}, "Read"), reading(row), make("h4", {}, "Budget"), spending(row)),
  turn: callSection,
};

function brief(row) {
  return [["Spent", `${amount(row.spent)} of ${amount(row.budget)}`], ["Calls", String(row.calls)], ["Location", fixed(row.location, 2)]];
}

// The numbers of the turns that looked into a node, and of the searches that named it.
const visits = (row, node) => row.turns.filter((turn) => turn.status === "ok" && turn.node && nodeName(turn.node) === nodeName(node)).map((turn) => turn.number);
const isNamed = (row, node) => row.turns.some((turn) => turn.nodes.some((named) => nodeName(named) === nodeName(node)));
const meets = (row, [start, end]) => row.clues.some((clue) => clue[0] < end && clue[1] > start);

function tree(row) {
  const bars = row.clues.map((clue) => ["true", clue, 1, 7]);
  const top = row.predicted ? 19 : 10;
  if (row.predicted) bars.push(["predicted", row.predicted, 10, 7]);
  for (const [node, ...pair] of row.cells) {
    const numbers = visits(row, node);
    const note = numbers.join(" ");
    const fits = (pair[1] - pair[0]) / row.seconds > 0.013 * note.length; // of some 600 pixels
    const kind = numbers.length ? "read" : isNamed(row, node) ? "named" : "unread";
    bars.push([kind, pair, top + LEVEL * Math.max(0, node.length - 1), LEVEL - 2, fits ? note : null]);
  }
  const levels = Math.max(1, ...row.cells.map(([node]) => node.length));
  return [
    axis(row.seconds, bars, top + 2 + LEVEL * levels, 8, "The film's parts by level; those that were read are listed below"),
    make("p", { class: "legend" }, row.clues.length ? key("true", `the answer is seen at ${row.clues.map(span).join(", ")}`) : null,
      row.predicted ? key("predicted", `predicted ${span(row.predicted)}`) : null,
      key("read", "read, in which turn"), key("named", "named by a search"), key("unread", "not read")),
  ];
}

// What the agent knows of each node, in the order of the film: first what the prompt began with.
function reading(row) {
  const known = row.cells.filter(([node]) => row.captions[nodeName(node)] !== undefined || visits(row, node).length);
  known.sort((a, b) => a[1] - b[1] || a[0].length - b[0].length);
  return make("ul", { class: "reading" }, known.map(([node, ...pair]) => {
    const numbers = visits(row, node);
    return make("li", { class: numbers.length ? `level-${node.length}` : `level-${node.length} faint` },
      make("strong", {}, nodeName(node)), ` ${span(pair)} `,
      numbers.map((number) => badge("", `turn ${number}`)), meets(row, pair) ? badge("good", "has the answer") : null,
      ` ${row.captions[nodeName(node)] ?? ""}`);
  }));
}

function spending(row) {
  let at = 0;
  const bars = row.turns.filter((turn) => turn.cost > 0).map((turn) => ["read", [at, at += turn.cost], 2, 16, String(turn.number)]);
  const whole = Math.max(row.budget, at, 1);
  return [
    draw("svg", { class: "axis", width: "100%", height: 20, role: "img", "aria-label": `${amount(at)} of ${amount(row.budget)} spent` },
      [["unread", [0, whole], 2, 16], ...bars].map(([kind, pair, y, height, note]) => [
        draw("rect", { class: kind, x: `${100 * pair[0] / whole}%`, width: `${100 * (pair[1] - pair[0]) / whole}%`, y, height, rx: 2 }),
        note ? draw("text", { class: kind, x: `${50 * (pair[0] + pair[1]) / whole}%`, y: y + 12, "text-anchor": "middle" }, note) : null,
      ])),
    make("p", { class: "legend" }, make("span", {}, `${amount(at)} of ${amount(row.budget)} spent, ${amount(row.budget - at)} left`),
      make("span", { class: "faint" }, "a number is the turn of a call")),
  ];
}

function callSection(row, turn, index, narrow) {
  const picture = make("div", { class: "film" });
  fillLook(picture, turn);
  const good = ["ok", "answered"].includes(turn.status);
  return make("section", { class: "turn" },
    make("h4", {}, `Turn ${turn.number}: `, make("span", { class: "video" }, callName(turn)), " ",
      badge(good ? "good" : turn.status === "abstained" ? "" : "bad", words(turn.status)),
      turn.cost ? badge("", `cost ${amount(turn.cost)}, ${amount(turn.left)} left`) : null,
      turn.cached ? badge("", "answered from memory") : null),
    picture,
    make("div", { class: narrow ? "" : "columns" },
      make("div", {},
        make("pre", { class: "reply" }, reply(turn.text)),
        make("p", { class: "faint" }, turnNumbers(row, turn, index))),
      make("div", {}, turn.said ? make("p", {}, turn.said) : null,
        turn.tool === "find" && turn.status === "ok" ? make("p", {}, `Named: ${turn.nodes.map(nodeName).join(" · ") || "nothing"}`) : null)));
}

async function fillLook(target, turn) {
  const image = await film(turn.film);
  if (!image) return;
  const { count } = image.dataset;
  image.alt = `${count} frames of part ${nodeName(turn.node)}`;
  const strip = make("div", { class: "strip look" }, image);
  strip.style.setProperty("--frames", count);
  target.append(strip);
}
