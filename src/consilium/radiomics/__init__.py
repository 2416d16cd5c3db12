"""Radiomics: features of an image inside a contour, by the Image Biomarker Standardisation Initiative."""
