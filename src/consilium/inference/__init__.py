"""A model applied to a CT: preprocessing, model files, one pass or windows, back to the image's grid."""
