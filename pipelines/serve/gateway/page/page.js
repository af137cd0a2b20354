// The page: asks /v1/search for a stream of events and shows each turn as it comes.
import { ask, button, download, fail, find, headers, make, place, say, span, strip } from "./page.parts.js";
import { closePlayer, openPlayer } from "./page.player.js";
import { called, follow, worded } from "./page.stream.js";
import "./page.library.js";

const state = { excluded: [], stop: null, corpora: [] };

async function corpora() {
  const chosen = find("corpus").value;
  try {
    state.corpora = await (await ask("v1/corpora")).json();
  } catch (error) {
    if (error.status === 401) find("key-label").hidden = false;
    throw error.status === 401 && !headers()["X-API-Key"] ? new Error("enter an API key") : error;
  }
  find("corpus").replaceChildren(...state.corpora.map((corpus) =>
    make("option", { value: corpus.name }, `${corpus.name} (${corpus.videos} videos)`)));
  if (state.corpora.some((corpus) => corpus.name === chosen)) find("corpus").value = chosen;
  find("state").textContent = "ready";
  find("library").hidden = false;
  offer();
}

// Queries to try, until there is one.
function offer() {
  const { examples = [] } = state.corpora.find((corpus) => corpus.name === find("corpus").value) || {};
  const tries = examples.map((query) => make("li", {}, button(query, () => {
    find("query").value = query;
    find("message").focus(); // the button goes
    find("ask").requestSubmit();
  })));
  find("examples").hidden = !tries.length || Boolean(find("query").value);
  find("examples").querySelector("ul").replaceChildren(...tries);
}

function ranking(title, videos, before) {
  const list = make("ol");
  videos.slice(0, 5).forEach((video, rank) => {
    const was = before ? before.findIndex((other) => other.video_id === video.video_id) : rank;
    const moved = was < 0 || was > rank ? "up" : was < rank ? "down" : "";
    const arrow = moved && make("span", { role: "img", ariaLabel: `, moved ${moved}` }, moved === "up" ? " ↑" : " ↓");
    list.append(make("li", { className: moved }, `${video.video_id} ${video.score.toFixed(3)}`, arrow));
  });
  return make("div", {}, make("strong", {}, title), list);
}

function newTurn(number) {
  const title = make("h2", {}, `Turn ${number}`), badge = make("span", { className: "badge", hidden: true });
  const film = make("div"), calls = make("ol", { className: "calls", hidden: true }), text = make("pre"), rankings = make("div", { className: "rankings" });
  const details = make("details", {}, make("summary", {}, "Reasoning and ranking"), text, rankings);
  const head = make("div", { className: "head" }, title, badge);
  find("turns-list").append(make("li", { className: "card" }, head, film, calls, details));
  return { number, title, badge, film, calls, text, rankings };
}

const SHOW = {
  retrieved: (turn, event) => turn.rankings.append(ranking("Retrieved", event.videos)),
  async "turn.started"(turn, event, corpus) {
    turn.video = event.video_id;
    turn.title.textContent += `: ${event.video_id}`;
    say(`turn ${turn.number}: looking at ${event.video_id}`);
    turn.film.replaceChildren(strip(corpus, await (await ask(place(corpus, event.video_id))).json()));
  },
  "reasoning.delta": (turn, event) => turn.text.append(event.text),
  called(turn, event) {
    turn.calls.hidden = false;
    turn.calls.append(make("li", {}, called(event)));
    say(`turn ${turn.number}: ${called(event)}`);
  },
  verdict(turn, event) {
    turn.badge.hidden = false;
    turn.badge.textContent = worded(event.verdict);
    turn.badge.classList.add(event.verdict);
    say(`turn ${turn.number}: ${turn.video}, ${worded(event.verdict)}`);
  },
  refined(turn, event) {
    if (turn.badge.classList.contains("matched")) return; // it is over
    turn.rankings.append(ranking("After refining the query", event.after, event.before));
  },
};

