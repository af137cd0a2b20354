// The list: which rows pass the filters, in which order, and only those in sight as elements.
"use strict";

const ROW = 58; // pixels, as in page.css
const BEYOND = 6; // rows kept above and below those in sight

class List {
  // `open(row, byKey)` is called with a row that the reader chose.
  constructor(rows, runs, open) {
    this.rows = rows;
    this.open = open;
    this.shown = rows;
    this.active = 0;
    this.opened = null;
    this.box = find("rows");
    this.canvas = find("canvas");
    this.form = find("filters");
    rows.forEach((row, order) => {
      row.order = order;
      KINDS[row.kind].prepare(row);
      row.from = (runs.length > 1 ? `${runs[row.run]}: ` : "")
        + (row.source === TRAINING ? `training step ${row.step}, sample ${row.sample}` : row.source);
      row.source_key = `${row.run}/${row.source}`;
      row.words = [row.query, row.query_id, ...row.names].join("\n").toLowerCase();
    });
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.box.addEventListener("scroll", () => this.paint());
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    this.box.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(Number(option.dataset.position), false);
    });
    new ResizeObserver(() => this.paint()).observe(this.box);
    this.refresh();
  }

  refresh() {
    const { text, source, outcome, turns, sort, mistaken, refined, budget } = this.form.elements; // some for searches only
    const wanted = text.value.trim().toLowerCase();
    const kept = this.rows.filter((row) =>
      (!wanted || row.words.includes(wanted))
      && (!source.value || source.value === row.source_key || source.value === `${row.source_key}/${row.step}`)
      && (!outcome.value || outcome.value === row.outcome)
      && (!turns.value || Number(turns.value) === row.turns.length)
      && (!mistaken?.checked || row.wrong > 0)
      && (!refined?.checked || isRefined(row))
      && (!budget?.value || Number(budget.value) === row.budget));
    const [, minus, field] = /^(-?)(.+)$/.exec(sort.value); // a field of the rows, with "-" the largest first
    const compare = (a, b) => (a[field] < b[field] ? -1 : a[field] > b[field] ? 1 : 0);
    this.shown = kept.sort((a, b) => (minus ? compare(b, a) : compare(a, b)) || a.order - b.order);
    this.active = Math.max(0, this.shown.indexOf(this.opened));
    find("count").textContent = kept.length === this.rows.length
      ? `${kept.length} trajectories` : `${kept.length} of ${this.rows.length} trajectories`;
    this.canvas.style.height = `${kept.length * ROW}px`;
    this.box.scrollTop = 0;
    this.reveal();
    this.paint();
  }

  paint() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - BEYOND);
    const last = Math.min(this.shown.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + BEYOND);
    const options = [];
    for (let position = first; position < last; position++) options.push(this.option(position));
    this.canvas.replaceChildren(...options);
    const inSight = this.active >= first && this.active < last;
    if (inSight) this.box.setAttribute("aria-activedescendant", `option-${this.active}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  option(position) {
    const row = this.shown[position];
    const option = make("div", {
      "role": "option", "id": `option-${position}`, "data-position": position, "data-id": row.id,
      "aria-selected": String(row === this.opened), "aria-setsize": this.shown.length, "aria-posinset": position + 1,
      "class": position === this.active ? "active" : null,
    },
    make("span", { class: "title" }, row.query),
    make("span", { class: "line" },
      make("span", { class: "from" }, `${row.from} · ${row.query_id}`),
      KINDS[row.kind].line(row)));
    option.style.transform = `translateY(${position * ROW}px)`;
    return option;
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      this.active = Math.min(this.shown.length - 1, Math.max(0, this.active + moves[event.key]));
      this.reveal();
      this.paint();
    } else if (event.key === "Enter" || event.key === " ") {
      this.choose(this.active, true);
    } else return;
    event.preventDefault();
  }

  choose(position, byKey) {
    if (!this.shown[position]) return;
    this.active = position;
    this.open(this.shown[position], byKey);
  }

  // Marks the row that is open, wherever it was opened from.
  select(row) {
    this.opened = row;
    const position = this.shown.indexOf(row);
    if (position >= 0) this.active = position;
    this.reveal();
    this.paint();
  }

  reveal() {
    const top = this.active * ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight;
  }
}
