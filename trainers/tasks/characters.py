"""A small transformer that predicts the next character of a text.

For `config.task`, see `trainers.task`; `configs/characters.py` learns its numbers. The text is a
file of one's own, `config.data_dir`.
"""

import pathlib

import keras
import numpy as np

LENGTH = 64  # Characters that the model sees.
WIDTH = 64
HEADS = 4
BLOCKS = 2


def load_data(data_dir=None):
    """Windows of the text and their next characters; the last tenth is for the test.

    Args:
        data_dir: Path of a text file.
    """
    if data_dir is None or not pathlib.Path(data_dir).is_file():
        raise ValueError(f"Pass a text file, --config.data_dir=FILE. Received: {data_dir!r}")
    text = np.frombuffer(pathlib.Path(data_dir).read_bytes(), "uint8")
    _, characters = np.unique(text, return_inverse=True)
    windows = (len(characters) - 1) // LENGTH
    x = characters[: windows * LENGTH].reshape(windows, LENGTH).astype("int32")
    y = characters[1 : windows * LENGTH + 1].reshape(windows, LENGTH).astype("int32")
    split = windows * 9 // 10
    return (x[:split], y[:split]), (x[split:], y[split:])


class Positions(keras.layers.Layer):
    """Adds a learned vector for every position."""

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=input_shape[1:], initializer="random_normal")

    def call(self, inputs):
        return inputs + self.vectors


def make_model(num_classes=65):
    layers = keras.layers
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(num_classes, WIDTH, name="characters")(inputs)
    x = Positions(name="positions")(x)
    for k in range(1, BLOCKS + 1):
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{k}")
        normal = layers.LayerNormalization()(x)
        x = layers.Add()([x, attention(normal, normal, use_causal_mask=True)])
        hidden = layers.LayerNormalization()(x)
        hidden = layers.Dense(4 * WIDTH, activation="gelu", name=f"wide_{k}")(hidden)
        x = layers.Add()([x, layers.Dense(WIDTH, name=f"narrow_{k}")(hidden)])
    logits = layers.Dense(num_classes, name="logits")(layers.LayerNormalization()(x))
    return keras.Model(inputs, logits)
