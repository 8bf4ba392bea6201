"""`fit` and `hypergradients` as a Keras user meets them."""

import csv
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from tests.small_problem import NUM_EXAMPLES, arrays, make_model


def quick_fit(model, x=None, y=None, **arguments):
    if x is None:
        x, y = arrays()
    arguments = {"batch_size": 10, "outer_steps": 3, "validation_split": 0.2, **arguments}
    if "validation_data" not in arguments:
        arguments.setdefault("resample_validation", "once")
    return keras_fds.fit(model, x, y, verbose=arguments.pop("verbose", 0), **arguments)


class Spy(keras.callbacks.Callback):
    """Records what a callback sees at the end of each outer step."""

    def __init__(self):
        self.epochs = []
        self.batches = []
        self.schedules = []
        self.weights = []
        self.losses = []

    def on_epoch_begin(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)
        self.losses.append(logs["val_loss"])
        self.schedules.append(self.model.optimizer.schedules["learning_rate"].values)


def test_learns_from_zero_and_keeps_the_best_outer_step():
    model, spy = make_model(), Spy()
    history = quick_fit(model, outer_steps=6, epochs=4, callbacks=[spy])
    assert spy.epochs == list(range(6))
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    np.testing.assert_array_equal(spy.schedules[0], [0.0, 0.0])
    assert min(history.history["val_loss"]) < 0.8 * history.history["val_loss"][0]
    best = int(np.argmin(history.history["val_loss"]))
    np.testing.assert_array_equal(
        model.optimizer.schedules["learning_rate"].values, spy.schedules[best]
    )
    x, y = arrays()
    assert model.evaluate(x, y, verbose=0)[1] > 0.7


def test_every_outer_step_starts_from_fresh_weights_or_from_the_same():
    spies = {}
    for initial_weights in ("fresh", "same"):
        spies[initial_weights] = Spy()
        model = make_model()
        before = model.get_weights()[0]
        quick_fit(model, callbacks=[spies[initial_weights]], initial_weights=initial_weights)
    fresh, same = ([w[0] for w in spies[kind].weights] for kind in ("fresh", "same"))
    assert not np.array_equal(fresh[0], fresh[1])
    np.testing.assert_array_equal(same[0], before)
    np.testing.assert_array_equal(same[1], before)


def test_initial_weights_from_a_function():
    def ones():
        model = make_model(compiled=False)
        model.set_weights([np.ones_like(w) for w in model.get_weights()])
        return model

    spy = Spy()
    quick_fit(make_model(), callbacks=[spy], initial_weights=ones)
    assert all((w == 1).all() for w in spy.weights[1])


@pytest.mark.sweep()
def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    results = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        model = make_model()
        history = quick_fit(model)
        results.append((history.history["val_loss"], model.get_weights()[0]))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


def test_epochs_may_differ_between_outer_steps():
    model, spy = make_model(), Spy()
    steps = []
    counter = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: steps.append(model.optimizer.horizon)
    )
    quick_fit(model, epochs=[1, 3, 2], callbacks=[spy, counter])
    assert steps == [5, 15, 10]


@pytest.mark.parametrize("form", ["arrays", "dataset", "dict", "endless"])
def test_forms_of_data(form):
    x, y = arrays()
    validation = (x[:20], y[:20])
    arguments = {"validation_split": 0.0, "outer_steps": 2, "validation_data": validation}
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    if form == "dict":
        inputs = {name: keras.Input((2,), name=name) for name in ("left", "right")}
        outputs = keras.layers.Dense(3)(keras.layers.Concatenate()(list(inputs.values())))
        stock = make_model()
        model = keras.Model(inputs, outputs)
        model.compile(stock.optimizer, loss=stock.loss)
        x = {"left": x[:, :2], "right": x[:, 2:]}
        arguments["validation_data"] = ({k: v[:20] for k, v in x.items()}, y[:20])
        quick_fit(model, x, y, **arguments)
        assert np.isfinite(model.optimizer.hypergradients["learning_rate"]).all()
        return
    model = make_model()
    if form == "arrays":
        quick_fit(model, x, y, sample_weight=np.ones(len(x)), **arguments)
    elif form == "dataset":
        quick_fit(model, dataset, None, **{**arguments, "validation_data": dataset})
        assert model.optimizer.horizon == 6
    else:
        quick_fit(model, dataset.repeat(), None, steps_per_epoch=4, epochs=2, **arguments)
        assert model.optimizer.horizon == 8
    assert np.isfinite(model.optimizer.hypergradients["learning_rate"]).all()


