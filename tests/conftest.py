import contextlib
import functools
import gc
import io
import os
import pathlib
import sys
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As the programs have it, on any processor.

import keras
import pytest
import tensorflow as tf
from absl import logging
from absl.testing import flagsaver

# What is imported stays: the many collections of the tests need not look through it.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 50, 100)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# Most of the time is spent in tracing, some of that in making tracebacks shorter.
tf.debugging.disable_traceback_filtering()
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def pytest_addoption(parser):
    parser.addoption("--sweeps", action="store_true", help="Run the long sweeps as a whole.")
    parser.addoption("--screenshots", type=pathlib.Path, help="Folder for screenshots of pages.")


def pytest_collection_modifyitems(config, items):
    """Leaves out the cases of long sweeps that their marker does not keep."""
    named = any("::" in argument for argument in config.args)
    if config.getoption("--sweeps") or named:
        return
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item):
    marker = item.get_closest_marker("sweep")
    return marker is not None and _case(item) not in marker.args


def _case(item):
    return item.callspec.id if hasattr(item, "callspec") else ""


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


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """The folder of prepared datasets, which holds `digits`."""
    from trainers import data

    folder = tmp_path_factory.mktemp("datasets")
    data.prepare("digits", folder)
    return folder


@pytest.fixture(scope="session")
def run_program():
    """A function that runs a program in this process as a command line would.

    It takes a function that calls `app.run`, and the program's arguments, and returns the exit code
    and all that was printed. Flags and what else the program changes are put back afterwards.
    """

    def run(program, *arguments):
        output, verbosity = io.StringIO(), logging.get_verbosity()
        with (
            flagsaver.flagsaver(),
            mock.patch.object(sys, "argv", ["program", *arguments]),
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            with pytest.raises(SystemExit) as end:
                program()
            logging.set_verbosity(verbosity)
        code = end.value.code
        if isinstance(code, str):
            return 1, f"{output.getvalue()}{code}\n"
        return code or 0, output.getvalue()

    return run


@pytest.fixture(scope="module")
def read_once():
    """Datasets are read from disk once for all tests of a module."""
    from trainers import data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_arrays", functools.cache(data.load_arrays))
        yield
