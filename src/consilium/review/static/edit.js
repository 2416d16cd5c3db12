// Correcting a mask: brush, eraser, fill between slices, smooth, undo.

import { PLANES, signedDistance } from "./mask.js";

export class Editor {
  constructor(mask, spacing) {
    this.mask = mask;
    this.spacing = spacing;
    this.steps = [];
    this.step = null;
    this.drawn = new Set();
  }

  get dirty() {
    return this.steps.length > 0;
  }

  begin() {
    this.step = new Map();
  }

  put(z, y, x, value) {
    const shape = this.mask.shape;
    if (z < 0 || y < 0 || x < 0 || z >= shape[0] || y >= shape[1] || x >= shape[2]) return;
    const was = this.mask.get(z, y, x);
    if (was === value) return;
    const key = (z * shape[1] + y) * shape[2] + x;
    if (!this.step.has(key)) this.step.set(key, was);
    this.mask.set(z, y, x, value);
    this.drawn.add(z);
  }

  end() {
    if (this.step && this.step.size) this.steps.push(this.step);
    this.step = null;
    this.mask.changed();
  }

  // A disc of radius_mm on a slice, from one point of a stroke to the next; points are {v, u} in voxels.
  stroke(plane, index, from, to, radiusMm, value) {
    const { axis, v, u } = PLANES[plane];
    const sv = this.spacing[v], su = this.spacing[u];
    const distance = Math.hypot((to.v - from.v) * sv, (to.u - from.u) * su);
    const count = Math.max(1, Math.ceil(distance / Math.max(radiusMm / 2, Math.min(sv, su) / 2)));
    const rv = Math.ceil(radiusMm / sv), ru = Math.ceil(radiusMm / su);
    for (let i = 0; i <= count; i++) {
      const cv = from.v + ((to.v - from.v) * i) / count, cu = from.u + ((to.u - from.u) * i) / count;
      for (let a = Math.round(cv) - rv; a <= Math.round(cv) + rv; a++) {
        for (let b = Math.round(cu) - ru; b <= Math.round(cu) + ru; b++) {
          if (Math.hypot((a - cv) * sv, (b - cu) * su) > radiusMm) continue;
          const at = [0, 0, 0];
          at[axis] = index;
          at[v] = a;
          at[u] = b;
          this.put(at[0], at[1], at[2], value);
        }
      }
    }
    this.mask.changed();
  }

  undo() {
    const step = this.steps.pop();
    if (!step) return false;
    const [, ny, nx] = this.mask.shape;
    for (const [key, was] of step) this.mask.set(Math.floor(key / (ny * nx)), Math.floor(key / nx) % ny, key % nx, was);
    this.mask.changed();
    return true;
  }

  // Shape-based interpolation (Raya and Udupa 1990): between the slices drawn on, or else across empty slices.
  fillBetween() {
    const filled = [];
    for (let z = this.mask.start[0]; z < this.mask.stop[0]; z++) {
      if (this.mask.slice("axial", z).values.includes(1)) filled.push(z);
    }
    const drawn = filled.filter((z) => this.drawn.has(z));
    const anchors = drawn.length > 1 ? drawn : filled;
    this.begin();
    const before = new Set(this.drawn);
    for (let i = 1; i < anchors.length; i++) this.interpolate(anchors[i - 1], anchors[i]);
    this.drawn = before;
    const count = this.step.size;
    this.end();
    return count;
  }

  interpolate(low, high) {
    if (high - low < 2) return;
    const one = this.mask.slice("axial", low), other = this.mask.slice("axial", high);
    const { height, width, v0, u0 } = one;
    const first = signedDistance(one.values, height, width), second = signedDistance(other.values, height, width);
    for (let z = low + 1; z < high; z++) {
      const t = (z - low) / (high - low);
      for (let i = 0; i < first.length; i++) {
        const inside = (1 - t) * first[i] + t * second[i] > 0 ? 1 : 0;
        this.put(z, v0 + Math.floor(i / width), u0 + (i % width), inside);
      }
    }
  }

  // One pass of a 3×3 majority on a slice: rounds corners, removes single voxels.
  smooth(plane, index) {
    const part = this.mask.slice(plane, index);
    if (!part) return 0;
    const { axis, v, u } = PLANES[plane];
    const { values, height, width, v0, u0 } = part;
    this.begin();
    for (let a = 0; a < height; a++) for (let b = 0; b < width; b++) {
      let sum = 0;
      for (let da = -1; da <= 1; da++) for (let db = -1; db <= 1; db++) {
        const y = a + da, x = b + db;
        if (y >= 0 && y < height && x >= 0 && x < width) sum += values[y * width + x];
      }
      const at = [0, 0, 0];
      at[axis] = index;
      at[v] = v0 + a;
      at[u] = u0 + b;
      this.put(at[0], at[1], at[2], sum >= 5 ? 1 : 0);
    }
    const count = this.step.size;
    this.end();
    return count;
  }
}
