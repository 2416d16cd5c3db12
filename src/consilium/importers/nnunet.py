"""nnU-Net raw folders as cases: ``dataset.json``, ``imagesTr``, ``labelsTr``, ignore label and regions."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consilium.cases.case import Finding, State
from consilium.cases.draft import AnnotationDraft, CaseDraft
from consilium.errors import RefusedInput
from consilium.importers.dicom_file import file_sha256
from consilium.importers.nifti import READER, annotations_from_labelmap, read_image, read_labels
from consilium.importers.sources import FoundSources, Source
from consilium.types import Progress

WHERE = "nnU-Net dataset.json"


@dataclass(frozen=True)
class NnunetLabels:
    """What the codes of a labelmap mean.

    Args:
        codes: Structure -> codes of its voxels; several for a region.
        ignore: Code of voxels of which nothing is known; None if there is none.
        modality: Of the one channel.
    """

    codes: Mapping[str, tuple[int, ...]]
    ignore: int | None
    modality: str


def is_nnunet(folder: Path) -> bool:
    """Whether the folder is a dataset as nnU-Net takes it."""
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir()


def find_nnunet(folder: Path) -> FoundSources:
    """Every training case of an nnU-Net raw folder (version 2's ``dataset.json``, or version 1's).

    Raises:
        RefusedInput: If ``dataset.json`` cannot be read or asks for several channels.
    """
    labels, ending = _read_description(folder / "dataset.json")
    sources, refused = [], []
    for number, image in enumerate(sorted((folder / "imagesTr").glob(f"[!.]*_0000{ending}")), start=1):
        case = image.name.removesuffix(f"_0000{ending}")
        label = folder / "labelsTr" / f"{case}{ending}"
        name = f"nnU-Net case {number}"
        if not label.is_file():
            refused.append(
                RefusedInput(name, "every image must have a labelmap in labelsTr; it has none.", "Add it.")
            )
            continue
        sources.append(_source(image, label, labels, name, f"nnunet {folder.resolve().name} {case}"))
    return FoundSources(sources=tuple(sources), refused=tuple(refused))


def _source(image: Path, label: Path, labels: NnunetLabels, name: str, identity: str) -> Source:
    def digests() -> dict[str, str]:
        meaning = json.dumps([sorted(labels.codes.items()), labels.ignore]).encode()
        return {
            "image": file_sha256(image),
            "labelmap": file_sha256(label),
            "labels": hashlib.sha256(meaning).hexdigest(),
        }

    def read(_progress: Progress) -> CaseDraft:
        volume = read_image(image, name)
        annotations, findings = _annotations(label, labels, volume.grid, name)
        return CaseDraft(
            source_identity=identity,
            patient_identity=identity,
            image=volume,
            modality=labels.modality,
            annotations=annotations,
            importer="nnunet",
            source_sha256=digests(),
            findings=findings,
            private={"kind": "nnunet", "case": identity},
        )

    return Source(name=name, location=image, identity=identity, digests=digests, read=read)


def _annotations(
    label: Path, labels: NnunetLabels, grid: Any, where: str
) -> tuple[tuple[AnnotationDraft, ...], tuple[Finding, ...]]:
    """Contoured or absent; where voxels are to be ignored, every structure is unknown."""
    codes = read_labels(label, grid, where)
    known = {code for wanted in labels.codes.values() for code in wanted} | {0, labels.ignore}
    strange = sorted(set(np.unique(codes).tolist()) - known)
    if strange:
        raise RefusedInput(
            where,
            f"every code of a labelmap must be in dataset.json; not so {strange[:5]}.",
            "Add them there.",
        )
    ignored = 0 if labels.ignore is None else int(np.count_nonzero(codes == labels.ignore))
    if not ignored:
        return tuple(annotations_from_labelmap(label, labels.codes, grid, where)), ()
    finding = Finding(
        code="ignored-voxels",
        message=f"{ignored} voxels carry the ignore label: no structure of this case is wholly known.",
        remedy="Complete the contours, or import the structures that are complete from files of their own.",
    )
    unknown = (AnnotationDraft(structure=s, reader=READER, state=State.UNKNOWN) for s in sorted(labels.codes))
    return tuple(unknown), (finding,)


def _read_description(path: Path) -> tuple[NnunetLabels, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        channels = dict(record.get("channel_names") or record["modality"])
        ending = str(record.get("file_ending", ".nii.gz"))
        codes, ignore = _read_codes(record["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedInput(
            WHERE,
            f"must name the channels and labels; it cannot be read ({type(error).__name__}).",
            "Mend it.",
        ) from error
    if len(channels) != 1 or ending not in (".nii.gz", ".nii"):
        raise RefusedInput(
            WHERE,
            f"must describe one channel of NIfTI files; found {len(channels)} channels of {ending[:12]!r}.",
            "Convert one channel to .nii.gz.",
        )
    modality = "CT" if str(next(iter(channels.values()))).upper() == "CT" else "MR"
    return NnunetLabels(codes, ignore, modality), ending


def _read_codes(labels: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Structure -> codes, and the ignore label. Version 1 wrote code -> structure."""
    if all(str(key).isdigit() for key in labels):
        labels = {str(name): int(code) for code, name in labels.items()}
    codes = {
        name: tuple(int(c) for c in value) if isinstance(value, list) else (int(value),)
        for name, value in labels.items()
    }
    ignore = codes.pop("ignore", None)
    return {n: c for n, c in codes.items() if n != "background" and c != (0,)}, ignore[0] if ignore else None
