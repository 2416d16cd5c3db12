"""What a folder is (dataset, run, federation, contoured image, result page), and its page to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from consilium.cases.dataset import MANIFEST
from consilium.cases.files import read_json
from consilium.cases.nifti import read_nifti
from consilium.errors import DataError
from consilium.pages.page import Figure, Section, TableBlock, Text
from consilium.pages.pictures import Panel, draw_panels
from consilium.review.federation_page import FILE, LOG, STATUS, federation_sections
from consilium.review.run_page import Blocks, run_sections

CONTOURS = "contours.json"
ENDING = ".nii.gz"


class Kind(StrEnum):
    """What a folder can be."""

    DATASET = "dataset"
    RUN = "run"
    FEDERATION = "federation"
    CONTOURED = "contours"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that has a page."""

    kind: Kind
    folder: Path

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
        return contoured_sections(self.folder) if self.kind is Kind.CONTOURED else []


def find_places(folder: Path) -> list[Place]:
    """The folder itself, or what lies in it (as in a demo's output), datasets first.

    Raises:
        DataError: There is nothing of ours.
    """
    found = list(_place_of(folder))
    if not found and folder.is_dir():
        found = [place for inner in sorted(folder.iterdir()) for place in _place_of(inner)]
    if not found:
        raise DataError(
            f"{folder.name}: must be a dataset, a run, a federation, the output of consilium contour, or a "
            "folder of these; it is none. Make a dataset with: consilium import SOURCE DATASET"
        )
    return sorted(found, key=lambda place: place.kind is not Kind.DATASET)


def _place_of(folder: Path) -> Iterator[Place]:
    if (folder / MANIFEST).exists():
        yield Place(kind=Kind.DATASET, folder=folder)
    elif any((folder / name).exists() for name in (FILE, LOG, STATUS)):
        yield Place(kind=Kind.FEDERATION, folder=folder)
    elif (folder / CONTOURS).exists():
        yield Place(kind=Kind.CONTOURED, folder=folder)
    elif (folder / "config.json").exists() and read_json(folder / "config.json").get("plan"):
        yield Place(kind=Kind.RUN, folder=folder)


def contoured_sections(folder: Path) -> list[Section]:
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
            text="These contours are proposals that nobody has approved. To look at them on the image and to "
            "decide: consilium import IMAGE-AND-CONTOURS DATASET, then consilium review DATASET.",
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
