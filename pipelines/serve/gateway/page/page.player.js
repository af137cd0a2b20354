// The player of one moment: the film where it can be played, its frames where it cannot.
import { ask, button, download, fail, find, frame, headers, make, place, say, span, strip } from "./page.parts.js";

const STEP = 1; // second of an arrow key
const MOST_BYTES = 64 * 2 ** 20; // of a file that is fetched whole, because a player cannot send the key
let shown = null; // the Player in #answer

export function closePlayer() {
  find("answer").hidden = true;
  find("answer").replaceChildren();
  if (shown?.blob) URL.revokeObjectURL(shown.blob);
  shown = null;
}

// Open a moment: {corpus, video_id, start, end, query}; without start and end, the whole video.
export async function openPlayer(moment, ...more) {
  closePlayer();
  const box = find("answer"), title = make("h2", { tabIndex: -1 }, moment.video_id);
  box.classList.remove("nothing");
  box.replaceChildren(title);
  box.hidden = false;
  if (moment.end !== undefined) title.append(`, ${span(moment.start, moment.end)}`);
  const player = (shown = new Player(moment));
  try {
    const video = await (await ask(place(moment.corpus, moment.video_id))).json();
    if (shown !== player) return;
    if (video.status !== "ready") throw new Error(`the video is ${video.status}`);
    box.append(...player.build(video), make("div", { className: "line" }, ...more, ...player.exports()), player.help);
    player.load();
  } catch (error) {
    if (shown === player) box.append(make("p", { className: "bad" }, error.message), ...more);
  }
}

class Player {
  constructor(moment) {
    this.moment = moment;
    this.loops = false;
    this.at = 0;
    this.help = make("p", { className: "faint keys" });
    const keys = [["Space", "play"], ["← →", "a second"], ["[ ]", "start and end of the moment"], ["L", "loop"]];
    for (const [key, what] of keys) this.help.append(make("kbd", {}, key), ` ${what} `);
    this.help.prepend("Keys in this box: ");
  }

  build(film) {
    const { duration, first_picture_sec: offset } = film; // a player counts by the clock of the file
    const { corpus, video_id, start = 0, end = duration } = this.moment;
    Object.assign(this, { film, duration, offset, start, end: Math.min(end, duration) });
    const part = this.moment.end === undefined ? null : [start, this.end];
    this.video = make("video", { controls: true, playsInline: true, preload: "metadata", ariaLabel: `Video ${video_id}` });
    this.image = make("img", { alt: `A frame of ${video_id}`, hidden: true });
    this.note = make("p", { className: "bad", hidden: true });
    this.slider = make("input", { type: "range", min: 0, max: duration, step: 0.1, ariaLabel: "Position in the video" });
    this.clock = make("span", { className: "faint" });
    const mark = make("div", { className: "mark" });
    mark.style.left = `${(100 * this.start) / duration}%`;
    mark.style.width = `${(100 * (this.end - this.start)) / duration}%`;
    const frames = strip(corpus, film, part);
    frames.addEventListener("click", (event) => {
      const { left, width } = frames.getBoundingClientRect();
      this.seek((duration * (event.clientX - left)) / width);
    });
    this.play = button("Play", () => this.toggle());
    this.loop = button("Loop the moment", () => this.setLoop(!this.loops), { ariaPressed: "false" });
    const timeline = make("div", { className: "timeline" }, make("div", { className: "track" }, mark), this.slider);
    const controls = make(
      "div", { className: "line" }, this.play, button("To its start", () => this.seek(this.start)),
      button("To its end", () => this.seek(this.end)), this.loop, this.clock,
    );
    this.stage = make("div", { className: "player" }, this.video, this.image, this.note, timeline, frames, controls);
    this.listen();
    this.tell(this.start);
    return [this.stage];
  }

