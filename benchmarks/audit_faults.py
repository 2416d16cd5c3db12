"""The kinds of faults that `benchmarks.audit` seeds in real cases, each as a function on a case's folder.

A DICOM case is a folder with ``ct`` and ``rtstruct`` (or slices beside each other, LIDC); a NIfTI case has
``ct.nii.gz`` and ``segmentations``. Folders hold links to the originals: a fault replaces what it changes.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom import dcmread
from pydicom.uid import generate_uid

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what is done, which codes name it rightly, and to which kind of case it is done."""

    name: str
    codes: frozenset[str]
    kind: str
    change: Change


def _slices(case: Path) -> list[Path]:
    """In order of height."""
    files = [p for p in (case / "ct").iterdir() if p.suffix == ".dcm" or p.suffix == ""]
    return sorted(files, key=lambda p: float(dcmread(p, stop_before_pixels=True).ImagePositionPatient[2]))


def _structures(case: Path) -> Path:
    return next((case / "rtstruct").iterdir())


def _rewrite(path: Path, change: Callable[[Any], None]) -> None:
    dataset = dcmread(path)
    change(dataset)
    path.unlink()
    dataset.save_as(path)


def _each_slice(case: Path, change: Callable[[Any], None]) -> None:
    for path in _slices(case):
        _rewrite(path, change)


def _set(**values: Any) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def _pixels(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def apply(dataset: Any) -> None:
        array = dataset.pixel_array
        dataset.PixelData = np.ascontiguousarray(change(array.copy())).astype(array.dtype).tobytes()

    return apply


def lose(case: Path, *which: int) -> None:
    paths = _slices(case)
    for k in which:
        paths[k].unlink()


def lose_every_second_above(case: Path) -> None:
    paths = _slices(case)
    for path in paths[len(paths) // 2 + 1 :: 2]:
        path.unlink()


def keep_eight(case: Path) -> None:
    paths = _slices(case)
    middle = len(paths) // 2
    for path in [*paths[: middle - 4], *paths[middle + 4 :]]:
        path.unlink()


def double_position(case: Path) -> None:
    path = _slices(case)[5]
    copy = path.with_name(f"copy{path.suffix}")
    shutil.copy(path, copy)
    _rewrite(copy, _set(SOPInstanceUID=generate_uid()))


def double_file(case: Path) -> None:
    path = _slices(case)[5]
    shutil.copy(path, path.with_name(f"copy{path.suffix}"))


def copy_series(case: Path, patient: str | None) -> None:
    other = case.parent / f"{case.name}-copy"
    shutil.copytree(case / "ct", other / "ct")
    uids = {k: generate_uid() for k in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}

    def change(dataset: Any) -> None:
        _set(**uids, SOPInstanceUID=generate_uid())(dataset)
        if patient:
            dataset.PatientID = dataset.PatientName = patient

    for path in list((other / "ct").iterdir()):
        _rewrite(path, change)


def cut_file(case: Path) -> None:
    path = _slices(case)[3]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) * 2 // 3])


def scramble_file(case: Path) -> None:
    path = _slices(case)[3]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:400] + b"\xff" * (len(content) - 400))


def one_slice(case: Path, **values: Any) -> None:
    _rewrite(_slices(case)[4], _set(**values))


