"""What of an archive can be used for training and what cannot, per case and structure, with the remedy."""
