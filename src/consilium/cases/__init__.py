"""The dataset format: cases, their records on disk, the private part, splits and the training cache."""
