"""A thousand images of Fashion-MNIST: what is tuned is how strongly each layer is held back.

For `config.task`, see `trainers.task`; `configs/low_data.py` learns its 20 numbers.
"""

import keras
import numpy as np

EXAMPLES = 1000


def load_data():
    from trainers import data

    train, test = (data.load_arrays("fashion_mnist", split) for split in ("train", "test"))
    chosen = np.random.default_rng(0).permutation(len(train.x))[:EXAMPLES]
    return (train.x[chosen], train.y[chosen]), (test.x, test.y)


@keras.saving.register_keras_serializable("trainers")
class SmoothedCrossentropy(keras.losses.Loss):
    """The cross-entropy of logits with labels that are smoothed in training.

    Validation uses the labels as they are: a learned number of the loss is that of training only.
    """

    def __init__(self, label_smoothing=0.0, **options):
        super().__init__(**options)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        classes = y_pred.shape[-1]
        labels = keras.ops.one_hot(keras.ops.reshape(y_true, [-1]), classes, dtype=y_pred.dtype)
        labels = (1 - self.label_smoothing) * labels + self.label_smoothing / classes
        return keras.losses.categorical_crossentropy(labels, y_pred, from_logits=True)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def make_loss():
    return SmoothedCrossentropy()


def make_model():
    def options(name, strength=1e-4):
        return {"name": name, "kernel_regularizer": keras.regularizers.L2(strength)}

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.GaussianNoise(0.1, name="input_noise"),
            layers.Conv2D(16, 3, padding="same", activation="relu", **options("conv_1")),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu", **options("conv_2")),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.GaussianNoise(0.1, name="features_noise"),
            layers.Dense(64, activation="relu", **options("hidden")),
            layers.Dense(10, **options("logits")),
        ]
    )
