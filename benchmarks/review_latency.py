"""How long a person waits on the review page: first slice, next slice, and the server's memory.

``ours`` is the median time in ms from a key press to the next slice on screen (limit 50), in headless
Chromium with software rendering. ``peers`` holds NiiVue with the same CT in the same browser where
``--niivue FILE`` names its ``niivue.umd.js``. ``ratio`` is ours / limit.
"""

import argparse
import functools
import http.server
import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
from playwright.sync_api import sync_playwright

from benchmarks.measure import report
from consilium.cases.dataset import Dataset, create_dataset
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.geometry.affine import Affine
from consilium.geometry.volume import Grid, Volume
from tests.review.server import CHROMIUM_ARGUMENTS, find_chromium, serving

LIMIT_MS = 50.0
REPEATS = 3
NEXT = """async () => {
  const { panes, view } = window.consilium, pane = panes[0], times = [];
  for (let k = 0; k < 40; k++) {
    const started = performance.now();
    const target = view.position[0] + 1;
    const painted = new Promise(done => {
      view.painted = (plane, at) => plane === 'axial' && at === target && done();
    });
    document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }));
    const late = new Promise((_, fail) => setTimeout(() => fail(new Error('a slice never came')), 30000));
    await Promise.race([painted, late]);
    pane.context.getImageData(0, 0, 1, 1);
    times.push(performance.now() - started);
    await new Promise(done => setTimeout(done, 30));
  }
  return times;
}"""
NIIVUE = """<!doctype html><canvas id="gl" width="1280" height="800"></canvas>
<script src="niivue.umd.js"></script>
<script>window.run = async () => {
  const started = performance.now(), nv = new window.niivue.Niivue({ logLevel: 'error' });
  await nv.attachToCanvas(document.getElementById('gl'));
  await nv.loadVolumes([{ url: 'ct.nii', cal_min: -160, cal_max: 240 }]);
  nv.setSliceType(nv.sliceTypeMultiplanar); nv.drawScene();
  const gl = nv.gl, pixel = new Uint8Array(4);
  gl.readPixels(9, 9, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  const first = performance.now() - started, times = [];
  for (let k = 0; k < 20; k++) {
    const t = performance.now();
    nv.moveCrosshairInVox(0, 0, 1); nv.drawScene();
    gl.readPixels(9, 9, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    times.push(performance.now() - t);
  }
  return { first, times };
};</script>"""


def make_dataset(folder: Path, shape: tuple[int, int, int], cases: int) -> Dataset:
    """Noise with a ball that is contoured."""
    dataset = create_dataset(folder)
    grid = Grid(shape, Affine.from_spacing((1.0, 0.8, 0.8)))
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    ball = (z - shape[0] / 2) ** 2 + (y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2 < (min(shape) / 4) ** 2
    rng = np.random.default_rng(0)
    for k in range(cases):
        image = rng.normal(0, 60, shape).astype(np.int16)
        dataset.add(
            CaseDraft(
                source_identity=str(k),
                patient_identity=str(k),
                image=Volume(image, grid),
                modality="CT",
                annotations=(AnnotationDraft(structure="Ball", reader="clinical", mask=lambda: ball),),
                importer="benchmark",
                source_sha256={"series": str(k)},
            )
        )
    return dataset


def open_page(engine: Any, address: str) -> Any:
    """The list of cases in a new browser."""
    browser = engine.chromium.launch(executable_path=str(find_chromium()), args=CHROMIUM_ARGUMENTS)
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(address)
    return page


@dataclass(frozen=True, kw_only=True)
class First:
    """From the click on a case to its first slice.

    Args:
        wall_ms: What a person waits; depends on what else the machine does.
        server_cpu_ms: Processor time of this process, which serves.
        browser_cpu_ms: Processor time of the browser's processes.
    """

    wall_ms: float
    server_cpu_ms: float
    browser_cpu_ms: float


def cpu_ms() -> tuple[float, float]:
    """Processor time so far of this process and of its descendants, in ms."""
    me = psutil.Process()
    times = [sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)]]
    return 1000 * times[0], 1000 * sum(times[1:])