  exports() {
    const { corpus, video_id, query } = this.moment, { start, end } = this;
    const hash = { ...(query && { q: query }), corpus, v: video_id, t: `${start.toFixed(2)}-${end.toFixed(2)}` };
    const link = new URL(`#${new URLSearchParams(hash)}`, location).href;
    const copy = () => navigator.clipboard.writeText(link).then(() => say("link copied"), () => say(link));
    const clip = async () => {
      say("cutting the clip");
      const cut = await ask(`${place(corpus, video_id, "/clip", this.film.version)}&start=${start}&end=${end}`);
      download(`${video_id}_${start.toFixed(1)}-${end.toFixed(1)}.mp4`, await cut.blob());
      say("the clip is saved");
    };
    return [
      button("Copy link", () => (navigator.clipboard ? copy() : say(link))), button("Save clip", () => clip().catch(fail)),
    ];
  }

  listen() {
    const { video, slider } = this;
    slider.addEventListener("input", () => this.seek(Number(slider.value)));
    video.addEventListener("loadedmetadata", () => {
      if (video.videoWidth) this.seek(this.at);
      else this.showFrames("This browser cannot show the pictures of this file.");
    });
    for (const type of ["timeupdate", "seeking"]) video.addEventListener(type, () => this.played());
    for (const type of ["play", "pause"]) {
      video.addEventListener(type, () => (this.play.textContent = video.paused ? "Play" : "Pause"));
    }
    video.addEventListener("ended", () => this.loops && this.again());
  }

  // The file itself, by ranges; with a key, a copy of it.
  async load() {
    const address = place(this.moment.corpus, this.moment.video_id, "/file", this.film.version);
    this.video.addEventListener("error", async () => {
      const answer = ask(address, { headers: { Range: "bytes=0-0" } }); // why: the player does not say
      this.showFrames(await answer.then(() => "This browser cannot play the file.", (error) => error.message));
    });
    try {
      this.video.src = Object.keys(headers()).length ? await this.copy(address) : address;
    } catch (error) {
      this.showFrames(error.message);
    }
  }

  async copy(address) {
    const answer = await ask(address), bytes = Number(answer.headers.get("Content-Length"));
    if (bytes > MOST_BYTES) {
      answer.body.cancel();
      throw new Error("The file is too large to be played with an API key.");
    }
    this.blob = URL.createObjectURL(await answer.blob());
    return this.blob;
  }

  // In place of the film.
  showFrames(why) {
    if (this.video.hidden) return;
    this.video.hidden = this.play.hidden = this.loop.hidden = true;
    this.image.hidden = this.note.hidden = false;
    this.note.textContent = `${why} Its frames are shown.`;
    this.seek(this.at);
  }

  async seek(seconds) {
    const at = Math.max(0, Math.min(seconds, this.duration));
    this.tell(at);
    if (!this.video.hidden) {
      if (this.video.readyState) this.video.currentTime = at + this.offset;
      return;
    }
    if (this.drawing) return; // the frame that is drawn next will be the newest one
    this.drawing = true;
    let drawn = null;
    while (drawn !== this.at) {
      drawn = this.at;
      await frame(this.image, this.moment.corpus, this.film, drawn).catch(fail);
    }
    this.drawing = false;
  }

  tell(at) {
    this.at = at;
    this.slider.value = at;
    this.slider.ariaValueText = `${at.toFixed(1)} of ${this.duration.toFixed(1)} seconds`;
    this.clock.textContent = `${at.toFixed(1)} / ${this.duration.toFixed(1)} s`;
  }

  played() {
    const at = Math.max(0, this.video.currentTime - this.offset);
    if (this.loops && !this.video.paused && at >= this.end) this.again();
    else this.tell(at);
  }

  again() {
    this.seek(this.start);
    this.video.play().catch(fail);
  }

  toggle() {
    if (this.video.hidden) return;
    if (this.video.paused) this.video.play().catch(fail);
    else this.video.pause();
  }

  setLoop(loops) {
    this.loops = loops;
    this.loop.ariaPressed = String(loops);
  }

  pressed(event) {
    if (!this.stage || event.ctrlKey || event.altKey || event.metaKey) return;
    const keys = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.seek(this.at - STEP),
      ArrowRight: () => this.seek(this.at + STEP),
      "[": () => this.seek(this.start),
      "]": () => this.seek(this.end),
      l: () => this.setLoop(!this.loops),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || (event.key === " " && ["BUTTON", "VIDEO"].includes(event.target.tagName))) return; // they know it
    event.preventDefault();
    act();
  }
}

find("answer").addEventListener("keydown", (event) => shown?.pressed(event));
