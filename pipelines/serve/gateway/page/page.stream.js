// The events of an answer as they come, and the words for them.
import { ask, say } from "./page.parts.js";

const TRIES = 6; // to come back to a stream that was cut; the server keeps its search for some seconds
const PAUSE = 500; // milliseconds between two of them

export const worded = (word) => word.replaceAll("_", " ");

// One line a call into a long video: what was called, where in seconds, what became of it and what is left.
export function called(event) {
  const part = event.start === null ? "" : ` ${event.start.toFixed(0)}-${event.end.toFixed(0)} s`;
  const status = event.status === "ok" ? "" : `, ${worded(event.status)}`;
  return `${event.tool || "no call"}${part}${event.words ? ` ${event.words}` : ""}${status}; ${event.left} left`;
}

// The events of a search, or of a question, to the last one, also over several connections.
export async function* follow(address, body, signal) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer = await ask(address, { ...sent, signal });
  const search = answer.headers.get("X-Search-Id");
  for (let last = 0, tries = 0; ; tries++) {
    try {
      answer ||= await ask(`v1/search/${search}/events`, { signal, headers: { "Last-Event-ID": last } });
      for await (const { id, event } of events(answer.body)) {
        [last, tries] = [id, 0];
        yield event;
      }
    } catch (error) {
      if (signal.aborted || error.status < 500) throw error; // the server said no
    }
    if (!search || tries === TRIES) throw new Error("the connection broke off before the answer; search again");
    answer = null;
    say("the connection broke off; coming back");
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
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
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
      if (fields.data) yield { id: fields.id, event: JSON.parse(fields.data) };
    }
  }
}
