"""SimpleITK's deformable registrations on the images that consilium sees, for `benchmarks.adaptation`."""

import numpy as np
import SimpleITK as itk

from consilium.adaptation.deformation import Deformation
from consilium.adaptation.images import PreparedImage
from consilium.types import Array, FloatArray

BSPLINE_KNOTS_MM = 60.0
"""Of the first level; the others halve it twice."""

ITERATIONS = (60, 50, 30)
"""Per level, as consilium's own."""


def bspline(planning: PreparedImage, repeat: PreparedImage, rigid: FloatArray) -> Deformation:
    """Cubic B-splines, mean squares, LBFGS, three levels."""
    fixed, moving = _image(repeat.grey, repeat), _image(planning.grey, repeat)
    extent = [s * n for s, n in zip(fixed.GetSpacing(), fixed.GetSize(), strict=True)]
    mesh = [max(1, round(length / BSPLINE_KNOTS_MM)) for length in extent]
    start = itk.BSplineTransformInitializer(fixed, mesh)
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(_image(repeat.body.astype(np.uint8), repeat))
    method.SetInterpolator(itk.sitkLinear)
    # LBFGS-B does not take a mesh that grows from level to level.
    method.SetOptimizerAsLBFGS2(numberOfIterations=50)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0.7])
    method.SetInitialTransformAsBSpline(start, inPlace=True, scaleFactors=[1, 2, 4])
    found = method.Execute(fixed, moving)
    field = itk.TransformToDisplacementField(
        found,
        itk.sitkVectorFloat64,
        fixed.GetSize(),
        fixed.GetOrigin(),
        fixed.GetSpacing(),
        fixed.GetDirection(),
    )
    return _deformation(itk.GetArrayFromImage(field), repeat, rigid)


def demons(planning: PreparedImage, repeat: PreparedImage, rigid: FloatArray) -> Deformation:
    """Diffeomorphic demons, three levels, the field smoothed by 1.5 voxels."""
    fixed, moving = _image(repeat.grey, repeat), _image(planning.grey, repeat)
    field = None
    for factor, iterations in zip((4, 2, 1), ITERATIONS, strict=True):
        small = [itk.Shrink(itk.SmoothingRecursiveGaussian(i, 0.5 * factor * 3), [factor] * 3) if factor > 1
                 else i for i in (fixed, moving)]  # fmt: skip
        method = itk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetStandardDeviations(1.5)
        if field is None:
            field = method.Execute(small[0], small[1])
        else:
            transform = itk.Resample(
                field, small[0], itk.Transform(), itk.sitkLinear, 0.0, field.GetPixelID()
            )
            field = method.Execute(small[0], small[1], transform)
    field = itk.Resample(field, fixed, itk.Transform(), itk.sitkLinear, 0.0, field.GetPixelID())
    return _deformation(itk.GetArrayFromImage(field), repeat, rigid)


def _image(array: Array, prepared: PreparedImage):
    image = itk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(tuple(reversed(prepared.grid.spacing_zyx_mm)))
    return image


def _deformation(field_xyz_mm: FloatArray, prepared: PreparedImage, rigid: FloatArray) -> Deformation:
    """A field along the image's own axes (Z, Y, X, 3: x, y, z) in LPS."""
    axes = prepared.grid.affine.axes_lps[:, ::-1]
    displacement = np.einsum("ka,zyxa->kzyx", axes, field_xyz_mm)
    return Deformation(np.ascontiguousarray(displacement, dtype=np.float32), prepared.grid, rigid)
