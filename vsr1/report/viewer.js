// Ties list and detail together. The address says what is open: #t=<trajectory>, #g=<trajectory of a group>.
"use strict";

async function start() {
  if (!find("rows")) return; // a page without trajectories
  const { runs, trajectories } = await readData();
  const byId = new Map(trajectories.map((row) => [row.id, row]));
  const groupKey = (row) => (row.source === TRAINING ? `${row.run}/${row.step}/${row.query_id}` : row.id);
  const groups = Map.groupBy(trajectories, groupKey);
  const pane = find("detail");
  let byKey = false;

  const list = new List(trajectories, runs, (row, fromKey) => {
    byKey = fromKey;
    const hash = "#t=" + encodeURIComponent(row.id);
    if (location.hash === hash) show();
    else location.hash = hash; // so that "back" returns to what was open before
  });

  function show() {
    const [, kind, id] = /^#([tg])=(.+)$/.exec(location.hash) ?? [];
    if (!kind) return;
    const row = byId.get(decodeURIComponent(id));
    if (!row) {
      pane.replaceChildren(make("p", { class: "bad" }, `This page has no trajectory ${decodeURIComponent(id)}.`));
      return;
    }
    const group = groups.get(groupKey(row));
    const whole = kind === "g";
    pane.closest(".viewer").classList.toggle("wide", whole);
    pane.replaceChildren(...(whole ? [back(row), ...groupView(group)] : detail(row, group)).flat(Infinity).filter(Boolean));
    pane.scrollTop = 0;
    list.select(row);
    const heading = pane.querySelector("h3");
    if (byKey || whole) heading.focus({ preventScroll: true });
    byKey = false;
    const inSight = pane.getBoundingClientRect();
    if (inSight.top < 0 || inSight.top > innerHeight * 0.8) pane.scrollIntoView({ block: "start" });
  }

  const back = (row) => make("p", {}, make("a", { class: "button", href: "#t=" + encodeURIComponent(row.id) }, "← one trajectory"));

  pane.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (pane.closest(".viewer").classList.contains("wide")) {
      byKey = true;
      location.hash = pane.querySelector(".button").getAttribute("href");
    } else list.box.focus();
  });
  window.addEventListener("hashchange", show);
  show();
}

start().catch((error) => {
  find("count").textContent = `The trajectories cannot be shown: ${error.message}. Is the browser up to date?`;
  throw error;
});
