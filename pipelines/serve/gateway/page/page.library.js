// The videos of a corpus: looked through, added with their progress, deleted.
import { ask, button, fail, find, frame, headers, make, place, refusal, say } from "./page.parts.js";
import { openPlayer } from "./page.player.js";

const TILES = 24; // of a page
const FIRST_FRAME = 1; // second, as the first may be black
const SLOWEST_LOOK = 10_000; // milliseconds between two looks at a video on its way
let next = null, looked = 0;

async function showVideos(after = "") {
  const corpus = find("corpus").value, look = ++looked;
  const query = new URLSearchParams({ corpus, after, limit: TILES });
  const page = await (await ask(`v1/videos?${query}`)).json();
  if (look !== looked) return; // another page was asked for meanwhile
  const tiles = page.videos.map((video) => tile(corpus, video));
  if (after) find("videos").append(...tiles);
  else find("videos").replaceChildren(...tiles);
  next = page.next;
  find("more").hidden = !next;
  if (after) tiles[0]?.querySelector("button").focus();
}

function tile(corpus, { video_id, status, error }) {
  const box = make("li", { className: "card" });
  box.dataset.video = video_id;
  const trash = button("Delete", () => remove(corpus, video_id).catch(fail), { ariaLabel: `Delete ${video_id}` });
  if (status !== "ready") {
    box.append(make("strong", {}, video_id), make("p", {}, error ? `failed: ${error.message}` : status), trash);
    return box;
  }
  const image = make("img", { alt: "" });
  frame(image, corpus, { video_id }, FIRST_FRAME).catch(() => image.classList.add("missing"));
  const open = button(image, async () => {
    await openPlayer({ corpus, video_id });
    find("answer").querySelector("h2").focus();
  }, { className: "open" });
  open.append(make("span", {}, video_id));
  box.append(open, trash);
  return box;
}

async function remove(corpus, video_id) {
  if (!confirm(`Delete ${video_id} from ${corpus}? No search will find it any more.`)) return;
  await ask(place(corpus, video_id), { method: "DELETE" });
  looked++; // a list on its way may have it still
  find("message").focus(); // the button goes
  for (const box of [...find("videos").children]) if (box.dataset.video === video_id) box.remove();
  say(`${video_id} is deleted`);
  document.dispatchEvent(new Event("corpora-changed"));
}

// The transfer; fetch does not tell how far it is.
function send(file, corpus, name, tell) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const query = new URLSearchParams({ corpus, ...(name && { video_id: name }) });
    request.open("POST", `v1/videos?${query}`);
    for (const [header, value] of Object.entries(headers())) request.setRequestHeader(header, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => tell(event.loaded / event.total));
    request.addEventListener("error", () => reject(new Error("the connection broke off; add the file again")));
    request.addEventListener("load", () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(refusal(request.status, request.responseText));
    });
    request.send(file);
  });
}

async function add(event) {
  event.preventDefault();
  const [file] = find("file").files, corpus = find("corpus").value;
  const bar = make("progress", { max: 1, value: 0, ariaLabel: `Progress of ${file.name}` });
  const state = make("span", {}, "sending");
  const row = make("li", { className: "line" }, make("strong", {}, file.name), bar, state);
  find("uploads").prepend(row);
  say(`sending ${file.name}`);
  const show = (text, share) => {
    if (state.textContent !== text) state.textContent = text;
    bar.value = share;
  };
  try {
    const sent = (share) => show(share < 1 ? `sending, ${Math.floor(100 * share)} %` : "checking the file", share / 2);
    let video = await send(file, corpus, find("name").value.trim(), sent);
    find("add").reset();
    for (let wait = 500; video.status !== "ready"; wait = Math.min(wait * 1.3, SLOWEST_LOOK)) {
      if (video.status === "failed") throw new Error(video.error.message);
      show(video.status, (1 + video.progress) / 2);
      await new Promise((resolve) => setTimeout(resolve, wait));
      video = await (await ask(place(corpus, video.video_id))).json();
    }
    show("ready", 1);
    say(`${video.video_id} can be searched`);
    document.dispatchEvent(new Event("corpora-changed"));
    await showVideos();
  } catch (error) {
    bar.remove();
    state.textContent = error.message;
    state.className = "bad";
    say(`${file.name}: ${error.message}`);
  }
}

const showOpen = () => find("library").open && showVideos().catch(fail);
find("library").addEventListener("toggle", showOpen);
find("corpus").addEventListener("change", showOpen);
find("more").addEventListener("click", () => showVideos(next).catch(fail));
find("add").addEventListener("submit", add);
