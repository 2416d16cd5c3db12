// A mask as bytes in a box that grows where it is drawn on; outlines, overlap, and the geometry of editing.

// Slices of a plane: which array axis runs along rows (v) and columns (u), and whether rows are turned round.
export const PLANES = {
  axial: { axis: 0, v: 1, u: 2, turned: false },
  coronal: { axis: 1, v: 0, u: 2, turned: true },
  sagittal: { axis: 2, v: 0, u: 1, turned: true },
};

export class MaskVolume {
  constructor(shape, edges, bits) {
    this.shape = shape;
    this.version = 0;
    this.paths = new Map();
    this.start = edges ? edges.slice(0, 3) : [0, 0, 0];
    this.stop = edges ? edges.slice(3) : [0, 0, 0];
    const count = this.size().reduce((a, b) => a * b, 1);
    this.bytes = new Uint8Array(count);
    for (let i = 0; i < count; i++) this.bytes[i] = (bits[i >> 3] >> (i & 7)) & 1;
  }

  size() {
    return this.stop.map((s, k) => s - this.start[k]);
  }

  copy() {
    const other = new MaskVolume(this.shape, null, new Uint8Array());
    other.start = [...this.start];
    other.stop = [...this.stop];
    other.bytes = this.bytes.slice();
    return other;
  }

  offset(z, y, x) {
    const [, ny, nx] = this.size();
    return ((z - this.start[0]) * ny + (y - this.start[1])) * nx + (x - this.start[2]);
  }

  holds(z, y, x) {
    return z >= this.start[0] && z < this.stop[0] && y >= this.start[1] && y < this.stop[1] &&
      x >= this.start[2] && x < this.stop[2];
  }

  get(z, y, x) {
    return this.holds(z, y, x) ? this.bytes[this.offset(z, y, x)] : 0;
  }

  set(z, y, x, value) {
    if (!this.holds(z, y, x)) {
      if (!value) return;
      this.grow([z, y, x]);
    }
    this.bytes[this.offset(z, y, x)] = value;
  }

  grow(point) {
    const margin = [4, 24, 24];
    const empty = this.bytes.length === 0;
    const start = point.map((p, k) => Math.max(0, Math.min(p - margin[k], empty ? p : this.start[k])));
    const stop = point.map((p, k) => Math.min(this.shape[k], Math.max(p + margin[k] + 1, empty ? p + 1 : this.stop[k])));
    const [oz, oy, ox] = this.size();
    const old = this.bytes, oldStart = this.start;
    this.start = start;
    this.stop = stop;
    this.bytes = new Uint8Array(this.size().reduce((a, b) => a * b, 1));
    if (empty) return;
    for (let z = 0; z < oz; z++) for (let y = 0; y < oy; y++) {
      const from = (z * oy + y) * ox;
      this.bytes.set(old.subarray(from, from + ox), this.offset(z + oldStart[0], y + oldStart[1], oldStart[2]));
    }
  }

  changed() {
    this.version++;
    this.paths.clear();
  }

  // One slice within the box: {values, v0, u0, height, width}, or null where the box does not reach.
  slice(plane, index) {
    const { axis, v, u } = PLANES[plane];
    if (index < this.start[axis] || index >= this.stop[axis] || !this.bytes.length) return null;
    const height = this.stop[v] - this.start[v], width = this.stop[u] - this.start[u];
    const values = new Uint8Array(height * width);
    const [, ny, nx] = this.size();
    const strides = [ny * nx, nx, 1];
    const origin = (index - this.start[axis]) * strides[axis];
    for (let a = 0; a < height; a++) for (let b = 0; b < width; b++) {
      values[a * width + b] = this.bytes[origin + a * strides[v] + b * strides[u]];
    }
    return { values, v0: this.start[v], u0: this.start[u], height, width };
  }

  // The pixel edges around the mask in one slice, in units of pixels of that plane's picture.
  outline(plane, index) {
    const key = `${plane}/${index}`;
    if (!this.paths.has(key)) {
      if (this.paths.size > 200) this.paths.clear();
      this.paths.set(key, this.trace(plane, index));
    }
    return this.paths.get(key);
  }

  trace(plane, index) {
    const part = this.slice(plane, index);
    if (!part) return null;
    const { values, height, width, v0, u0 } = part;
    const rows = this.shape[PLANES[plane].v];
    const at = (a, b) => (a >= 0 && a < height && b >= 0 && b < width ? values[a * width + b] : 0);
    const row = (a) => (PLANES[plane].turned ? rows - a : a);
    const path = new Path2D();
    let any = false;
    // Runs of edges are joined, so that a smooth outline needs few segments.
    for (let a = 0; a <= height; a++) {
      for (let b = 0; b < width; b++) {
        if (at(a - 1, b) === at(a, b)) continue;
        let end = b;
        while (end < width && at(a - 1, end) !== at(a, end)) end++;
        path.moveTo(u0 + b, row(v0 + a));
        path.lineTo(u0 + end, row(v0 + a));
        b = end;
        any = true;
      }
    }
    for (let b = 0; b <= width; b++) {
      for (let a = 0; a < height; a++) {
        if (at(a, b - 1) === at(a, b)) continue;
        let end = a;
        while (end < height && at(end, b - 1) !== at(end, b)) end++;
        path.moveTo(u0 + b, row(v0 + a));
        path.lineTo(u0 + b, row(v0 + end));
        a = end;
      }
    }
    return any ? path : null;
  }

