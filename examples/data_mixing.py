"""How much should each data source count? Learns the weight of a second, partly wrong source.

    python examples/data_mixing.py

The data are handwritten digits; half of the second source's labels are wrong. The model
keeps the weight as a plain number, `second_source`, and uses it in `compute_loss`. Any number that
takes part in a training step can be learned like this one.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_fds


class MixedSources(keras.Model):
    """A classifier of `{"image": [batch, 64], "source": [batch]}`."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(64, activation="relu")
        self.head = keras.layers.Dense(10)
        self.second_source = 1.0

    def call(self, inputs):
        return self.head(self.hidden(inputs["image"]))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        second = keras.ops.cast(x["source"], y_pred.dtype)
        weight = (1.0 - second) + self.second_source * second
        return super().compute_loss(x, y, y_pred, weight, training)

    def get_config(self):
        return {}


def load_sources(seed=0):
    """Digits from two sources: `(inputs, labels)` to train with, and to validate with."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    labels, order = digits.target.copy(), rng.permutation(len(images))
    validation, first, second = np.split(order, [400, 800])
    wrong = second[rng.random(len(second)) < 0.5]
    labels[wrong] = rng.integers(0, 10, len(wrong))
    source = np.zeros(len(images), "int32")
    source[second] = 1
    train = np.concatenate([first, second])
    return tuple(
        ({"image": images[part], "source": source[part]}, labels[part])
        for part in (train, validation)
    )


def main(outer_steps=8, epochs=10):
    keras.utils.set_random_seed(0)
    train, validation = load_sources()
    model = MixedSources()
    optimizer = keras_fds.HyperOptimizer(
        keras.optimizers.Adam(0.003),
        [keras_fds.Hyperparameter("model.second_source", 1, 1.0, step_size=0.5, scale="log")],
    )
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    keras_fds.fit(
        model,
        *train,
        batch_size=64,
        epochs=epochs,
        outer_steps=outer_steps,
        validation_data=validation,
    )
    weight = float(optimizer.schedules["model.second_source"].values[0])
    print(f"An example of the second source counts {weight:.2f} times one of the first.")
    return weight


if __name__ == "__main__":
    main()
