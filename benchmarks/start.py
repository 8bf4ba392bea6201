"""How long `fit` takes to its first inner step: tracing and compiling included.

    python -m benchmarks.start

LeNet, batch 128, seven learning rates, a momentum and a weight decay.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time

import keras
import numpy as np
from absl import app

import keras_fds
from benchmarks.inner_step import compiled_lenet


class FirstStep(keras.callbacks.Callback):
    """The time when the first compiled call ended."""

    seconds = None

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = self.seconds or time.perf_counter()


def main(_):
    x = np.zeros((1280, 28, 28, 1), "float32")
    y = np.zeros(1280, "int64")
    model, first = compiled_lenet(7), FirstStep()
    start = time.perf_counter()
    keras_fds.fit(
        model, x, y, 128, outer_steps=1, validation_split=0.1, verbose=0, callbacks=[first]
    )
    print(f"first inner steps after {first.seconds - start:.1f} s")
    print(f"a whole outer step of 9 inner steps after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    app.run(main)
