"""HyperOptimizer as a Keras optimizer."""

import warnings

import keras
import numpy as np
import pytest

import keras_fds
from tests import small_problem


def hyper_optimizer(**arguments):
    return keras_fds.HyperOptimizer(
        keras.optimizers.SGD(0.5),
        [
            keras_fds.Hyperparameter("learning_rate", 2, [0.1, 0.01]),
            keras_fds.Hyperparameter("momentum", 1, 0.5),
        ],
        **arguments,
    )


def model_and_data(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    rng = np.random.default_rng(0)
    return model, rng.normal(size=(32, 3)), rng.normal(size=(32, 1))


class RecordRates(keras.callbacks.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(round(float(self.model.optimizer.learning_rate), 6))


def test_stock_fit_stretches_the_schedules_to_its_own_horizon():
    model, x, y = model_and_data(hyper_optimizer())
    for epochs in (1, 3):
        recorder = RecordRates()
        model.fit(x, y, batch_size=8, epochs=epochs, callbacks=[recorder], verbose=0)
        assert recorder.rates == [0.1] * (2 * epochs) + [0.01] * (2 * epochs)
        assert model.optimizer.horizon == 4 * epochs


def test_stock_fit_equals_the_wrapped_optimizer_with_a_keras_schedule():
    keras.utils.set_random_seed(1)
    model, x, y = model_and_data(hyper_optimizer())
    keras.utils.set_random_seed(1)
    schedule = keras_fds.BucketedSchedule([0.1, 0.01], horizon=8)
    reference, _, _ = model_and_data(keras.optimizers.SGD(schedule, momentum=0.5))
    for each in (model, reference):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], reference.get_weights()[0], rtol=1e-6)


def test_fit_resumed_at_a_later_epoch_goes_on_along_the_schedule():
    model, x, y = model_and_data(hyper_optimizer())
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    recorder = RecordRates()
    model.fit(x, y, batch_size=8, initial_epoch=2, epochs=4, callbacks=[recorder], verbose=0)
    assert recorder.rates == [0.01] * 8


def test_unknown_number_of_batches_keeps_the_horizon():
    import tensorflow as tf

    model, x, y = model_and_data(hyper_optimizer())
    model.optimizer.begin_schedules(4)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).filter(lambda x, y: True)
    recorder = RecordRates()
    model.fit(dataset, callbacks=[recorder], verbose=0)
    assert recorder.rates[:4] == [0.1, 0.1, 0.01, 0.01]
    assert model.optimizer.horizon == 4


def test_a_saved_model_trains_on_as_if_never_saved(tmp_path):
    model, x, y = model_and_data(hyper_optimizer())
    model.optimizer.coordinates = np.array([0.3, 0.2, 0.1])
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras_fds.HyperOptimizer)
    np.testing.assert_array_equal(loaded.optimizer.schedules["learning_rate"].values, [0.3, 0.2])
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


def test_config_round_trip():
    optimizer = hyper_optimizer(
        outer=keras_fds.outer.BayesianOptimization(caution=2.0),
    )
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config
    assert again.outer.caution == 2.0


def test_a_config_with_the_rule_of_older_versions_gets_the_default():
    config = keras.saving.serialize_keras_object(hyper_optimizer())
    config["config"]["outer"] = {
        "module": "keras_fds.outer.trust_region",
        "class_name": "TrustRegionDescent",
        "config": {"tolerance": 0.02},
        "registered_name": "keras_fds>TrustRegionDescent",
    }
    config["config"]["hyperparameters"][0]["config"]["smoothing_window"] = 1 / 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again.outer, keras_fds.outer.BayesianOptimization)


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ({"tangent_clipvalue": 2.0}, "Forward\\(tangent_clipvalue=2.0"),
        ({"tangents_per_pass": 3}, "Forward\\(tangent_chunk_size=3"),
    ],
)
def test_what_belongs_to_a_mode_is_deprecated(arguments, mode):
    with pytest.warns(DeprecationWarning, match=mode):
        optimizer = hyper_optimizer(**arguments)
    again = type(optimizer).from_config(optimizer.get_config())  # Without another warning.
    assert {name: getattr(again, name) for name in arguments} == arguments


def test_schedules_can_be_set():
    optimizer = hyper_optimizer()
    optimizer.schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.4, 0.2], 10),
        "momentum": keras_fds.BucketedSchedule([0.9], 10),
    }
    np.testing.assert_array_equal(optimizer.schedules["learning_rate"].values, [0.4, 0.2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": None}, "2 value.*'learning_rate'.*None"),
        ({"learning_rate": [0.4, 0.2]}, "must hold a BucketedSchedule"),
        ({"learning_rate": keras_fds.BucketedSchedule([0.4], 10)}, "2 value"),
        (
            {"learning_rate": keras_fds.BucketedSchedule([0.4, 0.2], 10, "linear")},
            "interpolation='constant'",
        ),
        ({"momentum": keras_fds.BucketedSchedule([1.2], 10)}, "between 0.0 and 0.999"),
        ({"learning_rate": keras_fds.BucketedSchedule([0.1, -0.1], 10)}, "between 0.0 and inf"),
    ],
)
def test_schedules_that_could_not_be_learned_are_refused(changes, message):
    optimizer = hyper_optimizer()
    before = optimizer.coordinates
    schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.4, 0.2], 10),
        "momentum": keras_fds.BucketedSchedule([0.9], 10),
    }
    with pytest.raises(ValueError, match=message):
        optimizer.schedules = {**schedules, **changes}
    np.testing.assert_array_equal(optimizer.coordinates, before)


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_schedules_off_the_scale_are_refused(value):
    rate = keras_fds.Hyperparameter("learning_rate", 2, 0.1, scale="log", interpolation="linear")
    optimizer = keras_fds.HyperOptimizer("sgd", [rate])
    schedule = keras_fds.BucketedSchedule([0.1, value], 10, "linear")
    with pytest.raises(ValueError, match="on the scale 'log'"):
        optimizer.schedules = {"learning_rate": schedule}


