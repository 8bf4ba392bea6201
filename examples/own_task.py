"""A task of one's own for the programs: which of two halves of a signal is the louder one.

    python -m trainers.search --config=configs/digits.py --config.task=examples/own_task.py \
        --config.epochs="(5,)" --workdir=runs/own_task
"""

import keras
import numpy as np


def load_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 16)).astype("float32")
    y = (np.abs(x[:, :8]).sum(axis=1) > np.abs(x[:, 8:]).sum(axis=1)).astype("int32")
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def make_model():
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(2),
        ]
    )
