import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As the programs have it, on any processor.

import keras
import pytest
import tensorflow as tf

# What is imported stays: the many collections of the tests need not look through it.
gc.collect()
gc.freeze()
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# Most of the time is spent in tracing, some of that in making tracebacks shorter.
tf.debugging.disable_traceback_filtering()
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seed and leaves nothing behind."""
    keras.utils.set_random_seed(0)
    yield
    # Python collects garbage when there is much of it: after every test would take minutes.
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def float64():
    """Computes in float64 for the length of a test."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
