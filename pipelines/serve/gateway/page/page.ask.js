// The page of a server that navigates: asks /v1/ask about one film, and shows each call where it lies in the film.
import { ask, button, download, fail, find, headers, make, say } from "./page.parts.js";
import { called, follow, worded } from "./page.stream.js";

const state = { lengths: new Map(), stop: null };

async function corpora() {
  let rows;
  try {
    rows = await (await ask("v1/corpora")).json();
  } catch (error) {
    if (error.status === 401) find("key-label").hidden = false;
    throw error.status === 401 && !headers()["X-API-Key"] ? new Error("enter an API key") : error;
  }
  find("corpus").replaceChildren(...rows.map((row) => make("option", { value: row.name }, `${row.name} (${row.videos} films)`)));
  await films();
  find("state").textContent = "ready";
}

// The first films to choose from; others can be typed.
async function films() {
  const query = new URLSearchParams({ corpus: find("corpus").value, limit: 200 });
  const { videos } = await (await ask(`v1/films?${query}`)).json();
  state.lengths = new Map(videos.map((video) => [video.video_id, video.duration]));
  find("films").replaceChildren(...videos.map((video) => make("option", { value: video.video_id })));
  if (!state.lengths.has(find("film").value)) find("film").value = videos.length ? videos[0].video_id : "";
}

// One bar a call over the length of the film, which is known of the films that are listed.
function draw(event, length) {
  if (event.start === null || !length) return;
  const mark = make("div", { className: "mark", title: called(event) }, String(event.turn));
  mark.style.left = `${(100 * event.start) / length}%`;
  mark.style.width = `${(100 * (event.end - event.start)) / length}%`;
  find("path").querySelector("ol").append(make("li", {}, mark));
  find("path").hidden = false;
}

function newTurn(number) {
  const title = make("h2", {}, `Turn ${number}`), text = make("pre");
  find("turns-list").append(make("li", { className: "card" }, title, make("details", {}, make("summary", {}, "Reasoning"), text)));
  return { number, title, text };
}

function show(result) {
  const save = button("Save answer", () =>
    download("answer.json", new Blob([JSON.stringify(result, null, 2)], { type: "application/json" })));
  const words = result.answer ?? {
    abstained: "The agent does not know.", no_answer: "There was no answer at the end.", partial: "The time limit ended it.",
  }[result.status];
  const spent = `${result.spent} of ${result.budget} spent in ${result.usage.seconds.toFixed(1)} s`;
  find("answer").classList.toggle("nothing", result.answer === null);
  find("answer").replaceChildren(make("h2", {}, words), make("p", {}, spent), make("div", { className: "line" }, save));
  find("answer").hidden = false;
  say(`${spent}: ${words}`);
}

async function question() {
  if (state.stop) state.stop.abort();
  const { signal } = (state.stop = new AbortController());
  const body = { film: find("film").value, question: find("query").value, corpus: find("corpus").value, stream: true };
  if (find("budget").value) body.budget = Number(find("budget").value);
  const length = state.lengths.get(body.film), turns = new Map();
  find("turns-list").replaceChildren();
  find("path").querySelector("ol").replaceChildren();
  find("path").hidden = find("answer").hidden = true;
  say("asking");
  try {
    for await (const event of follow("v1/ask", body, signal)) {
      if (event.type === "error") throw new Error(event.message);
      if (event.type === "done") return show(event.result);
      if (!turns.has(event.turn)) turns.set(event.turn, newTurn(event.turn));
      const turn = turns.get(event.turn);
      if (event.type === "reasoning.delta") turn.text.append(event.text);
      if (event.type !== "called") continue;
      turn.title.textContent += `: ${called(event)}`;
      say(`turn ${event.turn}: ${event.status === "ok" ? called(event) : worded(event.status)}`);
      draw(event, length);
    }
  } catch (error) {
    fail(error);
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  question();
});
const notReady = (error) => (find("state").textContent = error.message);
find("corpus").addEventListener("change", () => films().catch(fail));
find("key").addEventListener("change", () => {
  sessionStorage.setItem("key", find("key").value);
  corpora().catch(notReady);
});
corpora().catch(notReady);
