"""The same networks, losses and training steps in TensorFlow; importing this package alone loads nothing."""

import os

# Before TensorFlow is loaded. On processors without AVX-512 it leaves oneDNN off, and its own 3D convolution
# then takes three times as long backwards and unfolds the image 27-fold in memory.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