def measure_large(engine: Any, dataset: Dataset) -> tuple[First, list[float]]:
    """From the click on a case to its first slice; milliseconds from key to slice for 40 slices."""
    with serving(dataset, lambda *_: dataset.folder) as address:
        page = open_page(engine, address)
        (server, browser), started = cpu_ms(), time.monotonic()
        page.locator("a.case").first.click()
        page.locator(".pane.main[data-drawn]").wait_for(timeout=60_000)
        wall_ms = 1000 * (time.monotonic() - started)
        now = cpu_ms()
        first = First(wall_ms=wall_ms, server_cpu_ms=now[0] - server, browser_cpu_ms=now[1] - browser)
        page.wait_for_function("() => window.consilium.view.selected?.mask", timeout=120_000)
        page.wait_for_timeout(1500)
        times = page.evaluate(NEXT)
        page.context.browser.close()
    return first, times


def measure_memory(engine: Any, dataset: Dataset) -> list[float]:
    """Resident memory of this process, which serves, after each case that is opened, in MiB."""
    memory = []
    with serving(dataset, lambda *_: dataset.folder) as address:
        page = open_page(engine, address)
        base = page.url.rstrip("/")
        for case_id in dataset.case_ids:
            page.goto(f"{base}/case/{case_id}")
            page.locator(".pane.main[data-drawn]").wait_for()
            memory.append(psutil.Process().memory_info().rss / 2**20)
        page.context.browser.close()
    return memory


def measure_niivue(engine: Any, script: Path, shape: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    """NiiVue, multiplanar, on a CT of the same size."""
    (folder / "niivue.umd.js").write_bytes(script.read_bytes())
    (folder / "index.html").write_text(NIIVUE)
    image = np.random.default_rng(0).normal(0, 60, shape[::-1]).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "ct.nii")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = [a for a in CHROMIUM_ARGUMENTS if a != "--disable-gpu"]
    arguments += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    browser = engine.chromium.launch(executable_path=str(find_chromium()), args=arguments)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
    result: dict[str, Any] = page.evaluate("window.run()")
    browser.close()
    server.shutdown()
    return result


def rounded(values: list[float]) -> str:
    """Whole milliseconds, in order."""
    return ", ".join(f"{value:.0f}" for value in values)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller CT and fewer cases")
    parser.add_argument("--niivue", type=Path, help="NiiVue's niivue.umd.js, to measure it beside")
    parser.add_argument("--cases", type=int, default=100, help="opened one after the other, for the memory")
    options = parser.parse_args()
    shape = (120, 256, 256) if options.quick else (300, 512, 512)
    cases = 10 if options.quick else options.cases
    peers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as engine:
        folder = Path(name)
        dataset = make_dataset(folder / "large", shape, 1)
        first: list[First] = []
        cached: list[First] = []
        both: list[float] = []
        for _ in range(1 if options.quick else REPEATS):
            shutil.rmtree(dataset.cache_folder, ignore_errors=True)
            for found in (first, cached):
                opened, times = measure_large(engine, Dataset(dataset.folder))
                found.append(opened)
                both += times
        memory = measure_memory(engine, make_dataset(folder / "many", (64, 256, 256), cases))
        if options.niivue:
            niivue = measure_niivue(engine, options.niivue, shape, folder)
            peers["niivue"] = statistics.median(niivue["times"])
            print(f"niivue: first slice {niivue['first']:.0f} ms")
    for what, found in (("never opened before", first), ("in the cache", cached)):
        print(
            f"first slice of a case {what}: {rounded([f.wall_ms for f in found])} ms (limit 2000); of "
            f"processor time, server {rounded([f.server_cpu_ms for f in found])}, browser "
            f"{rounded([f.browser_cpu_ms for f in found])} ms"
        )
    both.sort()
    print(
        f"next slice, {len(both)} steps: median {statistics.median(both):.1f} ms, "
        f"95 % within {both[int(0.95 * len(both))]:.1f}, longest {both[-1]:.1f}"
    )
    settled = memory[len(memory) // 4]
    print(f"server memory: {settled:.0f} MiB after a quarter of {cases} cases, {memory[-1]:.0f} at the end")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    ours = statistics.median(both)
    question = f"How long until the next slice of a {shape[2]}×{shape[1]}×{shape[0]} CT is on screen?"
    report(question, "ms", ours, peers, limit=LIMIT_MS, ratio=ours / LIMIT_MS)


if __name__ == "__main__":
    main()
