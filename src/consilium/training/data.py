"""Cases as the loop reads them: on the network's grid, structures packed as bits, kept in the cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from consilium.cases.cache import CropReader, cache_key, cached_array
from consilium.cases.case import Annotation, Case, State
from consilium.cases.dataset import Dataset
from consilium.errors import DataError, DatasetError
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid, Volume
from consilium.inference.preprocess import Preprocessing, network_grid, prepare_image, prepare_mask
from consilium.types import Array, Mask, Progress, Shape, no_progress

PREPARED_VERSION = 1
FOREGROUND_POINTS = 2000
"""Voxels kept per structure as places to put the middle of a patch."""


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """One case on the network's grid, and its reference on the image's own.

    Structures are packed: bit ``s % 8`` of word ``s // 8`` says whether structure s is there.

    Args:
        case_id: Pseudonym of the case.
        patient_id: Pseudonym of the patient.
        grid: The network's grid of this case.
        original_grid: The image's own grid.
        image: (Z, Y, X) int16 on ``grid``; index it to read a crop.
        bits: (W, Z, Y, X) uint8 on ``grid``.
        reference_bits: (W, Z, Y, X) uint8 on ``original_grid``.
        known: (S,) bool: contoured or absent; everything else gives no gradient and no score.
        voxels: (S,) number of voxels on ``grid``.
        points: Per structure up to `FOREGROUND_POINTS` voxels (N, 3) of ``grid`` inside it.
    """

    case_id: str
    patient_id: str
    grid: Grid
    original_grid: Grid
    image: CropReader
    bits: CropReader
    reference_bits: CropReader
    known: Array
    voxels: Array
    points: tuple[Array, ...]

    @property
    def shape_zyx(self) -> Shape:
        """Voxels of the network's grid."""
        return self.grid.shape_zyx

    def reference(self, structure: int) -> Mask:
        """The reference (Z, Y, X) of one structure on the image's own grid."""
        word = self.reference_bits[structure // 8 : structure // 8 + 1][0]
        return np.asarray((word >> np.uint8(structure % 8)) & np.uint8(1)).view(np.bool_)


def usable_annotation(case: Case, structure: str, reader: str | None = None) -> Annotation | None:
    """What training and evaluation take as truth; None where nothing is known.

    A contoured structure without a single voxel counts as unknown: whoever drew it did not mean that nothing
    is there.
    """
    annotation = case.annotation(structure, reader)
    if annotation is None or annotation.state is State.UNKNOWN:
        return None
    if annotation.state is State.CONTOURED and annotation.voxels == 0:
        return None
    return annotation


def load_reference(dataset: Dataset, case: Case, structure: str, reader: str | None = None) -> Mask | None:
    """The mask that predictions are compared with; all False if the structure is absent, None if unknown."""
    annotation = usable_annotation(case, structure, reader)
    return None if annotation is None else dataset.load_mask(case, structure, annotation.reader)


def load_drawn(
    dataset: Dataset, case_ids: Sequence[str], structures: Sequence[str], reader: str | None = None
) -> Iterator[tuple[Volume, dict[str, Mask]]]:
    """Image and the masks that hold a voxel, case by case; cases without such a mask are left out."""
    for case in map(dataset.case, case_ids):
        found = {name: load_reference(dataset, case, name, reader) for name in structures}
        masks = {name: mask for name, mask in found.items() if mask is not None and mask.any()}
        if masks:
            yield dataset.load_image(case), masks


def prepare_cases(
    dataset: Dataset,
    case_ids: Sequence[str],
    structures: Sequence[str],
    preprocessing: Preprocessing,
    *,
    reader: str | None = None,
    progress: Progress = no_progress,
) -> list[PreparedCase]:
    """Every case on the network's grid, in the order given; made where the dataset's cache does not hold it.

    Raises:
        DatasetError: A case whose image cannot be used.
    """
    prepared = []
    for done, case_id in enumerate(case_ids):
        prepared.append(
            _Preparation(dataset, dataset.case(case_id), tuple(structures), preprocessing, reader).run()
        )
        progress("preparing cases", done + 1, len(case_ids))
    return prepared


def pack_structures(masks: Sequence[Mask | None], shape_zyx: Shape) -> Array:
    """Masks (Z, Y, X) as bits (W, Z, Y, X) uint8; None packs as nothing."""
    bits = np.zeros((-(-len(masks) // 8), *shape_zyx), dtype=np.uint8)
    for s, mask in enumerate(masks):
        if mask is not None:
            bits[s // 8] |= mask.astype(np.uint8) << np.uint8(s % 8)
    return bits


def unpack_structures(bits: Array, structures: int) -> Array:
    """The inverse of `pack_structures`: bool (S, Z, Y, X)."""
    masks = [(bits[s // 8] >> np.uint8(s % 8)) & np.uint8(1) for s in range(structures)]
    return np.stack(masks).view(np.bool_)


@dataclass(frozen=True)
class _Preparation:
    """One case on its way to the network's grid; what the cache holds is not computed again."""

    dataset: Dataset
    case: Case
    structures: tuple[str, ...]
    preprocessing: Preprocessing
    reader: str | None

    def run(self) -> PreparedCase:
        crop = self._cached("crop", self._crop)[:].reshape(2, 3).tolist()
        original = self.case.image.grid
        start, stop = crop
        grid = self._uncropped_grid().cropped(
            Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        )
        image = self._cached("image", lambda: self._image.array)
        reference_bits = self._cached("reference", self._reference_bits)
        bits = self._cached("bits", lambda: self._bits(reference_bits, grid))
        points = self._cached("points", lambda: self._points(bits))[:]
        known = [usable_annotation(self.case, name, self.reader) is not None for name in self.structures]
        voxels = points[:, 0, 0]
        return PreparedCase(
            case_id=self.case.case_id,
            patient_id=self.case.patient_id,
            grid=grid,
            original_grid=original,
            image=image,
            bits=bits,
            reference_bits=reference_bits,
            known=np.array(known, dtype=np.bool_),
            voxels=voxels.astype(np.int64),
            points=tuple(points[s, 1 : 1 + min(int(n), FOREGROUND_POINTS)] for s, n in enumerate(voxels)),
        )

    def _cached(self, role: str, build: Callable[[], Array]) -> CropReader:
        settings: dict[str, object] = {"role": role, "version": PREPARED_VERSION}
        settings["grid"] = self.case.image.grid.to_json()
        record = self.preprocessing.to_json()
        record.pop("windows")
        if role != "reference":
            settings["preprocessing"] = record
        if role in {"reference", "bits", "points"}:
            found = [usable_annotation(self.case, name, self.reader) for name in self.structures]
            settings["masks"] = [None if a is None else [str(a.state), a.content_sha256] for a in found]
        key = cache_key(self.case.image.content_sha256, **settings)
        return cached_array(self.dataset.cache_folder, key, build)

    def _uncropped_grid(self) -> Grid:
        return network_grid(self.case.image.grid, self.preprocessing.spacing_zyx_mm)

    @cached_property
    def _image(self) -> Volume:
        try:
            return prepare_image(self.dataset.load_image(self.case), self.preprocessing)
        except DataError as error:
            raise DatasetError(f"{self.case.case_id}: {error}") from error

    def _crop(self) -> Array:
        whole = self._uncropped_grid()
        grid = whole if self.preprocessing.crop == "none" else self._image.grid
        start = np.rint(whole.affine.to_indices(grid.affine.to_points((0, 0, 0)))).astype(np.int64)
        return np.stack([start, start + np.asarray(grid.shape_zyx)])[None]

    def _reference_bits(self) -> Array:
        shape = self.case.image.grid.shape_zyx
        bits = np.zeros((-(-len(self.structures) // 8), *shape), dtype=np.uint8)
        for s, name in enumerate(self.structures):
            mask = load_reference(self.dataset, self.case, name, self.reader)
            if mask is not None:
                bits[s // 8] |= mask.astype(np.uint8) << np.uint8(s % 8)
        return bits

    def _bits(self, reference_bits: CropReader, grid: Grid) -> Array:
        bits = np.zeros((reference_bits.shape[0], *grid.shape_zyx), dtype=np.uint8)
        for s in range(len(self.structures)):
            word = reference_bits[s // 8 : s // 8 + 1][0]
            mask = ((word >> np.uint8(s % 8)) & np.uint8(1)).view(np.bool_)
            bits[s // 8] |= prepare_mask(mask, self.case.image.grid, grid).astype(np.uint8) << np.uint8(s % 8)
        return bits

    def _points(self, bits: CropReader) -> Array:
        """(S, 1 + points, 3) int32: the number of voxels in the first row, then some of them."""
        table = np.zeros((len(self.structures), 1 + FOREGROUND_POINTS, 3), dtype=np.int32)
        whole = bits[:]
        for s in range(len(self.structures)):
            points = np.argwhere((whole[s // 8] >> np.uint8(s % 8)) & np.uint8(1))
            table[s, 0, 0] = len(points)
            if len(points) > FOREGROUND_POINTS:
                chosen = np.random.default_rng(s).choice(len(points), FOREGROUND_POINTS, replace=False)
                points = points[np.sort(chosen)]
            table[s, 1 : 1 + len(points)] = points
        return table
