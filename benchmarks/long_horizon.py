"""Differentiates a training of ten thousand steps: `python -m benchmarks.long_horizon`.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m benchmarks.long_horizon --horizon=10000

LeNet on Fashion-MNIST, batches of 128; four learning rates, a cosine decay, and a momentum. Every
measurement is a process of its own: forward mode and reverse mode (from √T checkpoints) over the
whole horizon and over a tenth of it, for the peak of memory; and both in float64 over a short one,
for their difference. Writes `long_horizon.json`; finished measurements are not run again.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from benchmarks.report import machine
from trainers import quiet_tensorflow, workdirs

_HORIZON = flags.DEFINE_integer("horizon", 10000, "Inner steps of the long horizon.", 10)
_SHORT = flags.DEFINE_integer("short", 200, "Inner steps of the horizon in float64.", 8)
_OUTPUT = flags.DEFINE_string(
    "output", "benchmarks/results/long_horizon.json", "File for the results."
)
_MEASURE = flags.DEFINE_string("measure", None, "Of the programs it starts: MODE,HORIZON,DTYPE.")

MEMORY = 2**28  # Bytes that reverse mode may keep: far from all 10^4 states, so it recomputes.
BATCH, HELD_OUT = 128, 2000


def measure(mode, horizon, dtype):
    """One measurement: hypergradients, seconds and the peak of memory in megabytes."""
    quiet_tensorflow.import_tensorflow_quietly()
    import keras
    import tensorflow as tf

    import keras_fds
    from configs import fashion_mnist_lenet
    from trainers import experiment, networks

    keras.utils.set_random_seed(0)
    arrays = experiment.load_arrays(fashion_mnist_lenet.get_config(), "train")
    rates = 0.05 * (1 + np.cos(np.pi * (np.arange(4) + 0.5) / 4)) / 2
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(clipvalue=1.0),
        [
            keras_fds.Hyperparameter("learning_rate", num_buckets=4, initial=rates),
            keras_fds.Hyperparameter("momentum", initial=0.5),
        ],
    )
    model = networks.build("lenet", arrays.input_shape, arrays.num_classes)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    start = time.monotonic()
    if dtype == "float64":
        data = tf.data.Dataset.from_tensor_slices((arrays.x, arrays.y))
        found = keras_fds.hypergradients(
            model,
            data.skip(HELD_OUT).batch(BATCH).take(horizon),
            data.take(HELD_OUT).batch(500),
            differentiation=mode,
            dtype=dtype,
        )
    else:  # Arrays are replayed, where the batches of a dataset would be kept.
        x, y = arrays.x, arrays.y
        modes = {
            "forward": keras_fds.differentiation.Forward(),
            "reverse": keras_fds.differentiation.Reverse(MEMORY),
        }
        keras_fds.fit(
            model,
            x[HELD_OUT:],
            y[HELD_OUT:],
            batch_size=BATCH,
            epochs=horizon / -(-(len(x) - HELD_OUT) // BATCH),
            outer_steps=1,
            validation_data=(x[:HELD_OUT], y[:HELD_OUT]),
            differentiation=modes[mode],
            verbose=0,
            seed=0,
        )
        found = optimizer.hypergradients
        assert optimizer.horizon == horizon
    return {
        "hypergradients": {name: values.tolist() for name, values in found.items()},
        "seconds": round(time.monotonic() - start, 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def measured(*arguments):
    """`measure` in a process of its own."""
    text = ",".join(map(str, arguments))
    command = [sys.executable, "-m", "benchmarks.long_horizon", f"--measure={text}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{text} ended with an error: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def difference(results, horizon):
    """The largest difference between both modes, relative to the largest hypergradient."""
    forward, reverse = (
        results[f"{mode},{horizon},float64"]["hypergradients"] for mode in ("forward", "reverse")
    )
    return max(
        np.abs(np.subtract(forward[name], reverse[name])).max() / np.abs(forward[name]).max()
        for name in forward
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if _MEASURE.value:
        mode, horizon, dtype = _MEASURE.value.split(",")
        print(json.dumps(measure(mode, int(horizon), dtype)))
        return
    path, horizon, short = pathlib.Path(_OUTPUT.value), _HORIZON.value, _SHORT.value
    results = json.loads(path.read_text()) if path.exists() else {"machine": machine()}
    wanted = [
        (mode, *length)
        for length in ((short, "float64"), (horizon // 10, "float32"), (horizon, "float32"))
        for mode in ("forward", "reverse")
    ]
    for arguments in wanted:
        key = ",".join(map(str, arguments))
        if key not in results:
            results[key] = measured(*arguments)
            workdirs.write_json(path, results)
            print(key, {k: v for k, v in results[key].items() if k != "hypergradients"}, flush=True)
    results["difference_in_float64"] = difference(results, short)
    workdirs.write_json(path, results)
    print(f"Both modes over {short} steps in float64 differ by {difference(results, short):.1e}.")


if __name__ == "__main__":
    app.run(main)
