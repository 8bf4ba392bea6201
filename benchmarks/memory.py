"""Peak memory against the horizon: forward mode carries the tangents, not the trajectory.

    python -m benchmarks.memory

Trains LeNet (batch 32, 7 + 1 + 1 buckets) over horizons of 300 and 3000 inner steps, each in a
process of its own on the same arrays, and prints the peak resident memory of both.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import resource
import subprocess
import sys

from absl import app, flags

_HORIZON = flags.DEFINE_integer("horizon", None, "Measure this horizon only, in this process.")
_HORIZONS = (300, 3000)
_BATCH = 32


def peak_megabytes(horizon):
    """Peak resident memory of this process after one outer step over the horizon."""
    import numpy as np

    import keras_fds
    from benchmarks.inner_step import compiled_lenet

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300 * _BATCH, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, len(x))
    keras_fds.fit(
        compiled_lenet(7),
        x,
        y,
        batch_size=_BATCH,
        epochs=horizon // 300,
        outer_steps=1,
        validation_data=(x[:_BATCH], y[:_BATCH]),
        verbose=0,
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(_):
    if _HORIZON.value:
        print(peak_megabytes(_HORIZON.value))
        return
    peaks = []
    for horizon in _HORIZONS:
        command = [sys.executable, "-m", "benchmarks.memory", f"--horizon={horizon}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(printed.split()[-1]))
        print(f"horizon {horizon:6d}: peak resident memory {peaks[-1]:8.0f} MB")
    print(f"ratio {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    app.run(main)
