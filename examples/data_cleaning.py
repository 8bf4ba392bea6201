"""Which labels are wrong? Learns one weight for every training example.

    python examples/data_cleaning.py

The data are handwritten digits; half of the training labels are replaced by wrong ones, those of a
small validation set are not. The weight of an example falls where the validation loss falls with
it. One sweep back over a training gives the derivatives by all weights.
"""

from typing import NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import keras_fds


class Data(NamedTuple):
    """Pairs `(inputs, labels)`, and which training labels are wrong."""

    train: tuple
    validation: tuple
    test: tuple
    wrong: np.ndarray


def load_data(replaced=0.5, seed=0):
    """Digits: 1000 for training, 200 for validation and 597 for a test."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    parts = np.split(rng.permutation(len(images)), [1000, 1200])
    train, validation, test = ((images[part], labels[part]) for part in parts)
    wrong = rng.random(len(parts[0])) < replaced
    others = (train[1] + rng.integers(1, 10, len(wrong))) % 10
    return Data((train[0], np.where(wrong, others, train[1])), validation, test, wrong)


def make_model(optimizer):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main(outer_steps=30, epochs=10):
    keras.utils.set_random_seed(0)
    data = load_data()
    plain = make_model(keras.optimizers.Adam(0.01))
    plain.fit(*data.train, batch_size=50, epochs=epochs, verbose=0)
    before = plain.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]

    optimizer = keras_fds.HyperOptimizer(
        keras.optimizers.Adam(0.01), [keras_fds.Hyperparameter("sample_weight")]
    )
    model = make_model(optimizer)
    keras_fds.fit(
        model,
        *data.train,
        batch_size=50,
        epochs=epochs,
        outer_steps=outer_steps,
        validation_data=data.validation,
        seed=0,
    )
    after = model.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"]
    weights = optimizer.values["sample_weight"][0]
    area = roc_auc_score(~data.wrong, weights)
    print(f"Right labels have the greater weight in {100 * area:.1f}% of all pairs.")
    print(f"Test accuracy: {before:.3f} trained on all examples, {after:.3f} with the weights.")
    return area, before, after


if __name__ == "__main__":
    main()
