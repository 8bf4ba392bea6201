"""MNIST of which half the training labels are wrong, and a small set of right ones.

For `config.task`, see `trainers.task`; `configs/data_cleaning.py` learns a weight for each example.
How well learned weights tell right labels from wrong ones:

    python -m trainers.tasks.data_cleaning runs/data_cleaning/schedules.json
"""

import sys

import keras
import numpy as np

EXAMPLES = 5000
HELD_OUT = 1000
WRONG = 0.5  # Part of the labels.


def is_wrong():
    """Which training labels are wrong, a bool `[EXAMPLES]`."""
    return np.random.default_rng(1).random(EXAMPLES) < WRONG


def load_data():
    return with_wrong_labels(is_wrong())


def with_wrong_labels(wrong):
    """Training data with some wrong labels, data for validation and for the test.

    Args:
        wrong: Which labels, a bool array, one for every training example.
    """
    from trainers import data

    train, test = (data.load_arrays("mnist", split) for split in ("train", "test"))
    rng, examples = np.random.default_rng(0), len(wrong)
    chosen, held_out = np.split(rng.permutation(len(train.x))[: examples + HELD_OUT], [examples])
    others = (train.y[chosen] + rng.integers(1, 10, examples)) % 10
    labels = np.where(wrong, others, train.y[chosen])
    return (
        (train.x[chosen], labels),
        (train.x[held_out], train.y[held_out]),
        (test.x, test.y),
    )


def make_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.Dense(10, name="logits"),
        ]
    )


def area_under_curve(weights):
    """How often a right label has a greater weight than a wrong one, from 0 to 1."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(~is_wrong(), weights))


def main(paths):
    """Prints the area under the curve of the weights in each `schedules.json`."""
    import keras_fds

    for path in paths:
        schedules = keras_fds.load_schedules(path)
        print(f"{path}: {area_under_curve(schedules['sample_weight'].values[0]):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
