"""The one look of every HTML page and picture that consilium writes."""
