"""The DICOM node."""
