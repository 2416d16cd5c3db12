"""Where voxels are, in millimetres: affine, grid and volume, resampling, cropping, contours."""
