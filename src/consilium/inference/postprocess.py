"""What may be done to a mask after the network: keep its largest part."""

import numpy as np
from scipy import ndimage

from consilium.geometry.crop import Box
from consilium.types import Mask


def keep_largest_component(mask: Mask) -> Mask:
    """The largest part of a mask whose voxels touch by faces; the first one where several are as large.

    Returns:
        bool (Z, Y, X); an empty mask stays empty.
    """
    box = Box.around(mask)
    if box is None:
        return mask
    labels, count = ndimage.label(mask[box.slices()])
    if count == 1:
        return mask
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    result = np.zeros_like(mask)
    result[box.slices()] = labels == int(sizes.argmax())
    return result
