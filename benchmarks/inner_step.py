"""What an inner step costs: stock fit, plain steps in the unroll, and with open tangents.

    python -m benchmarks.inner_step

LeNet on 28x28 images, batch 128, SGD in the paper's form. Every round times each kind of step
once, in turn, so that a drift of the machine's speed cancels in the ratios; medians of the
rounds are printed. All nine tangents (7 learning rates, 1 momentum, 1 weight decay) are open.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import statistics
import time

import keras
import numpy as np
from absl import app, flags

import keras_fds
from trainers import networks

_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often every kind of step is timed.")
_BATCH = 128
_STEPS_A_CALL = 10


def compiled_lenet(num_rate_buckets):
    """LeNet, compiled; 0 buckets: a HyperOptimizer with nothing to learn; `None`: plain SGD."""
    optimizer = keras_fds.optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4, clipvalue=3.0)
    if num_rate_buckets == 0:
        optimizer = keras_fds.HyperOptimizer(optimizer, [])
    elif num_rate_buckets:
        hyperparameters = [
            keras_fds.Hyperparameter("learning_rate", num_rate_buckets, 0.01),
            keras_fds.Hyperparameter("momentum", 1, 0.9),
            keras_fds.Hyperparameter("weight_decay", 1, 5e-4),
        ]
        optimizer = keras_fds.HyperOptimizer(optimizer, hyperparameters)
    model = networks.build("lenet", (28, 28, 1), 10)
    model.compile(
        optimizer,
        steps_per_execution=_STEPS_A_CALL,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class StepSeconds(keras.callbacks.Callback):
    """Median seconds a step over the last seventh of an epoch, when every bucket is open."""

    def on_epoch_begin(self, epoch, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    @property
    def seconds(self):
        last = self.times[-max(4, len(self.times) // 7) :]
        return statistics.median(np.diff(last)) / _STEPS_A_CALL


def measure(fit, num_rate_buckets, num_calls, **arguments):
    """Trains LeNet for one epoch of random images; seconds a step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_BATCH * _STEPS_A_CALL * num_calls, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, len(x))
    model, timer = compiled_lenet(num_rate_buckets), StepSeconds()
    fit(model, x, y, batch_size=_BATCH, verbose=0, callbacks=[timer], **arguments)
    return timer.seconds


def main(_):
    held_out = (np.zeros((_BATCH, 28, 28, 1), "float32"), np.zeros(_BATCH, "int64"))
    learn = functools.partial(keras_fds.fit, outer_steps=1, validation_data=held_out)
    kinds = {
        "stock fit": functools.partial(measure, keras.Model.fit, None, 30),
        "plain step": functools.partial(measure, learn, 0, 30),
        "9 tangents": functools.partial(measure, learn, 7, 14),
    }
    seconds = {name: [] for name in kinds}
    for _ in range(_ROUNDS.value):
        for name, kind in kinds.items():
            seconds[name].append(kind())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{'':12s} {'ms a step':>10s} {'plain steps':>12s}")
    for name, median in medians.items():
        print(f"{name:12s} {1e3 * median:10.2f} {median / medians['plain step']:12.2f}")


if __name__ == "__main__":
    app.run(main)
