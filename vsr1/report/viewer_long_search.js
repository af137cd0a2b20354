// Searches that navigate: the films that were judged, and before the calls into each its tree and what was read of it.
"use strict";

KINDS.search_then_navigate = {
  ...KINDS.search,
  prepare(row) {
    for (const view of row.films) {
      view.turns = row.turns.slice(view.first, view.last);
      view.predicted = row.turns[view.last].span;
    }
    KINDS.navigate.prepare(row);
    KINDS.search.prepare(row);
  },
  line: (row) => [make("span", {}, `${amount(row.spent)} of ${amount(row.budget)}`), KINDS.search.line(row)],
  facts: (row) => [...KINDS.search.facts(row), ...brief(row)],
  brief: (row) => [...KINDS.search.brief(row), ...brief(row)],
  overview: (row) => make("section", { class: "turn" },
    make("h4", {}, "Films"), judgedTable(row), make("h4", {}, "Budget"), spending(row)),
  turn(row, turn, index, narrow) {
    const view = row.films.find((one) => one.first === index);
    return [
      view && !narrow && filmSection(view),
      turn.tool === undefined ? lookSection(row, turn, index, narrow) : callSection(row, turn, index, narrow),
    ].filter(Boolean);
  },
};

// One line a film: where the search had it, what was spent on it, the verdict, and what the refined query made of it.
function judgedTable(row) {
  const heads = ["Turns", "Film", "Rank", "Spent", "Verdict", "Right video"];
  let first = 0;
  const lines = row.turns.flatMap((turn, index) => {
    if (turn.tool !== undefined) return [];
    const cost = row.turns.slice(first, index).reduce((sum, call) => sum + call.cost, 0);
    const numbers = first === index ? `${index + 1}` : `${first + 1}–${index + 1}`;
    const rank = turn.before.findIndex(([video]) => video === turn.video) + 1;
    first = index + 1;
    return [[numbers, [turn.video, turn.right && make("small", {}, " right")], rank ? String(rank) : "–", amount(cost),
      `${mark(turn.correct)} ${words(turn.verdict)}`, rankChange(turn.rank_before, turn.rank_after ?? turn.rank_before)]];
  });
  return make("table", { class: "ranking" },
    make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, lines.map((cells) => make("tr", {}, cells.map((cell, place) => make("td", { class: place === 1 && "video" }, cell))))));
}

function filmSection(view) {
  return make("section", { class: "turn" },
    make("h4", {}, "Navigated: ", make("span", { class: "video" }, view.film), " ",
      badge("", `${fixed(view.seconds, 0)} s`), badge("", `${amount(view.budget)} to spend`)),
    tree(view), make("h4", {}, "Read"), reading(view));
}