def blank(case: Path) -> None:
    paths = _slices(case)
    for path in paths[len(paths) // 2 : len(paths) // 2 + 2]:
        _rewrite(path, _pixels(lambda a: np.full_like(a, a.min())))


def repeat(case: Path) -> None:
    paths = _slices(case)
    source = dcmread(paths[10]).PixelData
    _rewrite(paths[11], _set(PixelData=source))


def coarse(case: Path) -> None:
    for k, path in enumerate(_slices(case)):
        if k % 3:
            path.unlink()


def on_structures(change: Callable[[Any], None]) -> Change:
    return lambda case: _rewrite(_structures(case), change)


def _contours(dataset: Any) -> Any:
    return dataset.ROIContourSequence[0].ContourSequence


def move_contours(dataset: Any) -> None:
    for contour in _contours(dataset):
        values = np.asarray(contour.ContourData, dtype=float)
        values[2::3] += 900.0
        contour.ContourData = [f"{v:.3f}" for v in values]


def another_frame(dataset: Any) -> None:
    uid = generate_uid()
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = uid


def no_number(dataset: Any) -> None:
    contour = _contours(dataset)[0]
    values = [f"{float(v):.3f}" for v in contour.ContourData]
    contour.ContourData = [values[0], "nan", *values[2:]]


def every_second_contour(dataset: Any) -> None:
    heights = sorted({float(c.ContourData[2]) for c in _contours(dataset)})
    lost = set(heights[1:-1:2])
    item = dataset.ROIContourSequence[0]
    item.ContourSequence = [c for c in _contours(dataset) if float(c.ContourData[2]) not in lost]


def without(*keywords: str) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def no_contours(dataset: Any) -> None:
    del dataset.ROIContourSequence[0].ContourSequence


def _replace_nifti(path: Path, array: Any, affine: Any) -> None:
    path.unlink(missing_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def on_masks(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Change some masks, given as arrays (x, y, z) by file name; what is new or changed is written."""

    def apply(case: Path) -> None:
        folder = case / "segmentations"
        images = {p.name.removesuffix(".nii.gz"): nibabel.load(p) for p in folder.iterdir()}
        masks = {name: np.asarray(image.dataobj) for name, image in images.items()}
        affine = next(iter(images.values())).affine
        for name, mask in change(dict(masks)).items():
            if name not in masks or mask is not masks[name]:
                _replace_nifti(folder / f"{name}.nii.gz", mask, affine)

    return apply


def on_image(change: Callable[[Any], Any]) -> Change:
    def apply(case: Path) -> None:
        image = nibabel.load(case / "ct.nii.gz")
        array = change(np.asarray(image.dataobj).copy())
        _replace_nifti(case / "ct.nii.gz", array.astype(np.int16), image.affine)

    return apply


def swap(masks: dict[str, Any]) -> dict[str, Any]:
    return {"LeftParotid": masks["RightParotid"].copy(), "RightParotid": masks["LeftParotid"].copy()}


def moved(axis: int, share: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(masks: dict[str, Any]) -> dict[str, Any]:
        mask = masks["LeftParotid"]
        return {"LeftParotid": np.roll(mask, round(share * mask.shape[axis]), axis=axis)}

    return change


def every_second_slice(masks: dict[str, Any]) -> dict[str, Any]:
    mask = masks["RightParotid"].copy()
    rows = np.flatnonzero(mask.any(axis=(0, 1)))
    mask[:, :, rows[1:-1:2]] = 0
    return {"RightParotid": mask}


def one_voxel(masks: dict[str, Any]) -> dict[str, Any]:
    mask = np.zeros_like(masks["RightParotid"])
    where = np.argwhere(masks["RightParotid"])
    mask[tuple(where[len(where) // 2])] = 1
    return {"RightParotid": mask}


def truncated(array: Any) -> Any:
    array[:22], array[:, :14] = 20, 20
    return array


def misspelt(case: Path) -> None:
    path = case / "segmentations" / "RightParotid.nii.gz"
    path.rename(path.with_name("Ohrspeicheldruese re.nii.gz"))


def other_grid(case: Path) -> None:
    path = case / "segmentations" / "LeftParotid.nii.gz"
    image = nibabel.load(path)
    _replace_nifti(path, np.asarray(image.dataobj)[:-4], image.affine)


def _fault(name: str, codes: str, kind: str, change: Change) -> Fault:
    return Fault(name, frozenset(codes.split()), kind, change)


FAULTS = (
    _fault("a slice is missing", "uneven-slices", "dicom", lambda c: lose(c, 12)),
    _fault("three slices are missing", "uneven-slices", "dicom", lambda c: lose(c, 8, 9, 20)),
    _fault("mixed slice distances", "uneven-slices", "dicom", lose_every_second_above),
    _fault("mixed pixel spacing", "mixed-slices", "dicom", lambda c: one_slice(c, PixelSpacing=[0.5, 0.5])),
    _fault("a reformat among the slices", "mixed-slices", "dicom",
           lambda c: one_slice(c, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    _fault("two slices at one place", "doubled-positions", "dicom", double_position),
    _fault("a file twice", "copied-files", "dicom", double_file),
    _fault("a slice of another patient", "mixed-identity", "dicom",
           lambda c: one_slice(c, PatientID="other")),
    _fault("intercept wrong by 1024", "hu-calibration", "dicom",
           lambda c: _each_slice(c, lambda d: _set(RescaleIntercept=float(d.RescaleIntercept) + 1024)(d))),
    _fault("slope halved", "hu-calibration", "dicom",
           lambda c: _each_slice(c, lambda d: _set(RescaleSlope=float(d.RescaleSlope) * 0.5)(d))),
    _fault("blank slices", "blank-slices", "dicom", blank),
    _fault("a slice's pixels twice", "repeated-slices", "dicom", repeat),
    _fault("a file is cut off", "truncated-pixels", "dicom", cut_file),
    _fault("a file is scrambled", "unreadable-file uneven-slices", "dicom", scramble_file),
    _fault("a slice without place", "unreadable-file", "dicom",
           lambda c: _rewrite(_slices(c)[4], without("ImagePositionPatient"))),
    _fault("one image under two patients", "duplicate-patient", "dicom", lambda c: copy_series(c, "other")),
    _fault("one image twice of a patient", "duplicate-image", "dicom", lambda c: copy_series(c, None)),
    _fault("only eight slices", "few-slices", "dicom", keep_eight),
    _fault("every third slice", "coarse", "dicom", coarse),
    _fault("contours of another patient", "wrong-patient", "dicom", on_structures(_set(PatientID="other"))),
    _fault("contours in another frame", "wrong-frame", "dicom", on_structures(another_frame)),
    _fault("contours without their CT", "no-images", "dicom", lambda c: shutil.rmtree(c / "ct")),
    _fault("contours beyond the image", "outside-image misplaced-contours", "dicom",
           on_structures(move_contours)),
    _fault("a coordinate that is not finite", "unreadable-contours", "dicom", on_structures(no_number)),
    _fault("every second contour", "gaps missing-contours", "dicom", on_structures(every_second_contour)),
    _fault("a structure without contours", "no-contours", "dicom", on_structures(no_contours)),
    _fault("a structure set without structures", "refused-structures", "dicom",
           on_structures(without("StructureSetROISequence"))),
    _fault("left and right swapped", "laterality", "nifti", on_masks(swap)),
    _fault("an empty mask", "empty absent", "nifti",
           on_masks(lambda m: {"LeftParotid": m["LeftParotid"] * 0})),
    _fault("drawn on the wrong slices", "uneven-pair place density", "nifti", on_masks(moved(2, 0.3))),
    _fault("drawn in the air", "outside-body place", "nifti", on_masks(moved(1, 0.5))),
    _fault("a mask on every second slice", "missing-contours", "nifti", on_masks(every_second_slice)),
    _fault("a mask of one voxel", "volume", "nifti", on_masks(one_voxel)),
    _fault("two structures with one mask", "same-mask", "nifti",
           on_masks(lambda m: {"Mandible": m["RightParotid"].copy()})),
    _fault("another spelling", "name", "nifti", misspelt),
    _fault("a mask on another grid", "unusable-case refused other-grid", "nifti", other_grid),
    _fault("truncated field of view", "truncated-view", "nifti", on_image(truncated)),
    _fault("an offset of 200 HU", "hu-calibration", "nifti", on_image(lambda a: a + 200)),
    _fault("an inverted image", "hu-calibration", "nifti", on_image(lambda a: -a)),
)  # fmt: skip
