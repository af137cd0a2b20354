// What the page holds, and elements made of it. Data becomes text nodes and attribute values, never markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const find = (id) => document.getElementById(id);

async function readData() {
  const bytes = Uint8Array.from(atob(find("data").textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// The films stand behind this script, so that the list shows before they are read; one asked for early is waited for.
const allFilms = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

// Frames side by side as one picture, null where the page has none.
async function film(number) {
  if (number === null) return null;
  if (!find(`film-${number + 1}`)) await allFilms; // where the next one is there, this one is whole
  return find(`film-${number}`).content.firstElementChild.cloneNode();
}

const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const words = (name) => name.replaceAll("_", " ");
const span = (pair) => `${fixed(pair[0], 1)}–${fixed(pair[1], 1)} s`;
const mark = (good) => (good ? "✓" : "✗");
const isRefined = (row) => row.turns.some((turn) => turn.refined);
const TRAINING = "training";
