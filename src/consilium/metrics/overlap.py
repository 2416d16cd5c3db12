"""Volumes, Dice and the added path length: what counts voxels rather than distances."""

import numpy as np

from consilium.types import Mask, Triple


def volume_cm3(mask: Mask, spacing_zyx_mm: Triple) -> float:
    """Volume of a mask: voxels times voxel volume, in cm³; 0 for an empty mask."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing_zyx_mm)) / 1000


def dice(reference: Mask, prediction: Mask) -> float:
    """Dice similarity coefficient, 2·|A∩B| / (|A|+|B|).

    Args:
        reference: (Z, Y, X) bool.
        prediction: bool, same shape.

    Returns:
        In [0, 1]; 0 if exactly one mask is empty; **NaN if both are empty**, since nothing was measured.

    Source:
        Dice 1945, Ecology 26(3):297.
    """
    both = int(np.count_nonzero(reference & prediction))
    return dice_from_counts(int(np.count_nonzero(reference)), int(np.count_nonzero(prediction)), both)


def dice_from_counts(reference_voxels: int, prediction_voxels: int, both_voxels: int) -> float:
    """Dice from voxel counts; NaN if both masks are empty."""
    total = reference_voxels + prediction_voxels
    return 2 * both_voxels / total if total else float("nan")


def added_path_length_mm(reference: Mask, prediction: Mask, spacing_zyx_mm: Triple) -> float:
    """Length of the reference's contour that a person would have had to draw on each slice.

    Slice by slice (Z), the contour is the set of inside pixels with at least one of the four neighbours in
    the slice outside; pixels beyond the grid are outside. The length is the number of the reference's contour
    pixels that are no contour pixels of the prediction, times the pixel size √(spacing_y · spacing_x). No
    tolerance is given: an offset of one pixel counts.

    Args:
        reference: (Z, Y, X) bool.
        prediction: bool, same shape.
        spacing_zyx_mm: Voxel spacing in mm.

    Returns:
        ≥ 0 in mm; 0 if the reference is empty; the reference's whole contour if the prediction is empty.

    Source:
        Vaassen et al. 2020, Phys Imaging Radiat Oncol 13:1-6, added path length.
    """
    added = int(np.count_nonzero(slice_contours(reference) & ~slice_contours(prediction)))
    return added * float(np.sqrt(spacing_zyx_mm[1] * spacing_zyx_mm[2]))


def slice_contours(mask: Mask) -> Mask:
    """The inside pixels of each slice with a 4-neighbour outside; (Z, Y, X) bool."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]
    columns = padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    contour: Mask = mask & ~(rows & columns)
    return contour
