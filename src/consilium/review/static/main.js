// The page: moving through the image, windows, keyboard and pointer.

import { record, slice } from "./api.js";
import { addStructure, compareChosen, cycle, lookAt, loadVisible, nextOpen, select, takeSources } from "./contours.js";
import { correcting, decide, edit, edited, exportAccepted, save, setTool, showHistory, undo } from "./deciding.js";
import { Pane } from "./pane.js";
import { $, drawSoon, goTo, panes, say, shape, spacing, view } from "./state.js";

const WINDOWS = [
  ["Soft tissue", -160, 240], ["Lung", -1350, 150], ["Bone", -450, 1050], ["Brain", 0, 80], ["Wide", -1000, 2000],
];
let hiddenAt = 0;
panes.push(...Array.from(document.querySelectorAll(".pane"), (element) => new Pane(element, shape, spacing, view)));
Object.assign(view, { since: performance.now(), hiddenMs: 0 });

// ---- moving ------------------------------------------------------------------------------------------------

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
      correcting().begin();
      correcting().stroke(pane.plane, pane.index, at, at, view.radiusMm, view.tool === "brush" ? 1 : 0);
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
    } else if (view.tool) correcting().stroke(pane.plane, pane.index, last.at, at, view.radiusMm, view.tool === "brush" ? 1 : 0);
    else moveCrosshair(pane, at);
    last = { ...last, at, x: event.clientX, y: event.clientY };
  });
  const finish = () => {
    if (last?.button === 0 && view.tool && correcting()?.step) { correcting().end(); edited(); }
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

function toNextOpen() {
  const next = nextOpen();
  if (next) select(next);
  else say("Everything here is decided.");
}

const smooth = () => edit((e) => e.smooth(mainPane().plane, mainPane().index));
const fill = () => edit((e) => e.fillBetween());
const KEYS = {
  ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => step(-10), PageDown: () => step(10),
  1: () => enlarge("axial"), 2: () => enlarge("coronal"), 3: () => enlarge("sagittal"),
  j: () => cycle(1), k: () => cycle(-1), d: toNextOpen, w: nextWindow, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0),
  o: () => { view.outlines = !view.outlines; drawSoon(); },
  b: () => setTool("brush"), e: () => setTool("eraser"), v: () => setTool(null), "[": () => setSize(view.radiusMm - 1), "]": () => setSize(view.radiusMm + 1),
  f: fill, s: smooth, z: undo, a: () => decide("accepted"), r: () => decide("rejected"), c: save, x: exportAccepted,
  n: () => $("next").click(), p: () => $("previous").click(), "?": () => $("keys").showModal(),
};
const ONCE = "arcx";  // a key that is held down must not decide about what comes next
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]):not([type=color]), select, textarea");
  if (typing || $("keys").open) return;
  const command = event.ctrlKey || event.metaKey ? (event.key === "z" ? undo : null) : KEYS[event.key];
  if (!command) return;
  event.preventDefault();
  if (!event.repeat || !ONCE.includes(event.key)) command();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else view.hiddenMs += performance.now() - hiddenAt;
});
window.addEventListener("beforeunload", (event) => { if (correcting()?.dirty) event.preventDefault(); });

function chooseWindow() {
  const [, low, high] = WINDOWS[$("window").value];
  setWindow(low, high);
}

// Hounsfield windows mean nothing outside CT: there the first slice's own values give one.
async function startWindow() {
  if (record.modality !== "CT") {
    const { values } = await slice("axial", view.position[0]);
    const sorted = values.slice().sort();
    WINDOWS.unshift(["Automatic", sorted[Math.floor(0.01 * sorted.length)], sorted[Math.floor(0.995 * (sorted.length - 1))]]);
  }
  $("window").replaceChildren(...WINDOWS.map(([name], i) => new Option(name, i)));
  chooseWindow();
}

$("window").addEventListener("change", chooseWindow);
$("opacity").addEventListener("input", () => { view.opacity = $("opacity").value / 100; drawSoon(); });
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("first").addEventListener("change", compareChosen);
$("second").addEventListener("change", compareChosen);
$("brush").addEventListener("click", () => setTool("brush"));
$("eraser").addEventListener("click", () => setTool("eraser"));
$("undo").addEventListener("click", undo);
$("smooth").addEventListener("click", smooth);
$("fill").addEventListener("click", fill);
// The second click of a double click would decide about the next structure, which nobody looked at.
for (const [id, verdict] of [["accept", "accepted"], ["reject", "rejected"]]) {
  $(id).addEventListener("click", (event) => { if (event.detail < 2) decide(verdict); });
}
$("save").addEventListener("click", save);
$("export").addEventListener("click", exportAccepted);
$("help").addEventListener("click", () => $("keys").showModal());
for (const button of document.querySelectorAll(".reason")) {
  const { structure, reader, other } = button.dataset;
  button.addEventListener("click", () => lookAt(structure, reader, other));
}

$("add").replaceChildren(new Option("Draw another structure …", ""), ...record.addable.map((name) => new Option(name, name)));
$("add").hidden = !record.addable.length;
$("add").addEventListener("change", () => {
  const [option] = $("add").selectedOptions;
  if (option.value) addStructure(option.value);
  if (option.value) option.remove();
  $("add").value = "";
  $("add").blur();
});

async function begin() {
  const opened = [...view.position];
  await slice("axial", view.position[0]).catch(() => {});  // the image first, then what lies on it
  const wanted = new URLSearchParams(location.search);
  const first = nextOpen() ?? view.sources[0];
  if (wanted.get("structure")) await lookAt(wanted.get("structure"), wanted.get("reader"), wanted.get("other"));
  else if (first) await select(first, () => view.position.some((at, k) => at !== opened[k]));
  await loadVisible();
}

$("person").value = localStorage.getItem("consilium-person") ?? "";
$("welcome").hidden = localStorage.getItem("consilium-knows") === "yes";
$("understood").addEventListener("click", () => { localStorage.setItem("consilium-knows", "yes"); $("welcome").hidden = true; });
setSize(6);
startWindow();
takeSources(record.sources);
begin();
showHistory();
