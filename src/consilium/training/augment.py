"""Random changes of a case: chosen first as plain numbers, then applied in one pass."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from consilium.errors import ConfigurationError
from consilium.geometry.compiled import compiled
from consilium.inference.preprocess import AIR
from consilium.types import Array, FloatArray, Shape, Triple

_LEFT = (
    "left l lt lft links linke linker linkes linken li lks izquierdo izquierda izq izqda izqdo gauche gauche "
    "gche sinistra sinistra sinistro sin sx"
)
_RIGHT = (
    "right r rt rgt rechts rechte rechter rechtes rechten re rts derecho derecha der dcha dcho droite droit "
    "drt dextra destra destro dex dx"
)
_PAIRS = tuple(zip(_LEFT.split(), _RIGHT.split(), strict=True))
_SIDES = dict(_PAIRS) | {right: left for left, right in _PAIRS}
"""Of a word with several partners, as French gauche, the last one counts: at worst nothing is mirrored."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^A-Za-z\d]+")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a case may be changed; every range is symmetric and drawn uniformly.

    Args:
        turn_deg: Largest turn about the patient's long axis; half of it about the other two.
        stretch: Largest change of size, as a share: 0.15 means 1/1.15 to 1.15.
        shift_mm: Largest shift along each axis.
        offset_hu: Largest offset of all values.
        gain: Largest change of contrast, as a share.
        noise_hu: Largest standard deviation of added noise.
        probability: How often a case is turned, stretched and shifted; likewise for values.

    Raises:
        ConfigurationError: A negative range, or a probability outside [0, 1].
    """

    turn_deg: float = 15.0
    stretch: float = 0.2
    shift_mm: float = 15.0
    offset_hu: float = 20.0
    gain: float = 0.1
    noise_hu: float = 20.0
    probability: float = 0.8

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or self.probability > 1:
            raise ConfigurationError(
                f"augmentation: ranges must be 0 or more and the probability at most 1; got {vars(self)}."
            )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was chosen for one case.

    Args:
        linear: (3, 3) from an offset in millimetres (z, y, x) in the new image to one in the old image.
        shift_mm: Where in the old image, measured from the wanted middle, the new middle lies (z, y, x).
        mirror: Whether left and right change places.
        gain: Factor on values.
        offset_hu: Added to values.
        noise_hu: Standard deviation of added noise.
        noise_seed: Of the noise.
    """

    linear: FloatArray
    shift_mm: Triple
    mirror: bool
    gain: float
    offset_hu: float
    noise_hu: float
    noise_seed: int


def choose_change(augmentation: Augmentation, rng: np.random.Generator, *, may_mirror: bool) -> Change:
    """Draw one change; the generator alone decides."""
    drawn = rng.uniform(-1, 1, 10)
    warped, valued, mirrored = rng.random(3) < (augmentation.probability, augmentation.probability, 0.5)
    noise_seed = int(rng.integers(2**31))
    a = augmentation
    mirror = bool(mirrored and may_mirror)
    linear = np.diag([1.0, 1.0, -1.0]) if mirror else np.eye(3)
    shift: Triple = (0.0, 0.0, 0.0)
    if warped:
        angles = np.deg2rad(a.turn_deg) * drawn[:3] * (1.0, 0.5, 0.5)
        linear = linear @ _rotation(angles) * (1 + a.stretch) ** drawn[3]
        shift = (a.shift_mm * drawn[4], a.shift_mm * drawn[5], a.shift_mm * drawn[6])
    return Change(
        linear=linear,
        shift_mm=shift,
        mirror=mirror,
        gain=float(1 + a.gain * drawn[7]) if valued else 1.0,
        offset_hu=float(a.offset_hu * drawn[8]) if valued else 0.0,
        noise_hu=float(a.noise_hu * abs(drawn[9])) if valued else 0.0,
        noise_seed=noise_seed,
    )


NO_CHANGE = Change(
    linear=np.eye(3), shift_mm=(0, 0, 0), mirror=False, gain=1, offset_hu=0, noise_hu=0, noise_seed=0
)


