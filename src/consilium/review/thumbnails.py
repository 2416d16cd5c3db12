"""Small pictures for the list of cases, kept in the dataset's cache folder."""

import io

import numpy as np
from PIL import Image

from consilium.cases.case import Case, State
from consilium.cases.dataset import Dataset
from consilium.geometry.crop import Box
from consilium.geometry.volume import Volume
from consilium.pages.pictures import SOFT_TISSUE_HU
from consilium.types import Array

HEIGHT_PIXELS = 96


def thumbnail_png(dataset: Dataset, case: Case) -> bytes:
    """The axial slice through the middle of what is contoured, in a soft-tissue window."""
    path = dataset.cache_folder / "review" / f"thumbnail-{case.image.content_sha256[:24]}.png"
    if path.exists():
        return path.read_bytes()
    volume, reorientation = dataset.load_image(case).to_canonical()
    middle = volume.array.shape[0] // 2
    for structure in case.structures:
        if case.state(structure) is State.CONTOURED:
            box = Box.around(reorientation.apply(dataset.load_mask(case, structure)))
            if box is not None:
                middle = (box.start_zyx[0] + box.stop_zyx[0]) // 2
                break
    png = _draw(volume, middle)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(png)
    temporary.replace(path)
    return png


def _draw(volume: Volume, index: int) -> bytes:
    low, high = SOFT_TISSUE_HU
    slice_: Array = volume.array[index].astype(np.float32)
    grey = (np.clip((slice_ - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    _, spacing_y, spacing_x = volume.grid.spacing_zyx_mm
    width = max(1, round(HEIGHT_PIXELS * grey.shape[1] * spacing_x / (grey.shape[0] * spacing_y)))
    buffer = io.BytesIO()
    Image.fromarray(grey).resize((width, HEIGHT_PIXELS), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()
