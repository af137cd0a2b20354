// The page: asks /v1/search for a stream of events and shows each turn as it comes.
"use strict";

const FRAMES = 8; // of a filmstrip
const find = (id) => document.getElementById(id);
const state = { excluded: [], stop: null, result: null };

function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { "X-API-Key": key } : {};
}

async function corpora() {
  const answer = await fetch("v1/corpora", { headers: headers() });
  if (answer.status === 401) {
    find("key-label").hidden = false;
    find("state").textContent = "enter an API key";
    return;
  }
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const found = await answer.json();
  find("corpus").replaceChildren(...found.map((corpus) =>
    make("option", { value: corpus.name }, `${corpus.name} (${corpus.videos} videos)`)));
  find("state").textContent = "ready";
}

function place(corpus, video, part = "") {
  return `v1/videos/${encodeURIComponent(video)}${part}?corpus=${encodeURIComponent(corpus)}`;
}

// A frame of a video; the key goes in a header, so the picture comes through fetch.
async function frame(image, corpus, video, seconds) {
  const answer = await fetch(`${place(corpus, video, "/thumbnail")}&t=${seconds.toFixed(2)}`, { headers: headers() });
  if (answer.ok) image.src = URL.createObjectURL(await answer.blob());
}

async function strip(corpus, video, span) {
  const answer = await fetch(place(corpus, video), { headers: headers() });
  const box = make("div", { className: "strip" });
  if (!answer.ok) return box;
  const { duration } = await answer.json();
  for (let i = 0; i < FRAMES; i++) {
    const at = (duration * (i + 0.5)) / FRAMES;
    const inside = span && at >= span[0] && at <= span[1];
    const image = make("img", {
      alt: `${video} at ${at.toFixed(0)} s${inside ? ", in the moment" : ""}`, className: inside ? "inside" : "",
    });
    box.append(image);
    frame(image, corpus, video, at);
  }
  return box;
}

function ranking(title, videos, before) {
  const list = make("ol");
  videos.slice(0, 5).forEach((found, place) => {
    const was = before ? before.findIndex((other) => other.video_id === found.video_id) : place;
    const moved = was < 0 || was > place ? " ↑" : was < place ? " ↓" : "";
    const style = moved === " ↑" ? "up" : moved ? "down" : "";
    list.append(make("li", { className: style }, `${found.video_id} ${found.score.toFixed(3)}${moved}`));
  });
  return make("div", {}, make("strong", {}, title), list);
}

class Turn {
  constructor(number) {
    this.title = make("h2", {}, `Turn ${number}`);
    this.badge = make("span", { className: "badge", hidden: true });
    this.film = make("div");
    this.text = make("pre");
    this.rankings = make("div", { className: "rankings" });
    const details = make("details", {}, make("summary", {}, "Reasoning and ranking"), this.text, this.rankings);
    this.card = make("li", { className: "card" }, make("div", { className: "head" }, this.title, this.badge), this.film, details);
    find("turns-list").append(this.card);
  }
}

const SHOW = {
  retrieved(turn, event) {
    turn.found = event.videos;
    turn.rankings.append(ranking("Retrieved", event.videos));
  },
  async "turn.started"(turn, event, corpus) {
    turn.title.textContent += `: ${event.video_id}`;
    turn.film.replaceChildren(await strip(corpus, event.video_id));
  },
  "reasoning.delta"(turn, event) {
    turn.text.textContent += event.text;
  },
  verdict(turn, event) {
    turn.badge.hidden = false;
    turn.badge.textContent = event.verdict.replace("_", " ");
    turn.badge.classList.add(event.verdict);
  },
  refined(turn, event) {
    if (turn.badge.classList.contains("matched")) return; // it is over
    turn.rankings.append(ranking("After refining the query", event.after, event.before));
  },
};

async function show(result, corpus) {
  state.result = result;
  const box = find("answer");
  box.hidden = false;
  box.classList.toggle("nothing", !result.moments.length);
  if (!result.moments.length) {
    const text = result.status === "partial" ? "The time limit ended the search." : "Nothing matches.";
    box.replaceChildren(make("h2", {}, text), make("p", { className: "faint" }, "Try other words, or let it look at more videos."));
    return;
  }
  const [moment] = result.moments;
  const other = make("button", { type: "button" }, "Not this one");
  other.addEventListener("click", () => { state.excluded.push(moment.video_id); search(); });
  const link = make("button", { type: "button" }, "Copy link");
  link.addEventListener("click", () => navigator.clipboard.writeText(location.href));
  const save = make("a", {
    download: "moment.json", href: URL.createObjectURL(new Blob([JSON.stringify(result, null, 2)], { type: "application/json" })),
  }, "Save as JSON");
  box.replaceChildren(
    make("h2", {}, `${moment.video_id}, ${moment.start.toFixed(1)} to ${moment.end.toFixed(1)} s`),
    await strip(corpus, moment.video_id, [moment.start, moment.end]),
    make("div", { className: "line" }, other, link, save),
  );
}

async function search() {
  if (state.stop) state.stop.abort();
  state.stop = new AbortController();
  const { signal } = state.stop;
  const corpus = find("corpus").value;
  const body = { query: find("query").value, corpus, stream: true, exclude_ids: state.excluded };
  if (find("turns").value) body.max_turns = Number(find("turns").value);
  history.replaceState(null, "", `#${new URLSearchParams({ q: body.query, corpus })}`);
  find("turns-list").replaceChildren();
  find("answer").hidden = true;
  find("message").textContent = "searching";
  const turns = new Map();
  try {
    const answer = await fetch("v1/search", {
      method: "POST", signal, headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.type === "error") throw new Error(event.message);
      if (event.type === "done") {
        find("message").textContent = `${event.result.turns.length} looked at in ${event.result.usage.seconds.toFixed(1)} s`;
        await show(event.result, corpus);
      } else if (SHOW[event.type]) {
        if (!turns.has(event.turn)) turns.set(event.turn, new Turn(event.turn));
        SHOW[event.type](turns.get(event.turn), event, corpus);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") find("message").textContent = error.message;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  state.excluded = [];
  search();
});
find("key").addEventListener("change", () => {
  sessionStorage.setItem("key", find("key").value);
  corpora().catch(fail);
});

function fail(error) {
  find("state").textContent = error.message;
}

corpora().then(() => {
  const linked = new URLSearchParams(location.hash.slice(1));
  if (!linked.get("q")) return;
  find("query").value = linked.get("q");
  if (linked.get("corpus")) find("corpus").value = linked.get("corpus");
  const span = (linked.get("t") || "").split("-").map(Number);
  if (!linked.get("v") || span.length !== 2 || span.some(Number.isNaN)) return search();
  const moment = { video_id: linked.get("v"), start: span[0], end: span[1] };
  return show({ status: "matched", query: linked.get("q"), moments: [moment] }, find("corpus").value);
}).catch(fail);
