"""IBSI families IPET and REK0: how voxels differ from, and resemble, their neighbours (NGTDM, NGLDM)."""

import numpy as np

from consilium.geometry.compiled import compiled
from consilium.radiomics.definitions import family_tags
from consilium.radiomics.directions import Values, average, neighbourhood, tagged
from consilium.radiomics.emphasis import compute_emphasis, table_of
from consilium.radiomics.region import Region
from consilium.radiomics.settings import RadiomicsSettings
from consilium.types import Array, FloatArray

TONE_TAGS = family_tags("ngt_")
DEPENDENCE_TAGS = family_tags("ngl_")
COARSEST = 1e6
"""IBSI's value of coarseness where no voxel differs from its neighbours."""


def compute_neighbours(region: Region, settings: RadiomicsSettings) -> tuple[Values, Values]:
    """Tone difference and dependence features, with the suffixes 2D, 2_5D and 3D as wanted.

    Source:
        IBSI reference manual, "Neighbourhood grey tone difference based features" (IPET) and "Neighbouring
        grey level dependence based features" (REK0).
    """
    levels, highest = region.core.levels, region.level_count
    tones: Values = {}
    dependences: Values = {}

    def count(part: Array, planar: bool) -> tuple[FloatArray, Array]:
        return count_neighbours(
            part, neighbourhood(settings.distance, planar=planar), highest, settings.coarseness
        )

    flat = [way for way in ("2D", "2_5D") if way in settings.planes]
    if flat:
        held = [z for z in range(len(levels)) if (levels[z] > 0).any()]
        slices = [count(levels[z : z + 1], True) for z in held]
        for way in flat:
            parts = slices
            if way == "2_5D":
                parts = [(np.sum([t for t, _ in slices], axis=0), np.sum([d for _, d in slices], axis=0))]
            tones |= tagged(average(_tone(tone) for tone, _ in parts), way, TONE_TAGS)
            dependences |= tagged(average(_dependence(d) for _, d in parts), way, DEPENDENCE_TAGS)
    if "3D" in settings.planes:
        tone, dependence = count(levels, False)
        tones |= tagged(_tone(tone) or {}, "3D", TONE_TAGS)
        dependences |= tagged(_dependence(dependence) or {}, "3D", DEPENDENCE_TAGS)
    return tones, dependences


@compiled
def count_neighbours(
    levels: Array, offsets: Array, highest: int, coarseness: int
) -> tuple[FloatArray, Array]:
    """Both matrices in one walk over the voxels.

    Returns:
        (highest, 2): voxels of each level that have a neighbour, and the sum of their absolute differences
        from their neighbours' mean; (highest, neighbours + 1): voxels of each level by dependence count − 1.
    """
    nz, ny, nx = levels.shape
    tone = np.zeros((highest, 2))
    dependence = np.zeros((highest, len(offsets) + 1), np.int64)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                level = levels[z, y, x]
                if level == 0:
                    continue
                total, present, alike = 0, 0, 0
                for k in range(len(offsets)):
                    a, b, c = z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]
                    if 0 <= a < nz and 0 <= b < ny and 0 <= c < nx:
                        other = levels[a, b, c]
                        if other:
                            total += other
                            present += 1
                            if abs(other - level) <= coarseness:
                                alike += 1
                dependence[level - 1, alike] += 1
                if present:
                    tone[level - 1, 0] += 1
                    tone[level - 1, 1] += abs(level - total / present)
    return tone, dependence


def _tone(matrix: FloatArray) -> Values | None:
    """NaN-free by IBSI's rules: coarseness 10⁶ without differences, 0 for the others where undefined."""
    counts, differences = matrix[:, 0], matrix[:, 1]
    total = counts.sum()
    if not total:
        return None
    level = np.flatnonzero(counts) + 1.0
    share, difference = counts[counts > 0] / total, differences[counts > 0]
    present, summed = len(level), float(difference.sum())
    weighted = float((share * difference).sum())
    gap = level[:, None] - level[None, :]
    pair = share[:, None] * share[None, :]
    spread = float(np.abs(level[:, None] * share[:, None] - level[None, :] * share[None, :]).sum())
    both = share[:, None] + share[None, :]
    mixed = (share * difference)[:, None] + (share * difference)[None, :]
    contrast = 0.0
    if present > 1:
        contrast = float((pair * gap**2).sum()) / (present * (present - 1)) * summed / float(total)
    return {
        "ngt_coarseness": 1 / weighted if weighted > 0 else COARSEST,
        "ngt_contrast": contrast,
        "ngt_busyness": weighted / spread if spread > 0 else 0.0,
        "ngt_complexity": float((np.abs(gap) * mixed / both).sum()) / float(total),
        "ngt_strength": float((both * gap**2).sum()) / summed if summed > 0 else 0.0,
    }


def _dependence(counts: Array) -> Values | None:
    voxels = int(counts.sum())
    return compute_emphasis(table_of(counts), voxels, DEPENDENCE_TAGS) if voxels else None
