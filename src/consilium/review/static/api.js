// What the page asks of its server, and the caches that keep scrolling smooth.

export const record = JSON.parse(document.getElementById("record").textContent);
const { base } = record;
const KEPT_SLICES = 240;
const slices = new Map();

async function checked(response) {
  if (!response.ok) throw new Error(await response.text());
  return response;
}

// A promise of {values: Int16Array, height, width}; the same one while it is kept.
export function slice(plane, index) {
  const key = `${plane}/${index}`;
  const known = slices.get(key);
  if (known) {
    slices.delete(key);
    slices.set(key, known);
    return known;
  }
  const loading = fetch(`${base}/slice/${key}`).then(checked).then(async (response) => {
    const [height, width] = response.headers.get("X-Shape").split(",").map(Number);
    const loaded = { values: new Int16Array(await response.arrayBuffer()), height, width };
    loading.ready = loaded;
    return loaded;
  });
  loading.catch(() => slices.delete(key));
  slices.set(key, loading);
  if (slices.size > KEPT_SLICES) slices.delete(slices.keys().next().value);
  return loading;
}

export async function mask(structure, reader) {
  const query = new URLSearchParams({ structure, reader });
  const response = await checked(await fetch(`${base}/mask?${query}`));
  const edges = response.headers.get("X-Box");
  return { edges: edges ? edges.split(",").map(Number) : null, bits: new Uint8Array(await response.arrayBuffer()) };
}

async function post(path, body, type) {
  const response = await fetch(`${base}/${path}`, { method: "POST", body, headers: { "Content-Type": type } });
  return (await checked(response)).json();
}

export const decide = (asked) => post("decide", JSON.stringify(asked), "application/json");
export const exportAccepted = () => post("export", "{}", "application/json");
export const history = async () => (await checked(await fetch(`${base}/history`))).json();

export function correct(asked, bits) {
  const head = new TextEncoder().encode(JSON.stringify(asked));
  const length = new Uint8Array(new Uint32Array([head.length]).buffer);
  return post("correct", new Blob([length, head, bits]), "application/octet-stream");
}

// Survives a repeated click or a lost answer: the server records one decision for one id.
export function requestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}
