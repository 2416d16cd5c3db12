// The page: state, keyboard and pointer, the list of contours, comparing, correcting and deciding.

import * as api from "./api.js";
import { Editor } from "./edit.js";
import { MaskVolume, changedContourMm, compare } from "./mask.js";
import { Pane } from "./pane.js";

const { record } = api;
const $ = (id) => document.getElementById(id);
const WINDOWS = [
  ["Soft tissue", -160, 240], ["Lung", -1350, 150], ["Bone", -450, 1050], ["Brain", 0, 80], ["Wide", -1000, 2000],
];
const shape = record.shape_zyx, spacing = record.spacing_zyx_mm;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

const view = {
  position: shape.map((n) => Math.floor(n / 2)), low: -160, high: 240, outlines: true, opacity: 0.25, tool: null,
  radiusMm: 6, sources: [], selected: null, cursor: null,
};
const panes = Array.from(document.querySelectorAll(".pane"), (element) => new Pane(element, shape, spacing, view));
let editor = null, editing = null, original = null, since = performance.now(), hiddenMs = 0, hiddenAt = 0;
let decisions = record.decisions;
window.consilium = { view, panes };  // what a test or a curious person may look at

const draw = () => panes.forEach((pane) => pane.draw());
let waiting = false;
function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

// ---- contours ----------------------------------------------------------------------------------------------

function takeSources(list) {
  const kept = new Map(view.sources.map((s) => [`${s.structure}\0${s.reader}`, s]));
  const readers = [...new Set(list.map((s) => s.reader))];
  view.sources = list.filter((s) => s.state === "contoured").map((s) => {
    const old = kept.get(`${s.structure}\0${s.reader}`);
    const agreement = s.reader.startsWith("agreement-");
    return { ...s, mask: old?.mask ?? null, visible: old?.visible ?? !agreement, dash: DASHES[readers.indexOf(s.reader) % DASHES.length] };
  });
  showSources();
}

async function load(source) {
  if (source.mask || source.loading) return source.loading;
  source.loading = api.mask(source.structure, source.reader).then(({ edges, bits }) => {
    source.mask = new MaskVolume(shape, edges, bits);
    source.loading = null;
  });
  return source.loading;
}

async function loadVisible() {
  for (const source of view.sources) {
    if (!source.visible) continue;
    await guarded(() => load(source));
    drawSoon();
  }
}

function showSources() {
  const list = $("sources"), scrolled = list.scrollTop;
  list.replaceChildren(...view.sources.map((source) => {
    const row = document.createElement("div");
    row.className = "source" + (source === view.selected ? " selected" : "");
    row.dataset.structure = source.structure;
    row.dataset.reader = source.reader;
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: source.visible, title: "Show" });
    box.addEventListener("change", () => { source.visible = box.checked; loadVisible(); drawSoon(); });
    box.addEventListener("click", (event) => event.stopPropagation());
    const swatch = document.createElement("span");
    swatch.className = "swatch" + (source.derived ? " derived" : "");
    swatch.style.background = swatch.style.borderColor = source.colour;
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: `${source.structure} · ${source.reader}` });
    name.title = name.textContent;
    const volume = Object.assign(document.createElement("span"), { className: "volume", textContent: `${source.volume_cm3.toFixed(1)} cm³` });
    row.append(box, swatch, name, volume);
    const verdict = decisions[source.structure];
    if (verdict && verdict.reader === source.reader) {
      row.append(Object.assign(document.createElement("span"), { className: `verdict ${verdict.verdict}`, textContent: verdict.verdict }));
    }
    row.addEventListener("click", () => select(source));
    return row;
  }));
  list.scrollTop = scrolled;
  for (const id of ["first", "second"]) {
    const before = $(id).value;
    $(id).replaceChildren(...view.sources.map((s, i) => new Option(`${s.structure} · ${s.reader}`, i)));
    if (before) $(id).value = before;
  }
}

