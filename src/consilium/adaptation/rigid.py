"""The rigid part of a registration: candidates on a coarse grid, then robust Gauss-Newton steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from consilium.adaptation.deformation import sample, slab_points
from consilium.adaptation.images import PreparedImage
from consilium.errors import DataError
from consilium.geometry.affine import Affine
from consilium.geometry.resample import resample
from consilium.geometry.volume import Grid, Volume
from consilium.types import Array, FloatArray, Progress, no_progress

COARSE_MM = 12.0
LEVELS_MM = (12.0, 6.0, 4.0)
STEPS = 25
SCAN_STEP_MM = 24.0
LEAST_OVERLAP = 0.25
"""Share of the repeat CT's body that must lie inside the planning CT."""

TRIED = 3
"""Best candidates that are refined on the coarse grid."""

ROBUST_GREY = 0.5
"""Differences beyond 50 HU of soft tissue count less and less (Cauchy): organs may have changed."""

SMALLEST_MOVE_MM = 0.005


@dataclass(frozen=True, eq=False)
class _Level:
    """Both images at one resolution.

    Args:
        points: (N, 3) points of the repeat CT inside its body.
        grey: (N,) there.
        moving: (1, Z, Y, X) planning CT.
        gradient: (3, Z, Y, X) of it in LPS mm.
        to_index: (4, 4) from planning points to voxels of ``moving``.
        centre: (3,) about which turns are counted, in the planning CT's frame.
    """

    points: Tensor
    grey: Tensor
    moving: Tensor
    gradient: Tensor
    to_index: FloatArray


def register_rigid(
    planning: PreparedImage, repeat: PreparedImage, *, progress: Progress = no_progress
) -> FloatArray:
    """(4, 4): from the repeat CT's frame to the planning CT's.

    The first guess is that both frames are the same; others lay the middles of the bodies on each other at
    several heights, so that two scans without a common frame of reference find each other too.

    Args:
        planning: On a grid of its own.
        repeat: On a grid of its own.
        progress: Told after each resolution.

    Raises:
        DataError: No position lets enough of the two bodies overlap.
    """
    coarse = _level(planning, repeat, COARSE_MM)
    ranked = sorted(
        ((_misfit(coarse, guess), k, guess) for k, guess in enumerate(_candidates(planning, repeat))),
        key=lambda entry: entry[:2],
    )
    best = [guess for misfit, _, guess in ranked if np.isfinite(misfit)][:TRIED]
    if not best:
        raise DataError(
            f"registration: at least {LEAST_OVERLAP:.0%} of the repeat CT's body must lie inside the "
            "planning CT; no position was found where it does. Are both of the same region of the body?"
        )
    refined = [_refine(coarse, guess) for guess in best]
    matrix = min(refined, key=lambda guess: _misfit(coarse, guess))
    for done, spacing in enumerate(LEVELS_MM):
        matrix = _refine(_level(planning, repeat, spacing), matrix)
        progress("rigid registration", done + 1, len(LEVELS_MM))
    return matrix


