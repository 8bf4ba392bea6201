"""What tells one search's model and data from another's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fds.data.split import make_batches
from keras_fds.search.fingerprint import data_fingerprint, model_fingerprint


def model(units=4, activation="tanh", loss=None, rate=0.5):
    layers = keras.layers
    inputs = keras.Input([6])
    hidden = layers.Dropout(rate)(layers.Dense(units, activation=activation)(inputs))
    made = keras.Model(inputs, layers.Dense(3)(hidden))
    made.compile("sgd", loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


def test_a_model_that_is_made_again_has_the_same_fingerprint():
    assert model_fingerprint(model()) == model_fingerprint(model())
    assert model_fingerprint(model(loss=my_loss)) == model_fingerprint(model(loss=my_loss))


def my_loss(y, outputs):
    return tf.reduce_mean(outputs - tf.cast(y, outputs.dtype))


@pytest.mark.parametrize(
    "other",
    [
        {"activation": "relu"},
        {"rate": 0.4},
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)},
        {"loss": my_loss},
    ],
)
def test_a_model_with_other_settings_has_another(other):
    assert model_fingerprint(model()) != model_fingerprint(model(**other))


def test_models_that_tell_nothing_of_themselves_have_one():
    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)

        def call(self, inputs):
            return self.dense(inputs)

    made = [Own(units) for units in (3, 3, 4)]
    prints = [model_fingerprint(each) for each in made]
    assert prints[0] == prints[1] != prints[2]


def test_data_are_told_apart_by_their_numbers():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)

    def of(x, y):
        return data_fingerprint(make_batches((x, y, None), 2, None, ("x", "steps")))

    assert of(x, y) == of(x.copy(), y.copy())
    assert len({of(x, y), of(x, y[::-1].copy()), of(x + 1e-9, y), of(x[:5], y[:5])}) == 4


def test_datasets_are_told_apart_by_their_shapes_only():
    def of(*shape):
        dataset = tf.data.Dataset.from_tensors((np.zeros(shape), np.zeros(shape[0])))
        data = (dataset, None, None)
        return data_fingerprint(make_batches(data, None, None, ("x", "steps")))

    assert of(4, 2) == of(4, 2) != of(4, 3)
