"""Models are built, and rebuilt with new weights."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fds.functional.rebuild import NotRebuilt, fresh_model, seeded

INPUTS = tf.TensorSpec([None, 2])


@keras.saving.register_keras_serializable("tests")
class Unclonable(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs)

    def get_config(self):
        raise NotImplementedError("no config")


def test_a_model_that_cannot_be_rebuilt_says_what_to_do():
    model = Unclonable(keras.layers.Dense(1))
    model(np.ones((1, 2)))
    with pytest.raises(NotRebuilt, match="TypeError|NotImplementedError"):
        fresh_model(model, INPUTS)


def test_a_model_is_rebuilt_whatever_its_optimizer_is_made_of():
    class Unregistered(keras.optimizers.SGD):
        pass

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(Unregistered(), loss="mse")
    twin = fresh_model(model, INPUTS)
    assert not np.array_equal(twin.get_weights()[0], model.get_weights()[0])
    assert model.compiled


def unclonable(units=1):
    return Unclonable(keras.layers.Dense(units))


def test_a_function_that_returns_an_unbuilt_model_gives_fresh_weights():
    model = unclonable()
    model(np.ones((1, 2)))
    twin = fresh_model(model, INPUTS, unclonable)
    assert [v.shape for v in twin.variables] == [v.shape for v in model.variables]
    assert not np.array_equal(twin.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize("kind", ["other units", "itself"])
def test_a_function_that_returns_another_kind_of_model_is_refused(kind):
    model = unclonable()
    model(np.ones((1, 2)))
    make = (lambda: model) if kind == "itself" else (lambda: unclonable(3))
    with pytest.raises(ValueError, match="must be another model with variables"):
        fresh_model(model, INPUTS, make)


def test_a_function_that_returns_no_model_is_refused():
    model = unclonable()
    model(np.ones((1, 2)))
    with pytest.raises(ValueError, match="must return a newly made keras.Model. Received: None"):
        fresh_model(model, INPUTS, lambda: None)


def test_layers_built_from_configs_draw_new_weights_each_time():
    model = keras.Sequential([keras.layers.Dense(3)])
    model(np.ones((1, 2)))
    first, second = (fresh_model(model, INPUTS).get_weights()[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_new_weights_derive_from_a_seed_and_leave_other_random_numbers_alone():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    drawn = []
    for seed in (1, 1, 2):
        before = random.getstate(), np.random.get_state()[1].tolist()
        with seeded(seed):
            twin = fresh_model(model, INPUTS)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        drawn.append([variable.numpy().tolist() for variable in twin.variables])
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2]) if one != [0.0] * 3)
