"""Random changes: image and structures move together, sides change places, the generator decides alone."""

import numpy as np
import pytest

from consilium.errors import ConfigurationError
from consilium.training.augment import (
    NO_CHANGE,
    Augmentation,
    Change,
    apply_change,
    choose_change,
    mirror_order,
    other_side,
    swap_sides,
)
from consilium.training.data import pack_structures, unpack_structures

SPACING = (3.0, 1.0, 1.5)


def apply_whole(change: Change, image: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, y, x = image.shape
    return apply_change(
        change,
        image,
        bits,
        spacing_zyx_mm=SPACING,
        centre_zyx=((z - 1) / 2, (y - 1) / 2, (x - 1) / 2),
        shape_zyx=(z, y, x),
    )


def case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    image = rng.integers(-1000, 1000, (9, 21, 16), dtype=np.int16)
    bits = rng.integers(0, 256, (2, 9, 21, 16), dtype=np.uint8)
    return image, bits


def test_no_change_changes_nothing(rng: np.random.Generator) -> None:
    image, bits = case(rng)
    new_image, new_bits = apply_whole(NO_CHANGE, image, bits)
    assert np.array_equal(new_image, image)
    assert np.array_equal(new_bits, bits)


def test_mirroring_reverses_x_exactly(rng: np.random.Generator) -> None:
    image, bits = case(rng)
    change = Change(**{**vars(NO_CHANGE), "linear": np.diag([1.0, 1.0, -1.0]), "mirror": True})
    new_image, new_bits = apply_whole(change, image, bits)
    assert np.array_equal(new_image, image[..., ::-1])
    assert np.array_equal(new_bits, bits[..., ::-1])


def test_a_quarter_turn_about_z_is_exact_where_pixels_are_square() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (3, 11, 11), dtype=np.int16)
    bits = rng.integers(0, 256, (1, 3, 11, 11), dtype=np.uint8)
    turn = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    change = Change(**{**vars(NO_CHANGE), "linear": turn})
    new_image, new_bits = apply_change(
        change, image, bits, spacing_zyx_mm=(3.0, 2.0, 2.0), centre_zyx=(1, 5, 5), shape_zyx=(3, 11, 11)
    )
    assert np.allclose(new_image, np.rot90(image, -1, axes=(1, 2)), atol=1e-3)
    assert np.array_equal(new_bits, np.rot90(new_bits * 0 + bits, -1, axes=(2, 3)))


def test_a_shift_by_whole_voxels_moves_and_fills_with_air(rng: np.random.Generator) -> None:
    image, bits = case(rng)
    new_image, new_bits = apply_whole(
        Change(**{**vars(NO_CHANGE), "shift_mm": (3.0, -2.0, 0.0)}), image, bits
    )
    assert np.array_equal(new_image[:-1, 2:], image[1:, :-2])
    assert np.array_equal(new_bits[:, :-1, 2:], bits[:, 1:, :-2])
    assert (new_image[-1] == -1000).all()
    assert not new_bits[:, :, :2].any()


def test_structures_move_as_their_own_linear_interpolation(rng: np.random.Generator) -> None:
    masks = rng.random((11, 9, 21, 16)) < 0.5
    bits = pack_structures(list(masks), (9, 21, 16))
    change = choose_change(Augmentation(probability=1.0, noise_hu=0), rng, may_mirror=False)
    _, moved = apply_whole(change, np.zeros((9, 21, 16), np.int16), bits)
    unpacked = unpack_structures(moved, 11)
    for s in range(11):
        as_image, _ = apply_whole(
            Change(**{**vars(change), "gain": 1.0, "offset_hu": 0.0}),
            (masks[s] * 1000).astype(np.int16),
            bits,
        )
        sure = np.abs(as_image - 500) > 1
        assert np.array_equal(unpacked[s][sure], as_image[sure] > 500)


def test_volume_grows_by_the_stretch() -> None:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (31, 41, 41)), indexing="ij"), -1) - (15, 20, 20)
    ball = np.linalg.norm(grid * 1.0, axis=-1) < 8
    bits = pack_structures([ball], (31, 41, 41))
    change = Change(**{**vars(NO_CHANGE), "linear": np.eye(3) / 1.25})
    _, moved = apply_change(
        change,
        np.zeros(ball.shape, np.int16),
        bits,
        spacing_zyx_mm=(2.0, 2.0, 2.0),
        centre_zyx=(15, 20, 20),
        shape_zyx=(31, 41, 41),
    )
    assert moved.sum() / ball.sum() == pytest.approx(1.25**3, rel=0.03)


def test_the_same_generator_draws_the_same_change() -> None:
    first, second = (
        choose_change(Augmentation(), np.random.default_rng([3, 4]), may_mirror=True) for _ in range(2)
    )
    assert np.array_equal(first.linear, second.linear)
    assert {k: v for k, v in vars(first).items() if k != "linear"} == {
        k: v for k, v in vars(second).items() if k != "linear"
    }


def test_ranges_are_kept() -> None:
    wanted = Augmentation(turn_deg=10, stretch=0.1, shift_mm=5, probability=1.0)
    for seed in range(200):
        change = choose_change(wanted, np.random.default_rng(seed), may_mirror=True)
        scale = np.cbrt(abs(np.linalg.det(change.linear)))
        assert 1 / 1.1 - 1e-9 <= scale <= 1.1 + 1e-9
        assert max(map(abs, change.shift_mm)) <= 5
        assert 0.9 <= change.gain <= 1.1
        assert (np.linalg.det(change.linear) < 0) == change.mirror


@pytest.mark.parametrize(
    ("name", "partner"),
    [
        ("LeftParotid", "RightParotid"),
        ("femur_r", "femur_l"),
        ("FEMUR_R", "FEMUR_L"),
        ("kidney left", "kidney right"),
        ("LParotid", "RParotid"),
        ("Niere li", "Niere re"),
        ("RENE DX", "RENE SX"),
        ("Riñón_izq", "Riñón_der"),
        ("Rein droite", "Rein gauche"),
        ("Brainstem", None),
        ("Larynx", None),
        ("Liver", None),
    ],
)
def test_partners_on_the_other_side_are_found_by_name(name: str, partner: str | None) -> None:
    assert other_side(name) == partner


def test_mirroring_needs_every_partner() -> None:
    assert mirror_order(("Brainstem", "LeftParotid", "RightParotid")) == (0, 2, 1)
    assert mirror_order(("Brainstem", "LeftParotid")) is None
    masks = np.arange(3)[:, None, None, None] * np.ones((3, 2, 2, 2))
    assert swap_sides(masks, (0, 2, 1))[:, 0, 0, 0].tolist() == [0, 2, 1]


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Augmentation(noise_hu=-1)
    with pytest.raises(ConfigurationError):
        Augmentation(probability=1.5)
