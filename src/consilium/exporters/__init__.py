"""From masks to what other programs read: RTSTRUCT, DICOM SEG, NIfTI, nnU-Net raw."""