@pytest.mark.sweep()
def test_a_dataset_gives_the_hypergradients_that_arrays_give():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    found = []
    for train, validation in (((x, y), (x, y)), ((dataset, None), dataset)):
        keras.utils.set_random_seed(5)
        model = make_model(initial=0.1)
        quick_fit(
            model,
            *train,
            validation_split=0.0,
            validation_data=validation,
            validation_batch_size=10,
            outer_steps=1,
            shuffle=False,
            initial_weights="same",
        )
        found.append(model.optimizer.hypergradients["learning_rate"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    np.testing.assert_allclose(
        keras_fds.hypergradients(rebuilt(), dataset, dataset)["learning_rate"], found[0], rtol=1e-5
    )


def rebuilt():
    keras.utils.set_random_seed(5)
    return make_model(initial=0.1)


def test_class_weight_equals_sample_weight():
    x, y = arrays()
    losses = []
    for weights in (
        {"class_weight": {0: 2.0, 1: 0.5}},
        {"sample_weight": np.array([2.0, 0.5, 1.0])[y]},
    ):
        keras.utils.set_random_seed(0)
        model = make_model(initial=0.1)
        history = quick_fit(model, x, y, outer_steps=1, **weights).history
        losses.append(history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_stock_callbacks_work(tmp_path, capsys):
    model = make_model(outer=keras_fds.outer.SignDescent())
    quick_fit(
        model,
        verbose=2,
        outer_steps=3,
        callbacks=[
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
            keras.callbacks.TensorBoard(tmp_path / "tensorboard"),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    printed = capsys.readouterr().out
    assert "Outer step 3/3" in printed
    assert "val_loss" in printed
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    loaded = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(
        loaded.optimizer.schedules["learning_rate"].values,
        model.optimizer.schedules["learning_rate"].values,
    )
    assert any((tmp_path / "tensorboard").rglob("events*"))


def test_early_stopping_ends_the_search():
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    history = quick_fit(make_model(), outer_steps=5, callbacks=[stop])
    assert len(history.history["loss"]) == 2


class Break(keras.callbacks.Callback):
    """Makes the weights of outer steps NaN."""

    def __init__(self, *outer_steps):
        self.outer_steps = outer_steps

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in self.outer_steps:
            self.model.set_weights([w * np.nan for w in self.model.get_weights()])


def test_a_nan_loss_ends_its_outer_step_and_keeps_the_best():
    model = make_model(initial=0.1)
    with pytest.warns(RuntimeWarning, match="Outer step 2.*inner step 1 of 10"):
        history = quick_fit(model, epochs=2, callbacks=[Break(1)])
    assert np.isnan(history.history["val_loss"][1])
    assert {len(values) for values in history.history.values()} == {3}
    assert np.isfinite(history.history["val_loss"][2])
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_search_that_never_had_a_finite_loss_ends_with_the_start_weights():
    model = make_model(initial=0.1)
    before = model.get_weights()
    with pytest.warns(RuntimeWarning, match="in every outer step.*smaller values"):
        history = quick_fit(model, outer_steps=20, callbacks=[Break(*range(20))])
    assert len(history.history["loss"]) == 9
    np.testing.assert_array_equal(model.optimizer.schedules["learning_rate"].values, 0.1)
    for weight, value in zip(model.get_weights(), before):
        np.testing.assert_array_equal(weight, value)


def test_a_search_that_breaks_down_at_first_goes_on_elsewhere():
    model = make_model(initial=3.0)
    with pytest.warns(RuntimeWarning, match="This outer step is given up."):
        losses = quick_fit(model, outer_steps=3, callbacks=[Break(0)]).history["val_loss"]
    assert np.isnan(losses[0]) and np.isfinite(losses[1:]).all()
    assert (model.optimizer.schedules["learning_rate"].values != 3.0).all()


def test_losses_of_several_outputs_are_those_of_evaluate():
    x, y = arrays()
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(1)(inputs)}
    )
    losses = {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"}
    model.compile(make_model().optimizer, loss=losses)
    targets = {"a": y, "b": x[:, :1]}
    data = {"validation_data": (x, targets), "validation_split": 0.0, "outer_steps": 1}
    history = quick_fit(model, x, targets, **data).history
    for name, value in model.evaluate(
        x, targets, batch_size=10, verbose=0, return_dict=True
    ).items():
        assert history[f"val_{name}"][0] == pytest.approx(value, rel=1e-5)


def test_a_search_that_goes_on_keeps_the_best_schedules_of_before(tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    def worse():
        model = make_model(compiled=False)
        model.set_weights([100 * weights for weights in model.get_weights()])
        return model

    def model():
        return make_model(initial=0.3, outer=keras_fds.outer.SignDescent())

    first, again = model(), {"epochs": 4, "divergence_factor": None}
    again["initial_weights"] = lambda: make_model(compiled=False)
    losses = quick_fit(first, outer_steps=2, callbacks=[backup()], **again).history["val_loss"]
    best = first.optimizer.schedules["learning_rate"].values
    second, spy = model(), Spy()
    again["initial_weights"] = worse
    quick_fit(second, outer_steps=3, callbacks=[backup(), spy], **again)
    assert spy.epochs == [2]
    assert spy.losses[0] > min(losses)
    np.testing.assert_array_equal(second.optimizer.schedules["learning_rate"].values, best)


def test_a_finished_search_goes_on_at_a_later_outer_step():
    model = make_model(initial=0.3, outer=keras_fds.outer.SignDescent())
    first = quick_fit(model, epochs=4, outer_steps=2).history["val_loss"]
    noise = np.random.default_rng(1).integers(0, 3, NUM_EXAMPLES)
    best, weights = model.optimizer.schedules["learning_rate"].values, model.get_weights()
    history = quick_fit(model, arrays()[0], noise, epochs=4, initial_epoch=2, outer_steps=3)
    assert history.epoch == [0, 1, 2] and history.history["val_loss"][:2] == first
    np.testing.assert_array_equal(model.optimizer.schedules["learning_rate"].values, best)
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])


def test_a_second_search_begins_anew_at_the_schedules_of_the_first():
    model, x, y = make_model(), *arrays()
    quick_fit(model, epochs=4, seed=1)
    learned = model.optimizer.schedules["learning_rate"].values
    spy, chance = Spy(), np.random.default_rng(0).permutation(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick_fit(model, x, chance, epochs=4, seed=1, callbacks=[spy])
    np.testing.assert_array_equal(spy.schedules[0], learned)
    assert model.optimizer.search.best.loss in spy.losses  # Worse than any of the first.
    assert model.optimizer.search.records[0].outcome == "best"


def test_an_interrupt_keeps_what_is_finished():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.search.best and batch > 0:
                raise KeyboardInterrupt

    model, spy = make_model(), Spy()
    with pytest.raises(KeyboardInterrupt):
        quick_fit(model, epochs=3, callbacks=[spy, Interrupt()])
    assert spy.epochs == [0]
    np.testing.assert_array_equal(
        model.optimizer.schedules["learning_rate"].values, spy.schedules[0]
    )


def test_hypergradients_changes_nothing():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    model = make_model(initial=0.1)
    model.fit(x, y, verbose=0)
    before = [v.numpy() for v in model.variables + model.optimizer.variables]
    result = keras_fds.hypergradients(model, dataset, dataset)
    assert {name: value.shape for name, value in result.items()} == {
        "learning_rate": (2,),
        "momentum": (1,),
    }
    for variable, value in zip(model.variables + model.optimizer.variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_validation_loss_leaves_penalties_out_and_training_loss_has_them():
    x, y = arrays()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(10.0))]
    )
    stock = make_model()
    model.compile(stock.optimizer, loss=stock.loss)
    history = quick_fit(
        model, x, y, validation_data=(x, y), validation_split=0.0, outer_steps=1
    ).history
    assert history["loss"][0] > history["val_loss"][0] + 1
    outputs = model.predict(x, verbose=0)
    expected = float(stock.loss(y, outputs))
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)


@keras.saving.register_keras_serializable("tests")
class Enlarging(keras.layers.Layer):
    def call(self, inputs):
        return tf.raw_ops.ResizeBicubic(images=inputs, size=[8, 8])


@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
def test_an_operation_without_second_gradient_names_its_layer(differentiation):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(1, 1),
            Enlarging(name="culprit"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.compile(make_model().optimizer, loss="mse")
    with pytest.raises(ValueError, match="'culprit'.*not twice differentiable.*ResizeBicubicGrad"):
        x, y = np.zeros((20, 4, 4, 1)), np.zeros((20, 1))
        quick_fit(model, x, y, differentiation=differentiation)


@keras.saving.register_keras_serializable("tests")
class InPython(keras.layers.Layer):
    def call(self, inputs):
        outputs = tf.py_function(lambda x: x + 1.0, [inputs], inputs.dtype)
        return tf.ensure_shape(outputs, inputs.shape)


@keras.saving.register_keras_serializable("tests")
class Noisy(keras.layers.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


def test_python_code_in_a_model_is_refused_and_unrepeatable_noise_is_warned_of():
    x, y = arrays()
    for layer in (InPython(), Noisy()):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
        stock = make_model()
        model.compile(stock.optimizer, loss=stock.loss)
        if isinstance(layer, InPython):
            with pytest.raises(ValueError, match="runs Python code.*data pipeline"):
                quick_fit(model, x, y)
        else:
            with pytest.warns(UserWarning, match="cannot be drawn again.*keras.random"):
                quick_fit(model, x, y)


def test_generators_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="from_generator"):
        keras_fds.fit(
            make_model(), iter([arrays()]), steps_per_epoch=1, validation_data=arrays(), verbose=0
        )


def test_history_can_be_written_as_json():
    json.dumps(quick_fit(make_model()).history)


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2.0 * keras.ops.mean(
            keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        )


def test_own_compute_loss_is_what_is_differentiated():
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    reference = make_model(initial=0.2, loss=None, metrics=None)
    own = OwnLoss(reference.layers)
    own.compile(reference.optimizer)
    reference.compile(
        make_model(initial=0.2).optimizer,
        loss=lambda y, y_pred: (
            2.0 * keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        ),
    )
    expected = keras_fds.hypergradients(reference, dataset, dataset)
    actual = keras_fds.hypergradients(own, dataset, dataset)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-4)


def test_steps_per_execution_sets_the_steps_a_call_and_changes_no_result():
    losses = []
    spies = []
    for steps in (1, 4):
        keras.utils.set_random_seed(0)
        model, spy = make_model(steps_per_execution=steps), Spy()
        losses.append(quick_fit(model, epochs=2, callbacks=[spy]).history["val_loss"])
        spies.append(spy)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert spies[1].batches == [3, 7, 8, 12] * 3  # As Keras counts a call that is cut short.


# --------------------------------------------------------------------------------------- knots
def test_lines_mean_the_same_in_fit_in_model_fit_and_after_loading(tmp_path):
    x, y = arrays()
    values = [0.5, 0.1, 0.3]
    of_search = make_model(3, initial=values, interpolation="linear")
    of_search.save(tmp_path / "model.keras")
    keras_fds.fit(
        *(of_search, x, y),
        validation_data=(x, y),
        batch_size=10,
        epochs=2,
        outer_steps=1,
        initial_weights="same",
        shuffle=False,
        verbose=0,
    )
    stock = keras.models.load_model(tmp_path / "model.keras")
    assert stock.optimizer.schedules["learning_rate"].interpolation == "linear"
    stock.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
    for mine, expected in zip(of_search.get_weights(), stock.get_weights()):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_hypergradients_by_knots_are_those_of_differences(scale):
    x, y = arrays()
    model = make_model()
    hyperparameters = [
        keras_fds.Hyperparameter(
            "learning_rate", 3, [0.5, 0.1, 0.3], scale=scale, interpolation="linear"
        ),
        keras_fds.Hyperparameter("momentum", 2, [0.5, 0.9], interpolation="linear"),
    ]
    optimizer = keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), hyperparameters)
    model.compile(optimizer, model.loss)
    train = tf.data.Dataset.from_tensor_slices((x[:50], y[:50])).batch(10)
    validation = tf.data.Dataset.from_tensor_slices((x[50:], y[50:])).batch(10)
    report = keras_fds.check_hypergradients(model, train, validation, verbose=False)
    assert report.passed, str(report)
    forward, reverse = (
        keras_fds.hypergradients(model, train, validation, differentiation=mode)
        for mode in ("forward", "reverse")
    )
    for name in forward:
        np.testing.assert_allclose(reverse[name], forward[name], rtol=1e-4, atol=1e-7)
