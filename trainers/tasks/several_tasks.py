"""Two handwritten digits in one image: which is the left one, which the right one, their sum?

A shared trunk and a head for each of three tasks, of ten classes each (the sum counts modulo ten).
For `config.task`, see `trainers.task`; `configs/several_tasks.py` learns the tasks' weights in the
loss and the rates of the trunk's layers.
"""

import keras
import numpy as np

TASKS = ("left", "right", "sum")
EXAMPLES = {"train": 10000, "test": 5000}
CLASSES = 10
SIZE = 32
SHIFT = 4  # Pixels between both digits, down and to the right.


def load_data():
    return tuple(_pairs(split, seed) for seed, split in enumerate(("train", "test")))


def _pairs(split, seed):
    """Images `[examples, SIZE, SIZE, 1]` of two digits each, and labels `[examples, 3]`."""
    from trainers import data

    digits = data.load_arrays("mnist", split, normalisation="none")
    rng, count = np.random.default_rng(seed), EXAMPLES[split]
    left, right = rng.integers(0, len(digits.x), (2, count))
    images = np.zeros((count, SIZE, SIZE, 1), "float32")
    height, width = digits.x.shape[1:3]
    images[:, :height, :width] = digits.x[left]
    shifted = images[:, SHIFT : SHIFT + height, SHIFT : SHIFT + width]
    np.maximum(shifted, digits.x[right], out=shifted)
    labels = digits.y[left], digits.y[right], (digits.y[left] + digits.y[right]) % CLASSES
    return images, np.stack(labels, axis=1)


@keras.saving.register_keras_serializable("trainers")
class WeightedTasks(keras.losses.Loss):
    """The mean of the tasks' cross-entropies, each times its weight.

    Validation counts all tasks alike: a learned number of the loss is that of training only.
    """

    def __init__(self, left=1.0, right=1.0, sum=1.0, **options):
        super().__init__(**options)
        self.left, self.right, self.sum = left, right, sum

    def call(self, y_true, y_pred):
        losses = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        weighted = [getattr(self, task) * losses[:, k] for k, task in enumerate(TASKS)]
        return sum(weighted) / len(TASKS)

    def get_config(self):
        return {**super().get_config(), **{task: getattr(self, task) for task in TASKS}}


def make_loss():
    return WeightedTasks()


def make_model():
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Conv2D(8, 5, strides=2, activation="relu", name="conv_1")(inputs)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="conv_2")(x)
    x = layers.Dense(64, activation="relu", name="trunk")(layers.Flatten()(x))
    heads = [layers.Dense(CLASSES, name=f"{task}_logits")(x) for task in TASKS]
    logits = layers.Reshape((len(TASKS), CLASSES))(layers.Concatenate()(heads))
    return keras.Model(inputs, logits)
