// What every part of the page uses: elements, messages, requests with the key, and frames of a video.

const FRAMES = 8; // of a filmstrip

export const find = (id) => document.getElementById(id);
export const span = (start, end) => `${start.toFixed(1)} to ${end.toFixed(1)} s`;

export function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

export function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

// Shown, and read out by screen readers.
export const say = (text) => (find("message").textContent = text);
export const fail = (error) => error.name !== "AbortError" && say(error.message);

const key = () => sessionStorage.getItem("key");
export const headers = () => (key() ? { "X-API-Key": key() } : {});

// The error that an answer's body tells of; a proxy's may not be ours.
export function refusal(status, body) {
  let error = {};
  try {
    error = JSON.parse(body).error;
  } catch {
    error.message = `the server answered with status ${status}`;
  }
  return Object.assign(new Error(error.message), { status, code: error.code });
}

export async function ask(address, options = {}) {
  const answer = await fetch(address, { ...options, headers: { ...headers(), ...options.headers } }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server cannot be reached");
  });
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer;
}

// Where a video is, or with its version (what `GET` of the video tells) a part of it, which a browser keeps for good.
export function place(corpus, video, part = "", version = "") {
  const query = new URLSearchParams({ corpus, ...(version && { v: version }) });
  return `v1/videos/${encodeURIComponent(video)}${part}?${query}`;
}

// Shows a frame in an image; the key goes in a header, so the picture comes through fetch.
export async function frame(image, corpus, { video_id, version }, seconds) {
  const answer = await ask(`${place(corpus, video_id, "/thumbnail", version)}&t=${seconds.toFixed(2)}`);
  const address = URL.createObjectURL(await answer.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

// Frames of the whole video, as one picture; those in a moment are marked.
export function strip(corpus, video, moment) {
  const { video_id, duration } = video;
  const label = `${FRAMES} frames of ${video_id}${moment ? `, the moment from ${span(...moment)} marked` : ""}`;
  const box = make("div", { className: "strip", role: "img", ariaLabel: label });
  for (let i = 0; i < FRAMES; i++) {
    const [from, to] = [(duration * i) / FRAMES, (duration * (i + 1)) / FRAMES];
    const holds = (second, start, end) => second >= start && second < end;
    const middle = moment && (moment[0] + moment[1]) / 2;
    const inside = moment && (holds((from + to) / 2, ...moment) || holds(middle, from, to)); // one frame at least
    const image = make("img", { alt: "", className: inside ? "inside" : "" });
    box.append(image);
    frame(image, corpus, video, (from + to) / 2).catch(() => image.classList.add("missing"));
  }
  return box;
}

export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  make("a", { download: name, href: address }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
