"""NIfTI out: a folder per case with the image and one file per structure."""

from collections.abc import Sequence
from pathlib import Path

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset, file_name_of
from consilium.cases.nifti import write_nifti
from consilium.geometry.volume import Volume

IMAGE = "ct.nii.gz"


def export_nifti(
    dataset: Dataset, case: Case, out: Path, *, structures: Sequence[str] = (), reader: str | None = None
) -> int:
    """Write ``out/CASE/ct.nii.gz`` and ``out/CASE/segmentations/<structure>.nii.gz``.

    A structure that is absent gets an empty file; an unknown one gets none, so that reading the folder back
    gives the same states. Identifies nobody: the folder is called by the pseudonym.

    Args:
        dataset: That the case is of.
        case: To export.
        out: Made if absent; files there are replaced.
        structures: Only these; all if empty.
        reader: Whose contours; by default `Case.annotation`'s choice.

    Returns:
        Number of structures written.
    """
    folder = out / case.case_id
    (folder / "segmentations").mkdir(parents=True, exist_ok=True)
    write_nifti(folder / IMAGE, dataset.load_image(case))
    written = 0
    for structure in structures or case.structures:
        if case.state(structure, reader) is State.UNKNOWN:
            continue
        mask = Volume(dataset.load_mask(case, structure, reader), case.image.grid)
        write_nifti(folder / "segmentations" / f"{_file_name(structure)}.nii.gz", mask)
        written += 1
    return written


def _file_name(structure: str) -> str:
    """The name itself where it can be a file's, so that it is read back; else a safe one."""
    plain = structure.replace(" ", "").replace("-", "").replace("_", "")
    return structure if plain.isascii() and plain.isalnum() else file_name_of(structure)
