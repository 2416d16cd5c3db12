// The list of contours: loading them, choosing one, showing and hiding, colours, comparing two.

import * as api from "./api.js";
import { correcting, stopCorrecting } from "./deciding.js";
import { MaskVolume, compare } from "./mask.js";
import { $, drawSoon, goTo, guarded, isDecided, say, shape, view } from "./state.js";

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const same = (a, structure, reader) => a.structure === structure && a.reader === reader;
export const find = (structure, reader) => view.sources.find((s) => s.structure === structure && (!reader || s.reader === reader));

// Readers of one structure share its hue; each further one is lighter, and dashed in its own way.
function lighter(colour, times) {
  const parts = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const share = 1 - 0.5 ** times;
  return "#" + parts.map((p) => Math.round(p + (255 - p) * share).toString(16).padStart(2, "0")).join("");
}

export function takeSources(list) {
  const known = list.filter((s) => s.state !== "unknown");
  known.sort((a, b) => a.structure.localeCompare(b.structure) || a.derived - b.derived);
  const counts = new Map();
  view.sources = known.map((s) => {
    const before = view.sources.find((old) => same(old, s.structure, s.reader));
    const number = counts.get(s.structure) ?? 0;
    counts.set(s.structure, number + 1);
    return { mask: null, visible: !s.derived, ...s, colour: lighter(s.colour, number), dash: DASHES[number % DASHES.length],
      ...(before && { mask: before.mask, visible: before.visible, colour: before.colour, dash: before.dash }) };
  });
  $("compare").hidden = !comparable().length;
  showSources();
}

// Contours beside which there is another one of the same structure.
const comparable = () => view.sources.filter((s) => s.state === "contoured" &&
  view.sources.some((other) => other !== s && other.structure === s.structure && other.state === "contoured"));

export async function load(source) {
  if (source.mask || source.loading) return source.loading;
  if (source.state === "absent") {
    source.mask = new MaskVolume(shape, null, new Uint8Array());
    return null;
  }
  source.loading = api.mask(source.structure, source.reader).then(({ edges, bits }) => {
    source.mask = new MaskVolume(shape, edges, bits);
  }).finally(() => { source.loading = null; });
  return source.loading;
}

export async function loadVisible() {
  for (const source of view.sources) {
    if (!source.visible) continue;
    await guarded(() => load(source));
    drawSoon();
  }
}

// The digest in a model's name says something only where there are several models.
function readerName(reader) {
  const models = new Set(view.sources.map((s) => s.reader).filter((r) => r.startsWith("model-")));
  return models.size === 1 && models.has(reader) ? "model" : reader;
}

