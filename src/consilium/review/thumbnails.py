"""Small pictures for the list of cases, kept in the dataset's cache folder."""

import io

import numpy as np
from PIL import Image

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.geometry.crop import Box
from consilium.geometry.volume import Grid
from consilium.pages.pictures import SOFT_TISSUE_HU
from consilium.review.images import Images, image_key
from consilium.types import Array

HEIGHT_PIXELS = 96


def thumbnail_png(dataset: Dataset, images: Images, case: Case) -> bytes:
    """The axial slice through the middle of what is contoured, in a soft-tissue window."""
    path = dataset.cache_folder / "review" / f"thumbnail-{image_key(case)}.png"
    if path.exists():
        return path.read_bytes()
    grid, reorientation = case.image.grid.to_canonical()
    middle = grid.shape_zyx[0] // 2
    for structure in case.structures:
        if case.state(structure) is State.CONTOURED:
            box = Box.around(reorientation.apply(dataset.load_mask(case, structure)))
            if box is not None:
                middle = (box.start_zyx[0] + box.stop_zyx[0]) // 2
                break
    content, height, width = images.slice_bytes(case, "axial", middle)
    png = _draw(np.frombuffer(content, "<i2").reshape(height, width), grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(png)
    temporary.replace(path)
    return png


def _draw(slice_: Array, grid: Grid) -> bytes:
    low, high = SOFT_TISSUE_HU
    grey = (np.clip((slice_.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    _, spacing_y, spacing_x = grid.spacing_zyx_mm
    width = max(1, round(HEIGHT_PIXELS * grey.shape[1] * spacing_x / (grey.shape[0] * spacing_y)))
    buffer = io.BytesIO()
    Image.fromarray(grey).resize((width, HEIGHT_PIXELS), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()
