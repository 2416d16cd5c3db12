"""consilium: hospitals learn one contouring model together while every patient record stays home."""

__version__ = "0.1.0"
