"""From outside into the dataset format: DICOM series, RTSTRUCT, SEG, LIDC, NIfTI, nnU-Net."""