function element(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function sourceRow(source, first) {
  const row = element("div", `source${source === view.selected ? " selected" : ""}${first ? " first" : ""}`);
  row.dataset.structure = source.structure;
  row.dataset.reader = source.reader;
  const box = Object.assign(element("input", ""), { type: "checkbox", checked: source.visible, title: "Show" });
  box.addEventListener("change", () => { source.visible = box.checked; loadVisible(); drawSoon(); });
  const colour = Object.assign(element("input", "swatch"), { type: "color", value: source.colour, title: "Colour" });
  colour.addEventListener("input", () => { source.colour = colour.value; drawSoon(); });
  for (const control of [box, colour]) control.addEventListener("click", (event) => event.stopPropagation());
  const name = element("span", "name", source.structure);
  name.append(element("span", "reader", readerName(source.reader)));
  name.title = `${source.structure} · ${source.reader}`;
  row.append(box, colour, name);
  if (source.doubt !== null && source.doubt >= 0.2) {
    row.append(Object.assign(element("span", "doubt", `doubt ${source.doubt.toFixed(2)}`), { title: `The model expects a Dice of ${(1 - source.doubt).toFixed(2)}` }));
  }
  const verdict = view.decisions[source.structure];
  if (verdict?.stands && verdict.reader === source.reader) row.append(element("span", `verdict ${verdict.verdict}`, verdict.verdict));
  row.append(element("span", "volume", source.state === "absent" ? "not there" : `${source.volume_cm3.toFixed(1)} cm³`));
  row.addEventListener("click", () => select(source));
  return row;
}

export function showSources() {
  const list = $("sources"), scrolled = list.scrollTop;
  const rows = view.sources.map((source, i) => sourceRow(source, view.sources[i - 1]?.structure !== source.structure));
  if (!rows.length) rows.push(element("p", "soft", "This case has no contour yet."));
  list.replaceChildren(...rows);
  list.scrollTop = scrolled;
  for (const id of ["first", "second"]) {
    const before = $(id).value;
    $(id).replaceChildren(...comparable().map((s) => new Option(`${s.structure} · ${readerName(s.reader)}`, view.sources.indexOf(s))));
    if (before) $(id).value = before;
  }
  const decided = view.structures.filter(isDecided).length;
  $("progress").textContent = view.structures.length ? `${decided} of ${view.structures.length} decided` : "";
  $("about").textContent = view.selected ? `${view.selected.structure} · ${readerName(view.selected.reader)}` : "";
  $("export").disabled = !Object.values(view.decisions).some((d) => d.verdict !== "rejected");
  $("export").classList.toggle("primary", decided > 0 && decided === view.structures.length);
}

// `stay`: where somebody has begun to look round while the page was loading, the image stays where it is.
export async function select(source, stay = () => false) {
  if (correcting()?.dirty && source !== view.selected) return say("Save the correction (c) or undo it (z) before choosing another contour.", true);
  if (source !== view.selected) stopCorrecting();
  view.selected = source;
  source.visible = true;
  view.since = performance.now();
  view.hiddenMs = 0;
  showSources();
  document.querySelector(".source.selected")?.scrollIntoView({ block: "nearest" });
  await guarded(() => load(source));
  if (view.selected !== source) return null;
  const { start, stop } = source.mask ?? {};
  if (source.state === "absent") say(`${source.structure} is said to be absent: accept that, or draw it with the brush (b).`);
  if (start && source.mask.bytes.length && !stay()) view.position = start.map((s, k) => Math.floor((s + stop[k] - 1) / 2));
  const other = comparable().find((s) => s.structure === source.structure && s !== source && !s.derived);
  if (other && source.state === "contoured") await compareTwo(source, other);
  else $("agreement").replaceChildren("Nobody else contoured this structure.");
  drawSoon();
  return source;
}

export async function compareTwo(one, other) {
  $("first").value = view.sources.indexOf(one);
  $("second").value = view.sources.indexOf(other);
  await compareChosen();
}

export async function compareChosen() {
  const one = view.sources[$("first").value], other = view.sources[$("second").value];
  if (!one || !other || one === other) return $("agreement").replaceChildren("Choose two different contours.");
  await guarded(() => Promise.all([load(one), load(other)]));
  if (!one.mask || !other.mask) return;
  const { dice, worst } = compare(one.mask, other.mask);
  const button = Object.assign(element("button", ""), { type: "button", id: "worst", disabled: worst.index < 0 });
  button.append(element("b", "", `Dice ${Number.isNaN(dice) ? "–" : dice.toFixed(3)}`),
    ` · ${one.volume_cm3.toFixed(1)} and ${other.volume_cm3.toFixed(1)} cm³`,
    element("span", "soft", worst.index >= 0 ? `Go to the worst slice (${worst.index + 1}, ${worst.voxels} voxels differ)` : "No slice differs."));
  button.addEventListener("click", () => { one.visible = other.visible = true; goTo(0, worst.index); showSources(); });
  $("agreement").replaceChildren(button);
}

// Where a reason to look points: its contour, beside the other one on the slice on which they differ most.
export async function lookAt(structure, reader, otherReader) {
  const source = find(structure, reader) ?? find(structure);
  if (!source) return;
  await select(source);
  const other = otherReader && find(structure, otherReader);
  if (other) await compareTwo(source, other);
  if (other) $("worst")?.click();
}

// A structure that nobody said anything about here: an empty contour to draw into.
export function addStructure(structure) {
  const colour = "#ffffff";
  const source = { structure, reader: "new", content: "", state: "absent", volume_cm3: 0, derived: false, doubt: null, colour, dash: [], visible: true, mask: null };
  view.sources.push(source);
  return select(source);
}

export function cycle(direction) {
  if (!view.sources.length) return;
  const here = view.sources.indexOf(view.selected);
  select(view.sources[(here + direction + view.sources.length) % view.sources.length]);
}

// The next structure that nobody decided about, if there is one.
export function nextOpen() {
  const here = view.sources.indexOf(view.selected);
  const ahead = [...view.sources.slice(here + 1), ...view.sources.slice(0, here + 1)];
  return ahead.find((s) => !s.derived && !isDecided(s.structure));
}