async function select(source) {
  if (editor?.dirty && source !== editing) return say("Save the correction (c) or undo it (z) before choosing another contour.", true);
  stopEditing();
  view.selected = source;
  source.visible = true;
  since = performance.now();
  hiddenMs = 0;
  showSources();
  document.querySelector(".source.selected")?.scrollIntoView({ block: "nearest" });
  await guarded(() => load(source));
  const { start, stop } = source.mask ?? {};
  if (start && source.mask.bytes.length) view.position = start.map((s, k) => Math.floor((s + stop[k] - 1) / 2));
  const other = view.sources.find((s) => s.structure === source.structure && s !== source);
  if (other) {
    $("first").value = view.sources.indexOf(source);
    $("second").value = view.sources.indexOf(other);
    compareChosen();
  }
  drawSoon();
}

async function compareChosen() {
  const one = view.sources[$("first").value], other = view.sources[$("second").value];
  if (!one || !other || one === other) return;
  await guarded(() => Promise.all([load(one), load(other)]));
  if (!one.mask || !other.mask) return;
  const { dice, worst } = compare(one.mask, other.mask);
  const box = $("agreement");
  const button = document.createElement("button");
  button.type = "button";
  button.id = "worst";
  button.textContent = `Dice ${Number.isNaN(dice) ? "–" : dice.toFixed(3)} · volume ${one.volume_cm3.toFixed(1)} and ${other.volume_cm3.toFixed(1)} cm³` +
    (worst.index >= 0 ? ` · go to the worst slice (${worst.index + 1}, ${worst.voxels} voxels differ)` : " · no slice differs");
  button.disabled = worst.index < 0;
  button.addEventListener("click", () => { one.visible = other.visible = true; goTo(0, worst.index); showSources(); });
  box.replaceChildren(button);
}

// ---- moving ------------------------------------------------------------------------------------------------

function goTo(axis, index) {
  view.position[axis] = Math.max(0, Math.min(shape[axis] - 1, index));
  drawSoon();
}

const mainPane = () => panes.find((p) => p.element.classList.contains("main"));
const step = (count, pane = mainPane()) => goTo(pane.axis, pane.index + count);

function setWindow(low, high) {
  [view.low, view.high] = [low, Math.max(low + 1, high)];
  drawSoon();
}

function enlarge(plane) {
  const here = mainPane(), there = panes.find((p) => p.plane === plane);
  if (here === there) return;
  const old = here.plane;
  here.show(plane);
  there.show(old);
  drawSoon();
}

// ---- correcting --------------------------------------------------------------------------------------------

function setTool(tool) {
  if (tool && !view.selected?.mask) return say("Choose a contour in the list first (j).", true);
  view.tool = view.tool === tool ? null : tool;
  if (view.tool && editing !== view.selected) startEditing();
  $("brush").classList.toggle("active", view.tool === "brush");
  $("eraser").classList.toggle("active", view.tool === "eraser");
  panes.forEach((p) => p.element.classList.toggle("drawing", Boolean(view.tool)));
  drawSoon();
}

function startEditing() {
  editing = view.selected;
  original = editing.mask.copy();
  editor = new Editor(editing.mask, spacing);
  $("editing").textContent = `${editing.structure} · ${editing.reader}`;
}

function stopEditing() {
  editor = editing = original = null;
  view.tool = null;
  $("editing").textContent = "";
  $("save").disabled = true;
  $("brush").classList.remove("active");
  $("eraser").classList.remove("active");
  panes.forEach((p) => p.element.classList.remove("drawing"));
}

function edited() {
  $("save").disabled = !editor?.dirty;
  drawSoon();
}

function edit(work) {
  if (!view.selected?.mask) return say("Choose a contour in the list first (j).", true);
  if (!editor) startEditing();
  const count = work(editor);
  if (typeof count === "number") say(count ? `${count} voxels changed.` : "Nothing to change here.");
  edited();
}

// ---- deciding ----------------------------------------------------------------------------------------------

const seconds = () => Math.max(0, performance.now() - since - hiddenMs) / 1000;