def test_learned_learning_rate_is_not_settable_and_others_are():
    with pytest.raises(TypeError, match="learned schedule"):
        hyper_optimizer().learning_rate = 0.1
    optimizer = keras_fds.HyperOptimizer(
        keras.optimizers.SGD(0.5), [keras_fds.Hyperparameter("momentum", 1, 0.5)]
    )
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25


def scaled_optimizer(**arguments):
    return keras_fds.HyperOptimizer(
        keras.optimizers.SGD(),
        [
            keras_fds.Hyperparameter("learning_rate", 2, [0.1, 0.2], 0.5, scale="log"),
            keras_fds.Hyperparameter("momentum", 1, 0.9, 10.0, scale="logit"),
        ],
        **arguments,
    )


def moved(optimizer, hypergradients, horizon=10):
    """The values after one step of the optimizer's outer rule."""
    buckets = optimizer.buckets
    start = optimizer.coordinates
    measured = keras_fds.outer.Observation(start, horizon, 1.0, None, np.array(hypergradients))
    problem = keras_fds.outer.Problem(buckets, start, horizon, [horizon] * 2)
    optimizer.coordinates = optimizer.outer.propose([measured], problem).coordinates
    return optimizer.values


def test_outer_steps_are_taken_in_coordinates_within_the_range():
    values = moved(scaled_optimizer(outer=keras_fds.outer.SignDescent()), [1.0, -1.0, -1.0])
    expected = [0.1 * np.exp(-0.5), 0.2 * np.exp(0.5)]
    np.testing.assert_allclose(values["learning_rate"], expected, rtol=1e-12)
    np.testing.assert_allclose(values["momentum"], [0.999], rtol=1e-12)


def test_schedules_on_a_scale_can_be_set_and_are_saved(tmp_path):
    model = small_problem.make_model(compiled=False)
    model.compile(scaled_optimizer(), loss="mse")
    model.optimizer.schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.4, 0.3], 10),
        "momentum": keras_fds.BucketedSchedule([0.7], 10),
    }
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        schedules = each.optimizer.schedules
        np.testing.assert_allclose(schedules["learning_rate"].values, [0.4, 0.3], rtol=1e-12)
        np.testing.assert_allclose(float(each.optimizer.learning_rate), 0.4, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: keras_fds.HyperOptimizer(
                keras.optimizers.SGD(), [keras_fds.Hyperparameter("beta_1")]
            ),
            "SGD has no hyperparameter 'beta_1'.*learning_rate.*momentum",
        ),
        (
            lambda: keras_fds.HyperOptimizer(
                keras.optimizers.SGD(), [keras_fds.Hyperparameter("momentum")] * 2
            ),
            "named twice",
        ),
        (
            lambda: keras_fds.HyperOptimizer(
                keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
                [keras_fds.Hyperparameter("learning_rate")],
            ),
            "schedule already",
        ),
        (
            lambda: keras_fds.HyperOptimizer(hyper_optimizer(), []),
            "updates weights itself",
        ),
        (lambda: keras_fds.HyperOptimizer(keras.optimizers.SGD(), ["momentum"]), "list of"),
        (lambda: keras_fds.differentiation.Forward(tangent_clipvalue=-1.0), "tangent_clipvalue"),
        (lambda: keras_fds.differentiation.Forward(0), "tangent_chunk_size"),
        (lambda: keras_fds.differentiation.Forward(2.5), "tangent_chunk_size"),
        (lambda: keras_fds.differentiation.Forward(tangent_clipvalue="a"), "tangent_clipvalue"),
        (lambda: keras_fds.differentiation.Reverse(0), "`memory` must be a number above 0"),
        (lambda: hyper_optimizer(outer="sgd"), "outer='sgd'"),
        (
            lambda: keras_fds.HyperOptimizer("adam", keras_fds.Hyperparameter("beta_1")),
            "must be a list",
        ),
    ],
)
def test_bad_arguments_get_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def saved_and_loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def test_a_model_with_learned_factors_on_rates_can_be_loaded(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="head")])
    factor = keras_fds.Hyperparameter("head.learning_rate_multiplier", initial=2.0)
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.Adam(0.01), [factor]), loss="mse")
    x = np.random.default_rng(0).normal(size=(20, 4))
    model.fit(x, x[:, :1], verbose=0)
    loaded = saved_and_loaded(model, tmp_path)
    for each in (model, loaded):
        each.fit(x, x[:, :1], shuffle=False, verbose=0)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_schedules_set_before_any_training_are_saved(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    names = ("learning_rate", "beta_1")
    learned = [keras_fds.Hyperparameter(name) for name in names]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.Adam(), learned), loss="mse")
    for name, value in zip(names, (0.3, 0.7)):
        schedule = keras_fds.BucketedSchedule([value], horizon=4)
        model.optimizer.schedules = {**model.optimizer.schedules, name: schedule}
    loaded = saved_and_loaded(model, tmp_path).optimizer
    assert [loaded.schedules[name].values for name in names] == [[0.3], [0.7]]
