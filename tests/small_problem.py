"""A network of 67 weights on 60 examples, for tests of whole searches."""

import keras
import numpy as np

import keras_fds

NUM_EXAMPLES = 60


def make_model(
    num_buckets=2,
    compiled=True,
    initial=0.0,
    interpolation="constant",
    outer=None,
    **compile_arguments,
):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)]
    )
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(),
        [
            keras_fds.Hyperparameter(
                "learning_rate", num_buckets, initial, 0.3, interpolation=interpolation
            ),
            keras_fds.Hyperparameter("momentum", 1, 0.0, 0.3),
        ],
        outer=outer,
    )
    arguments = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        **compile_arguments,
    }
    if compiled:
        model.compile(optimizer, **arguments)
    return model


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1)