function asked(extra) {
  const person = $("person").value.trim();
  if (!person) {
    $("person").focus();
    throw new Error("Fill in your name: a decision says who decided.");
  }
  localStorage.setItem("consilium-person", person);
  const structure = view.selected.structure;
  return { request_id: api.requestId(), structure, reader: view.selected.reader, person, reason: $("reason").value,
    seconds_spent: seconds(), seen: decisions[structure]?.number ?? 0, ...extra };
}

function decided(decision, text) {
  decisions = { ...decisions, [decision.structure]: decision };
  $("reason").value = "";
  since = performance.now();
  hiddenMs = 0;
  say(text);
  showSources();
  showHistory();
}

const decide = (verdict) => guarded(async () => {
  if (!view.selected) throw new Error("Choose a contour in the list first (j).");
  if (editor?.dirty) throw new Error("There is a correction that is not saved: save it (c) or undo it (z).");
  const decision = await api.decide(asked({ verdict }));
  decided(decision, `${decision.structure} of ${decision.reader} ${decision.verdict}.`);
});

const save = () => guarded(async () => {
  if (!editor?.dirty) throw new Error("Nothing was changed: there is no correction to save.");
  const { box, bits } = editing.mask.pack();
  const question = asked({ box, contour_changed_mm: changedContourMm(original, editing.mask, spacing) });
  const answer = await api.correct(question, bits);
  const drawn = editing.mask;
  editing.mask = original;
  stopEditing();
  takeSources(answer.case.sources);
  const fresh = view.sources.find((s) => s.structure === answer.decision.structure && s.reader === answer.decision.reader);
  decided(answer.decision, `Saved as ${answer.decision.reader}; the contour you started from is unchanged.`);
  if (fresh) {
    fresh.mask = drawn;
    await select(fresh);
  }
});

const exportAccepted = () => guarded(async () => {
  const { file, structures } = await api.exportAccepted();
  say(`Wrote ${structures.join(", ")} to ${file}`);
});

async function showHistory() {
  const all = await guarded(() => api.history());
  if (!all) return;
  $("history").replaceChildren(...all.slice(-8).reverse().map((d) => Object.assign(document.createElement("div"), {
    textContent: `${d.time_utc.slice(0, 16).replace("T", " ")} ${d.person}: ${d.structure} ${d.verdict}${d.reason ? ` (${d.reason})` : ""}`,
  })));
}

// ---- events ------------------------------------------------------------------------------------------------

for (const pane of panes) {
  let last = null;
  const canvas = pane.canvas;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey) { pane.zoom = Math.max(0.5, Math.min(12, pane.zoom * Math.exp(-event.deltaY / 300))); drawSoon(); }
    else step(Math.sign(event.deltaY), pane);
  }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    const at = pane.voxel(event);
    last = { at, x: event.clientX, y: event.clientY, button: event.button };
    if (event.button !== 0) return;
    if (view.tool) {
      editor.begin();
      editor.stroke(pane.plane, pane.index, at, at, view.radiusMm, view.tool === "brush" ? 1 : 0);
      drawSoon();
    } else moveCrosshair(pane, at);
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = pane.voxel(event);
    if (view.tool) { view.cursor = { pane, ...at }; drawSoon(); }
    if (!last) return;
    const dx = event.clientX - last.x, dy = event.clientY - last.y;
    if (last.button === 2) {
      const width = view.high - view.low, middle = (view.high + view.low) / 2 + dy * 2, wider = Math.max(1, width + dx * 2);
      setWindow(middle - wider / 2, middle + wider / 2);
    } else if (last.button === 1 || (last.button === 0 && event.shiftKey)) {
      pane.shift = { x: pane.shift.x + dx, y: pane.shift.y + dy };
      drawSoon();
    } else if (view.tool) editor.stroke(pane.plane, pane.index, last.at, at, view.radiusMm, view.tool === "brush" ? 1 : 0);
    else moveCrosshair(pane, at);
    last = { ...last, at, x: event.clientX, y: event.clientY };
  });
  const finish = () => {
    if (last?.button === 0 && view.tool && editor?.step) { editor.end(); edited(); }
    last = null;
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);
  canvas.addEventListener("pointerleave", () => { view.cursor = null; drawSoon(); });
  pane.element.addEventListener("dblclick", () => enlarge(pane.plane));
}