  pack() {
    const bits = new Uint8Array(Math.ceil(this.bytes.length / 8));
    for (let i = 0; i < this.bytes.length; i++) if (this.bytes[i]) bits[i >> 3] |= 1 << (i & 7);
    return this.bytes.length ? { box: [...this.start, ...this.stop], bits } : { box: null, bits: new Uint8Array() };
  }
}

// Dice of the whole masks and the axial slice on which they differ most: {dice, worst: {index, voxels}}.
export function compare(one, other) {
  let first = 0, second = 0, both = 0;
  let worst = { index: -1, voxels: 0 };
  const low = Math.min(one.start[0], other.start[0]), high = Math.max(one.stop[0], other.stop[0]);
  for (let z = low; z < high; z++) {
    let a = 0, b = 0, ab = 0;
    const [, ny, nx] = one.size();
    if (z >= one.start[0] && z < one.stop[0]) {
      for (let y = one.start[1]; y < one.stop[1]; y++) {
        const from = ((z - one.start[0]) * ny + (y - one.start[1])) * nx;
        for (let k = 0; k < nx; k++) {
          if (!one.bytes[from + k]) continue;
          a++;
          if (other.get(z, y, one.start[2] + k)) ab++;
        }
      }
    }
    if (z >= other.start[0] && z < other.stop[0]) {
      const [, my, mx] = other.size();
      const from = (z - other.start[0]) * my * mx;
      for (let k = 0; k < my * mx; k++) b += other.bytes[from + k];
    }
    first += a;
    second += b;
    both += ab;
    const differing = a + b - 2 * ab;
    if (differing > worst.voxels) worst = { index: z, voxels: differing };
  }
  return { dice: first + second ? (2 * both) / (first + second) : NaN, worst };
}

// Length in mm of the axial contour of `now` that was no contour of `before`: what a person drew anew.
export function changedContourMm(before, now, spacing) {
  let length = 0;
  const contour = (m, z, y, x) => m.get(z, y, x) &&
    !(m.get(z, y - 1, x) && m.get(z, y + 1, x) && m.get(z, y, x - 1) && m.get(z, y, x + 1));
  for (let z = now.start[0]; z < now.stop[0]; z++)
    for (let y = now.start[1]; y < now.stop[1]; y++)
      for (let x = now.start[2]; x < now.stop[2]; x++)
        if (contour(now, z, y, x) && !contour(before, z, y, x)) length++;
  return length * Math.sqrt(spacing[1] * spacing[2]);
}

// Signed distance to the edge of a mask in pixels (Felzenszwalb and Huttenlocher 2012): positive inside.
// A ring of background stands around, for what lies beyond the mask's box is outside.
export function signedDistance(values, height, width) {
  const rows = height + 2, columns = width + 2, padded = new Uint8Array(rows * columns);
  for (let a = 0; a < height; a++) padded.set(values.subarray(a * width, (a + 1) * width), (a + 1) * columns + 1);
  const toBackground = squaredDistance(padded, rows, columns, 0);
  const toInside = squaredDistance(padded, rows, columns, 1);
  return Float32Array.from(values, (_, i) => {
    const at = (Math.floor(i / width) + 1) * columns + (i % width) + 1;
    return Math.sqrt(toBackground[at]) - Math.sqrt(toInside[at]);
  });
}

function squaredDistance(values, height, width, target) {
  const far = 1e10;
  const grid = Float64Array.from(values, (v) => (v === target ? 0 : far));
  const column = new Float64Array(height);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) column[y] = grid[y * width + x];
    const done = alongLine(column);
    for (let y = 0; y < height; y++) grid[y * width + x] = done[y];
  }
  for (let y = 0; y < height; y++) grid.set(alongLine(grid.slice(y * width, (y + 1) * width)), y * width);
  return grid;
}

function alongLine(f) {
  const n = f.length, result = new Float64Array(n), v = new Int32Array(n), z = new Float64Array(n + 1);
  let k = 0;
  z[0] = -Infinity;
  z[1] = Infinity;
  for (let q = 1; q < n; q++) {
    let s;
    do {
      const r = v[k];
      s = (f[q] + q * q - f[r] - r * r) / (2 * q - 2 * r);
    } while (s <= z[k] && --k >= 0);
    k++;
    v[k] = q;
    z[k] = s;
    z[k + 1] = Infinity;
  }
  for (let q = 0, j = 0; q < n; q++) {
    while (z[j + 1] < q) j++;
    result[q] = (q - v[j]) ** 2 + f[v[j]];
  }
  return result;
}
