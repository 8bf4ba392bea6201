"""Weights are drawn anew in place as a rebuilt model has them, or it is told what hinders."""

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds.functional import rebuild
from keras_fds.functional.rebuild import pretrained_layers
from keras_fds.functional.redraw import redrawn_values
from keras_fds.internals import keras_models

L = keras.layers
X = np.random.default_rng(0).normal(size=(40, 6, 4)).astype("float32")
Y = np.zeros((40, 1), "float32")


def functional():
    inputs = keras.Input((6, 4))
    x = L.LSTM(3, return_sequences=True, dropout=0.1)(inputs)
    x = L.Conv1D(5, 2, kernel_initializer="he_normal")(x)
    return keras.Model(inputs, L.Dense(1)(L.Dropout(0.5)(L.Flatten()(x))))


def dense():
    return [
        keras.Input((6, 4)),
        L.Flatten(),
        L.Dense(3),
        L.Dropout(0.2),
        L.BatchNormalization(),
        L.Dense(1),
    ]


def embedding():
    return [keras.Input((6,)), L.Embedding(9, 3), L.GlobalAveragePooling1D(), L.PReLU(), L.Dense(1)]


def constant():
    threes = keras.initializers.Constant(3.0)
    return [keras.Input((6, 4)), L.GRU(3), L.Dense(2, bias_initializer=threes)]


def nested():
    inner = keras.Sequential([L.Flatten(), L.Dense(3)])
    return [keras.Input((6, 4)), inner, L.GaussianNoise(0.1), L.Dense(1)]


def seeded():
    normal = keras.initializers.RandomNormal(seed=5)
    return [
        keras.Input((6, 4)),
        L.Flatten(),
        L.Dropout(0.5, seed=3),
        L.Dense(1, kernel_initializer=normal),
    ]


MODELS = {
    "functional": functional,
    **{f.__name__: lambda f=f: keras.Sequential(f()) for f in (dense, embedding, constant, nested)},
    "seeded": lambda: keras.Sequential(seeded()),
}


@pytest.mark.parametrize("name", MODELS)
def test_in_place_is_as_rebuilt(name):
    model = MODELS[name]()
    before = [variable.numpy() for variable in model.variables]
    with rebuild.seeded(11):
        twin = keras_models.rebuilt(model)
    with rebuild.seeded(11):
        values = redrawn_values(model, model.variables)
    for variable, other in zip(model.variables, twin.variables, strict=True):
        np.testing.assert_array_equal(values[id(variable)], other.numpy(), err_msg=variable.path)
    for variable, value in zip(model.variables, before):  # Nothing has changed yet.
        np.testing.assert_array_equal(variable.numpy(), value)


def double(x):
    return 2 * x


class Patches(L.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        return x[:, : self.size]


class Scaled(L.Layer):
    """Its weight is made in `build`, its `__init__` takes no name."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="scale")

    def call(self, x):
        return x * self.scale * self.factor


class Subclassed(keras.Model):
    def __init__(self, layers):
        super().__init__()
        self.stack = layers

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return x

    def get_config(self):
        raise NotImplementedError


UNBUILDABLE = {
    "Lambda of a function": lambda: keras.Sequential(
        [keras.Input((6, 4)), L.Lambda(double), L.Flatten(), L.Dense(1)]
    ),
    "Lambda of a lambda": lambda: keras.Sequential(
        [keras.Input((6, 4)), L.Lambda(lambda x: 2 * x), L.Flatten(), L.Dense(1)]
    ),
    "no name": lambda: keras.Sequential([keras.Input((6, 4)), Patches(3), L.Flatten(), L.Dense(1)]),
    "own weight": lambda: keras.Sequential(
        [keras.Input((6, 4)), Scaled(2), L.Flatten(), L.Dense(1)]
    ),
    "no config": lambda: Subclassed([L.Flatten(), L.Dense(3), L.Dense(1)]),
}  # fmt: skip


class FirstWeights(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(np.concatenate([w.ravel() for w in self.model.get_weights()]))


@pytest.mark.parametrize("name", UNBUILDABLE)
def test_what_keras_trains_can_restart(name):
    model, spy = UNBUILDABLE[name](), FirstWeights()
    learned = [keras_fds.Hyperparameter("momentum", 1, 0.5)]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.01), learned), "mse")
    for _ in range(2):
        keras_fds.fit(
            model, X, Y, validation_split=0.2, outer_steps=2, seed=4, callbacks=[spy], verbose=0
        )
    first, second, again, _ = spy.seen
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)
    for weights in (first, second):
        assert 0.05 < weights[np.abs(weights) > 0].std() < 1.5


class Early(L.Layer):
    """Its weight is made in `__init__`, where no initialiser can be seen later."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


def test_what_cannot_be_drawn_is_named_with_both_reasons():
    model = keras.Sequential([keras.Input((6, 4)), Early(), L.Flatten(), L.Dense(1)])
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), []), "mse")
    message = r"'early.*' \(Early\) makes its weight 'scale' outside of `build`.*initial_weights="
    with pytest.raises(ValueError, match=message):
        keras_fds.fit(model, X, Y, validation_split=0.2, verbose=0)
    history = keras_fds.fit(
        model, X, Y, validation_split=0.2, initial_weights="same", outer_steps=1, verbose=0
    )
    assert np.isfinite(history.history["val_loss"]).all()


def test_trained_weights_that_fresh_would_redraw_are_named():
    model = MODELS["dense"]()
    model.layers[1].set_weights([np.full((24, 3), 9.0), np.ones(3)])
    name = model.layers[1].name
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), []), "mse")
    with pytest.warns(UserWarning, match=rf"weights of '{name}' are not as .*'same'"):
        keras_fds.fit(model, X, Y, validation_split=0.2, outer_steps=1, verbose=0)


@pytest.mark.filterwarnings("error:The weights of")
@pytest.mark.parametrize("name", [*MODELS])
def test_freshly_made_weights_are_not_taken_for_trained(name):
    model = MODELS[name]()
    variables = model.variables
    values = redrawn_values(model, variables)
    drawn = [values[id(variable)] for variable in variables]
    assert pretrained_layers(model, variables, drawn) == []


@pytest.mark.filterwarnings("error:The weights of")
def test_one_number_is_never_taken_for_trained():
    model = keras.Sequential([keras.Input((1,)), L.Dense(1)])
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), []), "mse")
    keras_fds.fit(model, X[:, 0, :1], Y, validation_split=0.5, outer_steps=1, verbose=0)
