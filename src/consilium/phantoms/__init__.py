"""Analytic patients and shapes: images and polygons with volumes known on paper, and their DICOM files."""
