// What every part of the page shares: the view, the panes, messages, and where the crosshair is.

import { record } from "./api.js";

export const $ = (id) => document.getElementById(id);
export const shape = record.shape_zyx, spacing = record.spacing_zyx_mm;
export const panes = [];
export const view = {
  position: shape.map((n) => Math.floor(n / 2)), low: -160, high: 240, outlines: true, opacity: 0.2, tool: null,
  radiusMm: 6, sources: [], selected: null, cursor: null, decisions: record.decisions, structures: record.structures,
};
window.consilium = { view, panes };  // what a test or a curious person may look at

let waiting = false;
export function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; panes.forEach((pane) => pane.draw()); });
}

export function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

export async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

export function goTo(axis, index) {
  view.position[axis] = Math.max(0, Math.min(shape[axis] - 1, index));
  drawSoon();
}

export const isDecided = (structure) => view.decisions[structure]?.stands ?? false;
