// One view of the image: draws a slice with its outlines, zooms, pans, and turns positions into voxels.

import { slice } from "./api.js";
import { PLANES } from "./mask.js";

const AHEAD = 6;

// Where the patient's Right, Left, Anterior, Posterior, Superior and Inferior are: left, right, top, bottom edge.
const SIDES = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };

export class Pane {
  constructor(element, shape, spacing, view) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.label = element.querySelector(".label");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.shape = shape;
    this.spacing = spacing;
    this.view = view;
    this.picture = document.createElement("canvas");
    this.zoom = 1;
    this.shift = { x: 0, y: 0 };
    this.show(element.dataset.plane);
    new ResizeObserver(() => this.draw()).observe(element);
  }

  show(plane) {
    this.plane = plane;
    this.element.dataset.plane = plane;
    const { axis, v, u } = PLANES[plane];
    Object.assign(this, { axis, v, u });
    this.picture.width = this.shape[u];
    this.picture.height = this.shape[v];
    this.drawnKey = null;
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.shift = { x: 0, y: 0 };
  }

  get index() {
    return this.view.position[this.axis];
  }

  // Scale (screen pixels per voxel along u and v) and the screen position of the picture's corner.
  placement() {
    const ratio = window.devicePixelRatio || 1;
    const width = this.element.clientWidth * ratio, height = this.element.clientHeight * ratio;
    const su = this.spacing[this.u], sv = this.spacing[this.v];
    const scale = Math.min(width / (this.shape[this.u] * su), height / (this.shape[this.v] * sv)) * this.zoom;
    const x = (width - this.shape[this.u] * su * scale) / 2 + this.shift.x * ratio;
    const y = (height - this.shape[this.v] * sv * scale) / 2 + this.shift.y * ratio;
    return { ratio, width, height, ku: su * scale, kv: sv * scale, x, y, scale };
  }

  // Fractional voxel {v, u} under a pointer event: integers are voxel centres.
  voxel(event) {
    const box = this.canvas.getBoundingClientRect();
    const { ratio, ku, kv, x, y } = this.placement();
    const u = ((event.clientX - box.left) * ratio - x) / ku - 0.5;
    const row = ((event.clientY - box.top) * ratio - y) / kv - 0.5;
    return { u, v: PLANES[this.plane].turned ? this.shape[this.v] - 1 - row : row };
  }

  async draw() {
    const wanted = `${this.plane}/${this.index}`;
    const loading = slice(this.plane, this.index);
    if (loading.ready) {
      this.paint(loading.ready, wanted);
    } else {
      try {
        const loaded = await loading;
        if (wanted === `${this.plane}/${this.index}`) this.paint(loaded, wanted);
      } catch (error) {
        this.label.textContent = error.message;
      }
    }
    this.prefetch();
  }

  prefetch() {
    const direction = this.last === undefined || this.index >= this.last ? 1 : -1;
    this.last = this.index;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      for (let k = 1; k <= AHEAD; k++) {
        const next = this.index + k * direction;
        if (next >= 0 && next < this.shape[this.axis]) slice(this.plane, next).catch(() => {});
      }
    }, 20);
  }

  paint(loaded, key) {
    const window_ = `${this.view.low}/${this.view.high}`;
    if (this.drawnKey !== `${key}/${window_}`) {
      this.window(loaded);
      this.drawnKey = `${key}/${window_}`;
    }
    const place = this.placement(), context = this.context;
    if (this.canvas.width !== Math.round(place.width) || this.canvas.height !== Math.round(place.height)) {
      this.canvas.width = Math.round(place.width);
      this.canvas.height = Math.round(place.height);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = true;
    context.drawImage(this.picture, place.x, place.y, place.ku * this.shape[this.u], place.kv * this.shape[this.v]);
    if (this.view.outlines) this.paintOutlines(place);
    this.paintCrosshair(place);
    this.paintSides(place);
    if (this.view.cursor?.pane === this) this.paintCursor(place);
    this.describe();
    this.element.dataset.drawn = key;
    this.view.painted?.(this.plane, this.index);
  }

  window(loaded) {
    const { low, high } = this.view;
    const image = this.picture.getContext("2d").createImageData(loaded.width, loaded.height);
    const pixels = new Uint32Array(image.data.buffer);
    const scale = 255 / Math.max(1, high - low);
    for (let i = 0; i < pixels.length; i++) {
      const grey = Math.max(0, Math.min(255, (loaded.values[i] - low) * scale)) | 0;
      pixels[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    this.picture.getContext("2d").putImageData(image, 0, 0);
  }

  paintOutlines(place) {
    const matrix = new DOMMatrix([place.ku, 0, 0, place.kv, place.x, place.y]);
    for (const source of this.view.sources) {
      if (!source.visible || !source.mask) continue;
      const outline = source.mask.outline(this.plane, this.index);
      if (!outline) continue;
      const path = new Path2D();
      path.addPath(outline, matrix);
      this.context.strokeStyle = source.colour;
      this.context.lineWidth = (source === this.view.selected ? 2.2 : 1.4) * place.ratio;
      this.context.setLineDash(source.dash.map((d) => d * place.ratio));
      if (this.view.opacity > 0) this.paintFill(source, place);
      this.context.stroke(path);
    }
    this.context.setLineDash([]);
  }

  paintFill(source, place) {
    const part = source.mask.slice(this.plane, this.index);
    if (!part) return;
    this.context.globalAlpha = this.view.opacity;
    this.context.fillStyle = source.colour;
    const turned = PLANES[this.plane].turned, rows = this.shape[this.v];
    for (let a = 0; a < part.height; a++) {
      const row = turned ? rows - 1 - (part.v0 + a) : part.v0 + a;
      for (let b = 0; b < part.width; b++) {
        if (!part.values[a * part.width + b]) continue;
        let end = b;
        while (end < part.width && part.values[a * part.width + end]) end++;
        this.context.fillRect(place.x + (part.u0 + b) * place.ku, place.y + row * place.kv, (end - b) * place.ku, place.kv);
        b = end;
      }
    }
    this.context.globalAlpha = 1;
  }

  paintCrosshair(place) {
    if (this.view.tool) return;
    const u = this.view.position[this.u], v = this.view.position[this.v];
    const row = PLANES[this.plane].turned ? this.shape[this.v] - 1 - v : v;
    const x = place.x + (u + 0.5) * place.ku, y = place.y + (row + 0.5) * place.kv;
    this.context.strokeStyle = "rgba(92,195,230,.45)";
    this.context.lineWidth = place.ratio;
    this.context.beginPath();
    this.context.moveTo(x, 0);
    this.context.lineTo(x, place.height);
    this.context.moveTo(0, y);
    this.context.lineTo(place.width, y);
    this.context.stroke();
  }

  paintSides({ width, height, ratio }) {
    const context = this.context, edge = 12 * ratio, sides = SIDES[this.plane];
    const at = [[edge, height / 2], [width - edge, height / 2], [width / 2, edge], [width / 2, height - edge]];
    context.font = `600 ${13 * ratio}px ui-monospace, Menlo, Consolas, monospace`;
    [context.textAlign, context.textBaseline, context.lineJoin] = ["center", "middle", "round"];
    [context.strokeStyle, context.lineWidth, context.fillStyle] = ["#000", 3 * ratio, "#cfd8e6"];
    this.element.dataset.sides = sides;
    at.forEach(([x, y], k) => {
      context.strokeText(sides[k], x, y);
      context.fillText(sides[k], x, y);
    });
  }

  paintCursor(place) {
    const { u, v } = this.view.cursor;
    const row = PLANES[this.plane].turned ? this.shape[this.v] - 1 - v : v;
    this.context.strokeStyle = this.view.tool === "eraser" ? "#ff8a8a" : "#fff";
    this.context.lineWidth = 1.2 * place.ratio;
    this.context.beginPath();
    this.context.arc(place.x + (u + 0.5) * place.ku, place.y + (row + 0.5) * place.kv, this.view.radiusMm * place.scale, 0, 7);
    this.context.stroke();
  }

  describe() {
    const at = `${this.plane} ${this.index + 1}/${this.shape[this.axis]}`;
    this.label.textContent = `${at}\n${Math.round(this.view.low)} to ${Math.round(this.view.high)}`;
  }
}