function moveCrosshair(pane, at) {
  goTo(pane.u, Math.round(at.u));
  goTo(pane.v, Math.round(at.v));
}

function cycle(direction) {
  if (!view.sources.length) return;
  const here = view.sources.indexOf(view.selected);
  select(view.sources[(here + direction + view.sources.length) % view.sources.length]);
}

function setSize(mm) {
  view.radiusMm = Math.max(1, Math.min(40, mm));
  $("size").value = view.radiusMm;
  $("size-mm").textContent = `${view.radiusMm} mm`;
  drawSoon();
}

function zoom(factor) {
  const pane = mainPane();
  if (factor) pane.zoom = Math.max(0.5, Math.min(12, pane.zoom * factor));
  else pane.fit();
  drawSoon();
}

function nextWindow() {
  const select_ = $("window");
  select_.selectedIndex = (select_.selectedIndex + 1) % WINDOWS.length;
  select_.dispatchEvent(new Event("change"));
}

const undo = () => { if (editor?.undo()) edited(); else say("Nothing to undo."); };
const smooth = () => edit((e) => e.smooth(mainPane().plane, mainPane().index));
const fill = () => edit((e) => e.fillBetween());
const KEYS = {
  ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => step(-10), PageDown: () => step(10),
  1: () => enlarge("axial"), 2: () => enlarge("coronal"), 3: () => enlarge("sagittal"),
  j: () => cycle(1), k: () => cycle(-1), w: nextWindow, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0),
  o: () => { view.outlines = !view.outlines; drawSoon(); },
  b: () => setTool("brush"), e: () => setTool("eraser"), v: () => setTool(null), "[": () => setSize(view.radiusMm - 1), "]": () => setSize(view.radiusMm + 1),
  f: fill, s: smooth, z: undo, a: () => decide("accepted"), r: () => decide("rejected"), c: save, x: exportAccepted,
  n: () => $("next").click(), p: () => $("previous").click(), "?": () => $("keys").showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (typing || $("keys").open) return;
  const command = event.ctrlKey || event.metaKey ? (event.key === "z" ? undo : null) : KEYS[event.key];
  if (!command) return;
  event.preventDefault();
  command();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else hiddenMs += performance.now() - hiddenAt;
});
window.addEventListener("beforeunload", (event) => { if (editor?.dirty) event.preventDefault(); });

$("window").replaceChildren(...WINDOWS.map(([name], i) => new Option(name, i)));
$("window").addEventListener("change", () => setWindow(WINDOWS[$("window").value][1], WINDOWS[$("window").value][2]));
$("opacity").addEventListener("input", () => { view.opacity = $("opacity").value / 100; drawSoon(); });
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("first").addEventListener("change", compareChosen);
$("second").addEventListener("change", compareChosen);
$("brush").addEventListener("click", () => setTool("brush"));
$("eraser").addEventListener("click", () => setTool("eraser"));
$("undo").addEventListener("click", undo);
$("smooth").addEventListener("click", smooth);
$("fill").addEventListener("click", fill);
$("accept").addEventListener("click", () => decide("accepted"));
$("reject").addEventListener("click", () => decide("rejected"));
$("save").addEventListener("click", save);
$("export").addEventListener("click", exportAccepted);
$("help").addEventListener("click", () => $("keys").showModal());
for (const button of document.querySelectorAll(".reason")) {
  button.addEventListener("click", () => {
    const source = view.sources.find((s) => s.structure === button.dataset.structure);
    if (source) select(source).then(() => $("worst")?.click());
  });
}

$("person").value = localStorage.getItem("consilium-person") ?? "";
setSize(6);
takeSources(record.sources);
draw();
loadVisible().then(() => { if (view.sources.length) select(view.sources[0]); });
showHistory();
