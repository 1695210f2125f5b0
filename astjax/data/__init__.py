"""Audio in, batches out: the only package that imports TensorFlow."""

import os

# Before TensorFlow is imported: no start-up messages (errors still come).
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
