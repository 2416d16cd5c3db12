"""A DICOM node: receives series, hands each complete one to whoever contours, sends the contours back."""
