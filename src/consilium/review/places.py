"""What a folder is (dataset, run, federation, contoured image, result page), and its page to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from consilium.cases.dataset import MANIFEST, Dataset, open_dataset
from consilium.cases.files import read_json
from consilium.cases.nifti import read_nifti
from consilium.errors import DataError
from consilium.pages.page import Figure, Section, TableBlock, Text
from consilium.pages.pictures import Panel, draw_panels
from consilium.review.federation_page import FILE, LOG, STATUS, federation_sections
from consilium.review.run_page import Blocks, run_sections

CONTOURS = "contours.json"
INNER_DATASET = "dataset"
"""In the output of ``consilium contour``: its image and contours as a case to look at."""
ENDING = ".nii.gz"
PAGE_MARK = '<meta name="generator" content="consilium'
HEAD_CHARACTERS = 4096
DEPTH = 3
"""Folders within folders that are looked through, as in a demo's output."""
LEFT_ALONE = frozenset({"cases", "cache", "private", "masks", "review", "journal"})


class Kind(StrEnum):
    """What a folder, or a file of ours, can be."""

    CONTOURED = "contours"
    DATASET = "dataset"
    FEDERATION = "federation"
    RUN = "run"
    PAGE = "page"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Something that has a page.

    Args:
        kind: What it is.
        folder: Where it lies; of a PAGE, the file.
        name: How people call it.
        dataset: Whose cases are looked at; of a DATASET, and of CONTOURED where its image was found.
        problem: Why a CONTOURED has no cases to look at; empty if there is none.
    """

    kind: Kind
    folder: Path
    name: str
    dataset: Dataset | None = None
    problem: str = ""

    @property
    def live(self) -> bool:
        """Whether what it shows may still grow."""
        return self.kind in {Kind.RUN, Kind.FEDERATION}

    def sections(self) -> list[Section]:
        """What to show now; a dataset has its own pages and none here.

        Raises:
            DataError: A file in it cannot be read.
        """
        if self.kind is Kind.RUN:
            return run_sections(self.folder)
        if self.kind is Kind.FEDERATION:
            return federation_sections(self.folder)
        return contoured_sections(self.folder, self.problem) if self.kind is Kind.CONTOURED else []


def place_of(dataset: Dataset) -> Place:
    """A dataset as a place."""
    return Place(kind=Kind.DATASET, folder=dataset.folder, name=dataset.folder.name, dataset=dataset)


def find_places(folder: Path) -> list[Place]:
    """The folder itself and what lies in it (as in a demo's output): what to decide about first, pages last.

    Raises:
        DataError: There is nothing of ours.
    """
    found = list(_places(folder, folder, DEPTH)) if folder.is_dir() else []
    if not found:
        raise DataError(
            f"{folder.name}: must be a dataset, a run, a federation, the output of consilium contour, or a "
            "folder of these; it is none. Make a dataset with: consilium import SOURCE DATASET"
        )
    order = list(Kind)
    return sorted(found, key=lambda place: order.index(place.kind))


def _places(folder: Path, root: Path, depth: int) -> Iterator[Place]:
    kind = _kind_of(folder)
    name = folder.name if folder == root else folder.relative_to(root).as_posix()
    if kind is not None:
        dataset = open_dataset(folder) if kind is Kind.DATASET else None
        yield Place(kind=kind, folder=folder, name=name, dataset=dataset)
    for file in sorted(folder.glob("*.html")):
        if _is_page(file):
            yield Place(kind=Kind.PAGE, folder=file, name=_page_name(file, root))
    if depth == 0 or kind is Kind.DATASET or kind is Kind.CONTOURED:
        return
    for inner in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if inner.name not in LEFT_ALONE and not inner.name.startswith("."):
            yield from _places(inner, root, depth - 1)


def _kind_of(folder: Path) -> Kind | None:
    if (folder / MANIFEST).exists():
        return Kind.DATASET
    if any((folder / name).exists() for name in (FILE, LOG, STATUS)):
        return Kind.FEDERATION
    if (folder / CONTOURS).exists():
        return Kind.CONTOURED
    return Kind.RUN if _is_run_config(folder / "config.json") else None


def _is_run_config(config: Path) -> bool:
    """Whether it is a run's; many programs keep a file of this name."""
    try:
        record = read_json(config) if config.exists() else None
    except DataError:
        return False
    return isinstance(record, dict) and bool(record.get("plan"))


def _is_page(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as text:
        return PAGE_MARK in text.read(HEAD_CHARACTERS)


def _page_name(file: Path, root: Path) -> str:
    """``evaluation`` for ``evaluation/evaluation.html``, else the path without its ending."""
    path = file.relative_to(root).with_suffix("")
    return path.parent.as_posix() if path.name == path.parent.name else path.as_posix()


def contoured_sections(folder: Path, problem: str) -> list[Section]:
    """Volumes, doubt and silhouettes of what a model contoured."""
    record = read_json(folder / CONTOURS)
    found = sorted(record["structures"], key=lambda row: -(row.get("doubt") or 0.0))
    rows = [(row["structure"], row.get("volume_cm3"), row.get("voxels"), row.get("doubt")) for row in found]
    table = TableBlock(
        title="Structures, those in most doubt first",
        columns=["structure", "volume (cm³)", "voxels", "doubt"],
        rows=rows,
        flagged=frozenset(k for k, row in enumerate(found) if not row.get("voxels")),
        note="Doubt: one minus the Dice to be expected, as the model judges itself. A marked "
        "structure was not found at all.",
    )
    blocks: Blocks = [
        Text(
            text="These contours are proposals that nobody has approved, and cannot be shown on their image. "
            + problem,
            kind="warning",
        ),
        table,
    ]
    sections = [Section(title="Contours", blocks=blocks)]
    pictures = _silhouettes(folder)
    if pictures is not None:
        sections.append(Section(title="Silhouettes", blocks=[pictures]))
    models = [(number, digest) for number, digest in enumerate(record.get("models", []), start=1)]
    table = TableBlock(title="Models", columns=["number", "digest"], rows=models)
    return [*sections, Section(title="Made with", blocks=[table])]


def _silhouettes(folder: Path) -> Figure | None:
    files = [f for f in sorted(folder.glob(f"*{ENDING}")) if f.name != f"doubt{ENDING}"]
    views: dict[str, dict[str, np.ndarray]] = {"from the front": {}, "from the side": {}}
    spacing, size = (1.0, 1.0, 1.0), (1, 1, 1)
    for file in files:
        volume, _ = read_nifti(file).to_canonical()
        mask = volume.array > 0
        spacing, size = volume.grid.spacing_zyx_mm, volume.grid.shape_zyx
        name = file.name.removesuffix(ENDING)
        views["from the front"][name] = np.flip(mask.any(axis=1), 0)
        views["from the side"][name] = np.flip(mask.any(axis=2), 0)
    if not files:
        return None
    panels = [
        Panel(
            title=title,
            image=np.full((size[0], size[2 if k == 0 else 1]), -160.0),
            outlines=outlines,
            spacing_yx=(spacing[0], spacing[2 if k == 0 else 1]),
        )
        for k, (title, outlines) in enumerate(views.items())
    ]
    caption = "Outlines of each structure's projection."
    return Figure(caption=caption, png=draw_panels(panels, columns=2))
