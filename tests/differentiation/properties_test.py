"""What holds for hypergradients of any network, optimizer, horizon and number of buckets.

Each example compiles an unroll, which takes seconds: `KERAS_FDS_EXAMPLES=50 pytest
tests/differentiation/properties_test.py` looks at more of them.
"""

import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.differentiation.forward import Forward
from tests.differentiation import reference

pytestmark = pytest.mark.usefixtures("float64")
BATCH = 4
NUM_VALIDATION = 12
OPTIMIZERS = {
    "paper_sgd": (lambda: keras_fds.optimizers.SGD(clipvalue=0.2), {"momentum": 0.5}),
    "nesterov": (lambda: keras.optimizers.SGD(nesterov=True), {"momentum": 0.5}),
    "adam": (lambda: keras.optimizers.Adam(epsilon=1e-2), {"beta_1": 0.8, "beta_2": 0.9}),
    "rmsprop": (lambda: keras.optimizers.RMSprop(epsilon=1e-2, centered=True), {"rho": 0.8}),
    "adagrad": (lambda: keras.optimizers.Adagrad(), {"epsilon": 0.01}),
    "lamb": (lambda: keras.optimizers.Lamb(epsilon=1e-2), {"beta_1": 0.8}),
}
NORMALIZATIONS = {
    "none": keras.layers.Identity,
    "batch": keras.layers.BatchNormalization,
    "layer": keras.layers.LayerNormalization,
}

problems = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 5), min_size=1, max_size=2),
        "activation": st.sampled_from(["tanh", "gelu", "softplus", "sigmoid"]),
        "normalization": st.sampled_from(sorted(NORMALIZATIONS)),
        "optimizer": st.sampled_from(sorted(OPTIMIZERS)),
        "horizon": st.integers(3, 7),
        "num_buckets": st.integers(1, 3),
        "seed": st.integers(0, 1000),
    }
)
few = settings(
    max_examples=int(os.environ.get("KERAS_FDS_EXAMPLES", "2")),
    deadline=None,
    derandomize=True,
    # An example takes seconds, and a smaller one tells little more.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def hyperparameters_of(problem, num_buckets):
    _, others = OPTIMIZERS[problem["optimizer"]]
    rate = 0.05 if "sgd" in problem["optimizer"] else 0.02
    values = {"learning_rate": rate, "weight_decay": 0.1, **others}
    return [
        keras_fds.Hyperparameter(name, num_buckets, value, scale="log")
        for name, value in values.items()
    ]


def compiled(problem, hyperparameters, **arguments):
    """The problem's model, always with the same weights and data."""
    keras.utils.set_random_seed(problem["seed"])
    layers = [keras.Input((3,))]
    for width in problem["widths"]:
        layers.append(keras.layers.Dense(width))
        layers.append(NORMALIZATIONS[problem["normalization"]]())
        layers.append(keras.layers.Activation(problem["activation"]))
    layers += [keras.layers.Dropout(0.2), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    make, _ = OPTIMIZERS[problem["optimizer"]]
    model.compile(keras_fds.HyperOptimizer(make(), hyperparameters, **arguments), loss="mse")
    rng = np.random.default_rng(problem["seed"])
    size = problem["horizon"] * BATCH
    data = rng.normal(size=(size + NUM_VALIDATION, 3)), rng.normal(size=(size + NUM_VALIDATION, 2))
    train = ArrayBatches(as_arrays(*data, None), BATCH, np.arange(size))
    return model, train, train.subset(np.arange(size, size + NUM_VALIDATION), NUM_VALIDATION)


def forward(problem, hyperparameters, chunk_size=None):
    model, train, validation = compiled(problem, hyperparameters)
    unroll = Forward(chunk_size).bind(model, train.spec)
    unroll.reset(train.num_batches)
    assert unroll.run(train.start(), 0, 0, train.num_batches)[1]
    _, values = reference.measured(unroll, validation.start(), validation.num_batches)
    return model.optimizer.buckets.split(values)


def assert_close(actual, expected, tolerance):
    assert list(actual) == list(expected)
    for name in actual:
        bound = tolerance * np.abs(expected[name]).max() + 1e-14
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=bound, err_msg=name)


@few
@given(problems)
def test_forward_mode_equals_finite_differences(problem):
    hyperparameters = hyperparameters_of(problem, problem["num_buckets"])
    actual, differences = reference.forward_and_differences(
        *compiled(problem, hyperparameters), step=1e-4
    )
    assert_close(actual, differences, 1e-6)


@pytest.mark.sweep()
@few
@given(problems)
def test_a_shared_bucket_is_the_mean_of_its_steps(problem):
    horizon = problem["horizon"]
    shared = forward(problem, hyperparameters_of(problem, problem["num_buckets"]))
    apart = forward(problem, hyperparameters_of(problem, horizon))
    for hyperparameter in hyperparameters_of(problem, problem["num_buckets"]):
        name, lengths = hyperparameter.name, hyperparameter.bucket_lengths(horizon)
        pieces = np.split(apart[name], np.cumsum(lengths)[:-1])
        apart[name] = np.array([piece.mean() for piece in pieces])
    assert_close(shared, apart, 1e-9)


@pytest.mark.sweep()
@few
@given(problems, st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_and_number_of_tangents_a_pass_change_nothing(problem, size, random):
    hyperparameters = hyperparameters_of(problem, problem["num_buckets"])
    expected = forward(problem, hyperparameters)
    shuffled = random.sample(hyperparameters, len(hyperparameters))
    actual = forward(problem, shuffled, chunk_size=size)
    assert_close({name: actual[name] for name in expected}, expected, 1e-9)