def _candidates(planning: PreparedImage, repeat: PreparedImage) -> list[FloatArray]:
    middles = [_middle_of_body(image) for image in (planning, repeat)]
    shift = middles[0] - middles[1]
    height = np.ptp(_corners(planning.grid)[:, 2]) / 2 + np.ptp(_corners(repeat.grid)[:, 2]) / 2
    reach = int(height // SCAN_STEP_MM)
    found: list[FloatArray] = [np.eye(4)]
    for z_mm in SCAN_STEP_MM * np.arange(-reach, reach + 1):
        guess = np.eye(4)
        guess[:3, 3] = shift + np.array([0, 0, z_mm])
        found.append(guess)
    return found


def _middle_of_body(image: PreparedImage) -> FloatArray:
    index = np.argwhere(image.body)
    return image.grid.affine.to_points(index.mean(axis=0) if len(index) else np.zeros(3))


def _corners(grid: Grid) -> FloatArray:
    top = np.asarray(grid.shape_zyx) - 1
    ends = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    return grid.affine.to_points(ends * top)


def _level(planning: PreparedImage, repeat: PreparedImage, spacing_mm: float) -> _Level:
    fixed, fixed_grid = _coarser(repeat.grey, repeat.grid, spacing_mm)
    body, _ = _coarser(repeat.body.astype(np.float32), repeat.grid, spacing_mm)
    moving, grid = _coarser(planning.grey, planning.grid, spacing_mm)
    inside = body.reshape(-1) > 0.5
    points = slab_points(fixed_grid.affine, fixed_grid.shape_zyx, 0, fixed_grid.shape_zyx[0])[inside]
    by_index = np.stack(
        [np.gradient(moving, axis=a) if moving.shape[a] > 1 else np.zeros_like(moving) for a in range(3)]
    )
    inverse = np.linalg.inv(grid.affine.matrix)
    gradient = np.einsum("azyx,ak->kzyx", by_index, inverse[:3, :3])
    return _Level(
        points=torch.from_numpy(points),
        grey=torch.from_numpy(fixed.reshape(-1)[inside].astype(np.float64)),
        moving=torch.from_numpy(moving[None].astype(np.float32)),
        gradient=torch.from_numpy(gradient.astype(np.float32)),
        to_index=inverse,
    )


def _coarser(array: Array, grid: Grid, spacing_mm: float) -> tuple[FloatArray, Grid]:
    z, y, x = (max(s, spacing_mm) for s in grid.spacing_zyx_mm)
    target = grid.resampled((z, y, x))
    return np.asarray(
        resample(Volume(array, grid), target, fill=float(array.min()), antialias=True).array
    ), target


def _look(level: _Level, matrix: FloatArray) -> tuple[Tensor, Tensor, Tensor]:
    """Planning points, their index, and which of them lie inside the planning CT."""
    moved = level.points @ torch.from_numpy(matrix[:3, :3].T) + torch.from_numpy(matrix[:3, 3])
    index = moved @ torch.from_numpy(level.to_index[:3, :3].T) + torch.from_numpy(level.to_index[:3, 3])
    top = torch.tensor(level.moving.shape[1:], dtype=torch.float64) - 0.5
    return moved, index, ((index >= -0.5) & (index <= top)).all(dim=1)


def _misfit(level: _Level, matrix: FloatArray) -> float:
    """Robust mean difference where both images show something; inf where they hardly overlap."""
    _, index, inside = _look(level, matrix)
    if float(inside.double().mean()) < LEAST_OVERLAP:
        return float("inf")
    difference = sample(level.moving, index[inside])[0].double() - level.grey[inside]
    return float(torch.log1p((difference / ROBUST_GREY) ** 2).mean())


def _refine(level: _Level, matrix: FloatArray) -> FloatArray:
    """Levenberg-Marquardt: steps that make the misfit worse are taken back and shortened."""
    best = _misfit(level, matrix)
    damping = 1e-3
    for _ in range(STEPS):
        system = _normal_equations(level, matrix)
        if system is None:
            return matrix
        left, right, centre = system
        move = np.linalg.solve(left + damping * np.diag(np.diag(left) + 1e-9), right)
        trial = _moved(matrix, move, centre)
        misfit = _misfit(level, trial)
        if misfit < best:
            matrix, best, damping = trial, misfit, max(damping / 3, 1e-6)
            if np.abs(move[:3]).max() < SMALLEST_MOVE_MM and np.abs(move[3:]).max() * 100 < SMALLEST_MOVE_MM:
                break
        else:
            damping *= 10
            if damping > 1e3:
                break
    return matrix


def _normal_equations(level: _Level, matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    moved, index, inside = _look(level, matrix)
    if float(inside.double().mean()) < LEAST_OVERLAP:
        return None
    moved, index = moved[inside], index[inside]
    difference = sample(level.moving, index)[0].double() - level.grey[inside]
    slope = sample(level.gradient, index).T.double()
    centre = moved.mean(dim=0)
    arm = moved - centre
    rows = torch.cat([slope, torch.linalg.cross(arm, slope)], dim=1)
    weight = 1 / (1 + (difference / ROBUST_GREY) ** 2)
    left = rows.T @ (rows * weight[:, None])
    right = -(rows.T @ (weight * difference))
    return left.numpy(), right.numpy(), centre.numpy()


def _moved(matrix: FloatArray, move: FloatArray, centre: FloatArray) -> FloatArray:
    """``matrix`` followed by a small shift (mm) and turn (rad) about ``centre``; stays exactly rigid."""
    angle = float(np.linalg.norm(move[3:]))
    turn = np.eye(3)
    if angle > 0:
        x, y, z = move[3:] / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    step = np.eye(4)
    step[:3, :3] = turn
    step[:3, 3] = centre + move[:3] - turn @ centre
    result = step @ matrix
    u, _, v = np.linalg.svd(result[:3, :3])
    result[:3, :3] = u @ v
    return result


def carried_back(grid: Grid, rigid: FloatArray) -> Grid:
    """A planning grid seen in the repeat CT's frame: the same voxels, moved by the inverse of ``rigid``."""
    return Grid(grid.shape_zyx, Affine(np.linalg.inv(rigid) @ grid.affine.matrix))