def apply_change(
    change: Change,
    image: Array,
    bits: Array,
    *,
    spacing_zyx_mm: Triple,
    centre_zyx: Triple,
    shape_zyx: Shape,
) -> tuple[Array, Array]:
    """The changed image and structures.

    Args:
        change: From `choose_change`.
        image: (Z, Y, X) int16.
        bits: (W, Z, Y, X) uint8, see `consilium.training.data.PreparedCase`.
        spacing_zyx_mm: Of both.
        centre_zyx: Voxel that comes to the middle of the result (before the shift).
        shape_zyx: Of the result; what lies outside the image is air without structures.

    Returns:
        The image (Z, Y, X) float32, interpolated linearly; the structures (W, Z, Y, X) uint8, set where their
        linear interpolation reaches one half.
    """
    spacing = np.asarray(spacing_zyx_mm)
    matrix = change.linear * spacing[None, :] / spacing[:, None]
    middle = (np.asarray(shape_zyx) - 1) / 2
    start = np.asarray(centre_zyx) + np.asarray(change.shift_mm) / spacing - matrix @ middle
    new_image = np.empty(shape_zyx, dtype=np.float32)
    new_bits = np.empty((bits.shape[0], *shape_zyx), dtype=np.uint8)
    _warp(np.asarray(image), np.asarray(bits), matrix, start, new_image, new_bits)
    if change.gain != 1 or change.offset_hu != 0:
        new_image *= np.float32(change.gain)
        new_image += np.float32(change.offset_hu)
    if change.noise_hu:
        noise = np.random.default_rng(change.noise_seed).standard_normal(shape_zyx, dtype=np.float32)
        new_image += noise * np.float32(change.noise_hu)
    return new_image, new_bits


def mirror_order(structures: Sequence[str]) -> tuple[int, ...] | None:
    """Which structure each one becomes when left and right change places.

    Returns:
        One place per structure: of its partner on the other side, or its own where the name has no side. None
        if some structure has a side but no partner: then nothing may be mirrored.
    """
    places = {name: place for place, name in enumerate(structures)}
    order = []
    for name in structures:
        partner = other_side(name)
        if partner is not None and partner not in places:
            return None
        order.append(places[name if partner is None else partner])
    return tuple(order)


def other_side(name: str) -> str | None:
    """The partner: ``LeftParotid`` -> ``RightParotid``; None if the name has no side."""
    words = _WORD.findall(name)
    sides = [k for k, word in enumerate(words) if word.lower() in _SIDES]
    if len(sides) != 1:
        return None
    word = words[sides[0]]
    other = _SIDES[word.lower()]
    words[sides[0]] = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
    return "".join(words)


def swap_sides(masks: Array, order: Sequence[int] | None) -> Array:
    """Structures (S, …) in mirrored order; the same array where nothing changes places."""
    if order is None or list(order) == list(range(len(order))):
        return masks
    return np.asarray(masks[list(order)])


def _rotation(angles_zyx: FloatArray) -> FloatArray:
    """(3, 3) on (z, y, x): turns about z, then y, then x."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(angles_zyx), np.sin(angles_zyx)
    about_z = np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    product: FloatArray = about_x @ about_y @ about_z
    return product


@compiled
def _warp(
    image: Array, bits: Array, matrix: FloatArray, start: FloatArray, new_image: Array, new_bits: Array
) -> None:  # pragma: no cover - compiled
    nz, ny, nx = image.shape
    words = bits.shape[0]
    position = np.empty(3)
    low = np.empty(3, dtype=np.int64)
    high = np.empty(3, dtype=np.int64)
    share = np.empty(3)
    weight = np.empty(8)
    word = np.empty(8, dtype=np.uint8)
    for z in range(new_image.shape[0]):
        for y in range(new_image.shape[1]):
            for x in range(new_image.shape[2]):
                outside = False
                for k in range(3):
                    p = start[k] + matrix[k, 0] * z + matrix[k, 1] * y + matrix[k, 2] * x
                    n = (nz, ny, nx)[k]
                    if p < -0.5 or p > n - 0.5:
                        outside = True
                        break
                    position[k] = min(max(p, 0.0), n - 1.0)
                    low[k] = math.floor(position[k])
                    high[k] = min(low[k] + 1, n - 1)
                    share[k] = position[k] - low[k]
                if outside:
                    new_image[z, y, x] = AIR
                    for w in range(words):
                        new_bits[w, z, y, x] = 0
                    continue
                value = 0.0
                for c in range(8):
                    i = high[0] if c & 4 else low[0]
                    j = high[1] if c & 2 else low[1]
                    k = high[2] if c & 1 else low[2]
                    weight[c] = (
                        (share[0] if c & 4 else 1.0 - share[0])
                        * (share[1] if c & 2 else 1.0 - share[1])
                        * (share[2] if c & 1 else 1.0 - share[2])
                    )
                    value += weight[c] * image[i, j, k]
                new_image[z, y, x] = value
                for w in range(words):
                    every, some = 255, 0
                    for c in range(8):
                        i = high[0] if c & 4 else low[0]
                        j = high[1] if c & 2 else low[1]
                        k = high[2] if c & 1 else low[2]
                        word[c] = bits[w, i, j, k]
                        every &= word[c]
                        some |= word[c]
                    mixed = some & ~every
                    result = every
                    if mixed:
                        for b in range(8):
                            if mixed >> b & 1:
                                total = 0.0
                                for c in range(8):
                                    if word[c] >> b & 1:
                                        total += weight[c]
                                if total >= 0.5:
                                    result |= 1 << b
                    new_bits[w, z, y, x] = result