const lookedAt = (count) => `${count} ${count === 1 ? "video" : "videos"} looked at`;

async function show(result) {
  const save = button("Save answer", () =>
    download("answer.json", new Blob([JSON.stringify(result, null, 2)], { type: "application/json" })));
  const spent = `${lookedAt(result.turns.length)} in ${result.usage.seconds.toFixed(1)} s`;
  const [moment] = result.moments;
  if (moment) {
    const other = button("Not this one", () => {
      state.excluded.push(moment.video_id);
      find("message").focus(); // the button goes
      search();
    });
    say(`Found in ${moment.video_id}, ${span(moment.start, moment.end)}; ${spent}`);
    await openPlayer({ corpus: result.corpus, query: result.query, ...moment }, other, save);
    return;
  }
  const partial = result.status === "partial";
  const text = partial ? "The time limit ended the search before it found anything." : "Nothing matches.";
  const looks = result.turns.filter((turn) => turn.video_id).map((turn) => make("li", {}, button(turn.video_id, () =>
    openPlayer({ corpus: result.corpus, video_id: turn.video_id })), ` ${worded(turn.verdict || "not finished")}`));
  const box = find("answer");
  box.classList.add("nothing");
  box.replaceChildren(
    make("h2", {}, text), make("p", {}, `${spent}${looks.length ? ":" : "."}`), make("ol", { className: "looks" }, ...looks),
  );
  if (state.excluded.length) box.append(make("p", {}, `Left out: ${state.excluded.join(", ")}.`));
  const advice = partial ? "Ask again, or let it look at fewer videos." : "Try other words, or let it look at more videos.";
  box.append(make("p", { className: "faint" }, advice), make("div", { className: "line" }, save));
  box.hidden = false;
  say(`${text} ${spent}`);
}

async function search() {
  if (state.stop) state.stop.abort();
  const { signal } = (state.stop = new AbortController());
  const corpus = find("corpus").value;
  const body = { query: find("query").value, corpus, stream: true, exclude_ids: state.excluded };
  if (find("turns").value) body.max_turns = Number(find("turns").value);
  history.replaceState(null, "", `#${new URLSearchParams({ q: body.query, corpus })}`);
  find("turns-list").replaceChildren();
  find("examples").hidden = true;
  find("library").open = false;
  closePlayer();
  say("searching");
  const turns = new Map();
  try {
    for await (const event of follow("v1/search", body, signal)) {
      if (event.type === "error") throw new Error(event.message);
      if (event.type === "done") return await show(event.result);
      if (!SHOW[event.type]) continue;
      if (!turns.has(event.turn)) turns.set(event.turn, newTurn(event.turn));
      Promise.resolve(SHOW[event.type](turns.get(event.turn), event, corpus)).catch(fail);
    }
  } catch (error) {
    fail(error);
  }
}

// A link holds a query, or a moment, or both; with a moment nothing is searched.
async function openLink() {
  const linked = new URLSearchParams(location.hash.slice(1));
  const [query, video_id] = [linked.get("q") || "", linked.get("v")];
  if (linked.get("corpus")) find("corpus").value = linked.get("corpus");
  find("query").value = query;
  offer();
  const [start, end] = (linked.get("t") || "").split("-").map(Number);
  state.excluded = [];
  if (video_id && start < end) {
    if (state.stop) state.stop.abort();
    say("");
    find("turns-list").replaceChildren();
    await openPlayer({ corpus: find("corpus").value, query, video_id, start, end });
  } else if (query) await search();
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  state.excluded = [];
  search();
});
find("corpus").addEventListener("change", offer);
find("query").addEventListener("input", offer);
const notReady = (error) => (find("state").textContent = error.message);
find("key").addEventListener("change", () => {
  sessionStorage.setItem("key", find("key").value);
  corpora().then(openLink).catch(notReady);
});
document.addEventListener("corpora-changed", () => corpora().catch(fail));
addEventListener("hashchange", () => openLink().catch(fail));
corpora().then(openLink).catch(notReady);
