// Correcting a contour, deciding about it, exporting, and what was decided before.

import * as api from "./api.js";
import { find, nextOpen, select, showSources, takeSources } from "./contours.js";
import { Editor } from "./edit.js";
import { changedContourMm } from "./mask.js";
import { $, drawSoon, guarded, isDecided, panes, say, spacing, view } from "./state.js";

let editor = null, editing = null, original = null, saving = false;
const WAIT = "The correction is being saved; what is drawn now would not be in it.";
export const correcting = () => editor;

// ---- correcting --------------------------------------------------------------------------------------------

export function setTool(tool) {
  if (saving) return say(WAIT, true);
  if (tool && !view.selected?.mask) return say("Choose a contour in the list first (j).", true);
  view.tool = view.tool === tool ? null : tool;
  if (view.tool && editing !== view.selected) startCorrecting();
  showTool();
  if (view.tool) say(view.tool === "brush" ? "Draw on the image to add; [ and ] change the size." : "Draw on the image to take away.");
}

function showTool() {
  $("brush").classList.toggle("active", view.tool === "brush");
  $("eraser").classList.toggle("active", view.tool === "eraser");
  panes.forEach((p) => p.element.classList.toggle("drawing", Boolean(view.tool)));
  drawSoon();
}

function startCorrecting() {
  editing = view.selected;
  original = editing.mask.copy();
  editor = new Editor(editing.mask, spacing);
  $("editing").textContent = `${editing.structure} · ${editing.reader}`;
}

export function stopCorrecting() {
  editor = editing = original = view.tool = null;
  $("editing").textContent = "";
  edited();
  showTool();
}

export function edited() {
  const dirty = Boolean(editor?.dirty);
  $("save").disabled = !dirty;
  $("save").classList.toggle("primary", dirty);
  $("accept").classList.toggle("primary", !dirty);
  drawSoon();
}

export function edit(work) {
  if (saving) return say(WAIT, true);
  if (!view.selected?.mask) return say("Choose a contour in the list first (j).", true);
  if (!editor) startCorrecting();
  const count = work(editor);
  if (typeof count === "number") say(count ? `${count} voxels changed.` : "Nothing to change here.");
  edited();
}

export function undo() {
  if (saving) say(WAIT, true);
  else if (editor?.undo()) edited();
  else say("Nothing to undo.");
}

// ---- deciding ----------------------------------------------------------------------------------------------

const seconds = () => Math.max(0, performance.now() - view.since - view.hiddenMs) / 1000;

function asked(extra) {
  const person = $("person").value.trim();
  if (!person) {
    $("person").focus();
    throw new Error("Fill in your name: a decision says who decided.");
  }
  localStorage.setItem("consilium-person", person);
  const { structure, reader, content } = view.selected;
  return { request_id: api.requestId(), structure, reader, content, person, reason: $("reason").value,
    seconds_spent: seconds(), seen: view.decisions[structure]?.number ?? 0, ...extra };
}

async function decided(decision, text) {
  view.decisions = { ...view.decisions, [decision.structure]: { ...decision, stands: true } };
  $("reason").value = "";
  $("accept").blur();
  showSources();
  showHistory();
  const next = nextOpen();
  if (next && next.structure !== decision.structure) {
    await select(next);
    say(`${text} Next: ${next.structure}.`);
  } else {
    view.since = performance.now();
    view.hiddenMs = 0;
    const left = view.structures.filter((name) => !isDecided(name)).length;
    say(left ? text : `${text} Everything is decided: export what was accepted (x), or go to the next case (n).`);
  }
}

export const decide = (verdict) => guarded(async () => {
  if (!view.selected) throw new Error("Choose a contour in the list first (j).");
  if (editor?.dirty) throw new Error("There is a correction that is not saved: save it (c) or undo it (z).");
  if (view.selected.reader === "new") throw new Error("Nobody drew this structure yet: draw it with the brush (b), then save it (c).");
  const decision = await api.decide(asked({ verdict }));
  await decided(decision, `${decision.structure} of ${decision.reader} ${decision.verdict}.`);
});

export const save = () => guarded(async () => {
  if (saving) return;
  if (!editor?.dirty) throw new Error("Nothing was changed: there is no correction to save.");
  const { box, bits } = editing.mask.pack();
  const question = asked({ box, contour_changed_mm: changedContourMm(original, editing.mask, spacing) });
  const drawn = editing.mask;
  [saving, view.tool] = [true, null];
  showTool();
  const answer = await api.correct(question, bits).finally(() => { saving = false; });
  editing.mask = original;
  stopCorrecting();
  view.structures = answer.case.structures;
  takeSources(answer.case.sources);
  const { structure, reader } = answer.decision;
  const fresh = find(structure, reader);
  if (fresh) {
    fresh.mask = drawn;
    await select(fresh);
  }
  await decided(answer.decision, `Saved as ${reader}; the contour you started from is unchanged.`);
});

export const exportAccepted = () => guarded(async () => {
  const { file, structures } = await api.exportAccepted();
  say(`Wrote ${structures.join(", ")} to ${file}`);
});

export async function showHistory() {
  const all = await guarded(() => api.history());
  if (!all) return;
  const line = (d) => `${d.time_utc.slice(0, 16).replace("T", " ")} ${d.person}: ${d.structure} ${d.verdict}${d.reason ? ` (${d.reason})` : ""}`;
  const lines = all.slice(-8).reverse().map((d) => Object.assign(document.createElement("div"), { textContent: line(d) }));
  $("history").replaceChildren(...(lines.length ? lines : ["Nobody has decided about this case yet."]));
}
