"""What a Keras user writes means the same here, or is refused in one true sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.search import arguments
from keras_fds.search.arguments import tell_of_missing_onednn
from tests.small_problem import arrays, make_model

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = np.tanh(X[:, :1])


def sgd(*learned, **arguments):
    wrapped = keras.optimizers.SGD(0.1, momentum=0.5, **arguments)
    return keras_fds.HyperOptimizer(wrapped, list(learned))


MOMENTUM = {"name": "momentum", "initial": 0.5}


def network(*learned, loss="mse"):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, "tanh", name="a"), L.Dense(1)])
    model.compile(sgd(*learned), loss)
    return model


def fit(model, x=X, y=Y, **arguments):
    defaults = {"batch_size": 10, "outer_steps": 1, "validation_split": 0.2, "verbose": 0}
    return keras_fds.fit(model, x, y, **{**defaults, **arguments})


# ----------------------------------------------------------------- schedules in stock model.fit
def rates(model, **arguments):
    seen = []

    def see(batch, logs):
        seen.append(round(float(model.optimizer.learning_rate), 2))

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=see)
    model.fit(X, Y, batch_size=15, callbacks=[callback], verbose=0, **arguments)
    return seen


def test_schedules_start_over_at_every_fit_in_a_loaded_model_too(tmp_path):
    model = network(keras_fds.Hyperparameter("learning_rate", 4, [0.1, 0.2, 0.3, 0.4]))
    whole = [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
    assert rates(model, epochs=2) == whole
    assert rates(model, epochs=2) == whole
    assert rates(model, epochs=1) == [0.1, 0.2, 0.3, 0.4]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (loaded, model):
        assert rates(each, epochs=1) == [0.1, 0.2, 0.3, 0.4]
        assert rates(each, epochs=2) == whole
        assert rates(each, epochs=2, initial_epoch=1) == whole[4:]
        assert rates(each, epochs=2) == whole


def test_models_are_saved_in_every_form(tmp_path):
    learned = keras_fds.Hyperparameter("learning_rate", 2, [0.1, 0.2])
    model = network(learned, loss=keras.losses.MeanSquaredError())
    model.fit(X, Y, verbose=0)
    for form in ("model.keras", "model.h5"):
        model.save(tmp_path / form)
        loaded = keras.models.load_model(tmp_path / form)
        schedules = loaded.optimizer.schedules
        np.testing.assert_array_equal(schedules["learning_rate"].values, [0.1, 0.2])
        # Of an HDF5 file Keras restores no slots.
        for mine, other in zip(loaded.optimizer.variables, model.optimizer.variables):
            np.testing.assert_array_equal(mine.numpy(), other.numpy(), err_msg=mine.path)
    with pytest.raises(ValueError, match="HDF5.*compile"):  # As stock optimizers do.
        loaded.fit(X, Y, verbose=0)


# -------------------------------------------------------------------------------------- callbacks
class Counting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.train = []
        self.test = []

    def on_train_batch_end(self, batch, logs=None):
        self.train.append(batch)

    def on_test_batch_end(self, batch, logs=None):
        self.test.append(batch)


def test_hooks_of_batches_are_called_for_every_batch():
    callback = Counting()
    fit(network(keras_fds.Hyperparameter(**MOMENTUM)), epochs=20, callbacks=[callback])
    assert callback.train == list(range(100))
    assert callback.test == [0, 1]


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 * 0.1**epoch),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.LambdaCallback(),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("learned", ["momentum", "learning_rate"])
def test_what_sets_the_learning_rate_is_refused(callback, learned):
    model = network(keras_fds.Hyperparameter(learned, 1, 0.1))
    error = ValueError
    if isinstance(callback, keras.callbacks.LambdaCallback):
        error = (ValueError, TypeError)  # What is learned cannot be set at all.

        def warm_up(batch, logs=None):
            model.optimizer.learning_rate = 0.01 * batch

        callback = keras.callbacks.LambdaCallback(on_train_batch_begin=warm_up)
    with pytest.raises(error, match=r"learning.rate"):
        fit(model, callbacks=[callback], outer_steps=2)
    assert model.optimizer.optimizer.learning_rate.numpy() == np.float32(0.1)


def test_validation_freq_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="validation_freq=2"):
        fit(network(), validation_freq=2)


# ---------------------------------------------------------------------------------- shared objects
def regularized(shared, name):
    keras.utils.set_random_seed(5)
    one, other = keras.regularizers.L2(0.05), keras.regularizers.L2(0.05)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(3, "tanh", name="a", kernel_regularizer=one),
            L.Dense(1, name="b", kernel_regularizer=one if shared else other),
        ]
    )
    model.compile(sgd(keras_fds.Hyperparameter(name, 1, 0.05)), "mse")
    return model


def data():
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    return batches.take(4), batches.skip(4)


def test_a_shared_regularizer_is_refused_by_one_name_with_all_its_places():
    with pytest.raises(ValueError, match=r"'a' shares its L2 object with 'b'.*pattern"):
        keras_fds.hypergradients(regularized(True, "a.kernel_regularizer.l2"), *data())


def test_a_pattern_means_all_places_shared_or_not_and_after_saving(tmp_path):
    name = "?.kernel_regularizer.l2"
    model = regularized(True, name)
    expected = keras_fds.hypergradients(model, *data())[name]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (regularized(False, name), loaded):
        np.testing.assert_allclose(keras_fds.hypergradients(each, *data())[name], expected, 1e-6)


def test_a_layer_that_is_used_twice_is_one_place(tmp_path):
    shared = L.Dense(4, "tanh", name="a", kernel_regularizer=keras.regularizers.L2(0.05))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(1)(shared(shared(inputs))))
    model.compile(sgd(keras_fds.Hyperparameter("a.kernel_regularizer.l2", 1, 0.05)), "mse")
    check = keras_fds.check_hypergradients(model, *data(), verbose=False)
    assert check.passed, check
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected, received = (keras_fds.hypergradients(each, *data()) for each in (model, loaded))
    np.testing.assert_allclose(*expected.values(), *received.values(), rtol=1e-6)


@pytest.mark.parametrize("name", ["loss", "model", "loss_weights"])
def test_layers_may_be_called_like_the_roots_of_names(name):
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(1, name=name, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    learned = keras_fds.Hyperparameter(f"{name}.kernel_regularizer.l2", 1, 0.1)
    model.compile(sgd(learned), "mse")
    check = keras_fds.check_hypergradients(model, *data(), verbose=False)
    assert check.passed, check


# -------------------------------------------------------------------------------- custom gradients
class Reversal(L.Layer):
    def call(self, x):
        return tf.custom_gradient(lambda t: (tf.sin(t), lambda dy: -dy * tf.cos(t)))(x)


class Straight(L.Layer):
    """Rounds, and lets gradients pass."""

    def call(self, x):
        @keras.ops.custom_gradient
        def rounded(t):
            return keras.ops.round(4 * t) / 4, lambda *args, upstream=None: args[0]

        return rounded(x)


@pytest.mark.parametrize("layer", [Reversal, Straight])
def test_custom_gradients_are_warned_of_once_and_mean_the_same_in_both_modes(layer):
    inputs = keras.Input((4,))
    x = layer(name="odd")(L.Dense(5, "tanh")(inputs))
    model = keras.Model(inputs, L.Dense(1)(x))
    model.compile(sgd(keras_fds.Hyperparameter("learning_rate", 2, 0.3)), "mse")
    with pytest.warns(UserWarning, match=r"layer 'odd'.*its own gradient") as caught:
        fit(model, outer_steps=2)
    assert len([w for w in caught if "its own gradient" in str(w.message)]) == 1
    forward, reverse = (
        keras_fds.hypergradients(model, *data(), differentiation=mode)["learning_rate"]
        for mode in ("forward", "reverse")
    )
    assert np.abs(forward).max() > 1e-5
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


def test_a_loss_with_a_custom_gradient_is_warned_of():
    def loss(y, prediction):
        return tf.custom_gradient(lambda e: (tf.reduce_mean(e**2), lambda dy: dy * e))(
            y - prediction
        )

    model = network(keras_fds.Hyperparameter("learning_rate", 2, 0.1), loss=loss)
    with pytest.warns(UserWarning, match="loss of 'sequential.*its own gradient"):
        fit(model)


def test_the_gradient_of_a_stock_activation_is_not_taken_for_a_custom_one(recwarn):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, "silu"), L.Dense(1)])
    model.compile(sgd(keras_fds.Hyperparameter("learning_rate", 1, 0.1)), "mse")
    check = keras_fds.check_hypergradients(model, *data(), verbose=False)
    assert check.passed, check
    assert not [w for w in recwarn if "its own gradient" in str(w.message)]


# --------------------------------------------------------------------------- errors that are true
@pytest.mark.sweep()
def test_ctc_is_exact_in_both_modes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 6, 4)).astype("float32")
    labels = rng.integers(1, 4, (12, 2))
    model = keras.Sequential([keras.Input((6, 4)), L.Dense(5)])
    model.compile(sgd(keras_fds.Hyperparameter("learning_rate", 2, 0.1)), keras.losses.CTC())
    batches = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
    both = batches.take(2), batches.skip(2)
    check = keras_fds.check_hypergradients(model, *both, verbose=False)
    assert check.passed, check
    reverse = keras_fds.hypergradients(model, *both, dtype="float64", differentiation="reverse")
    np.testing.assert_allclose(reverse["learning_rate"], check.forward["learning_rate"], rtol=1e-8)


def test_a_loss_without_a_second_derivative_is_named_before_training():
    with pytest.raises(ValueError, match="Circle.*not twice differentiable"):
        fit(network(loss=keras.losses.Circle()))


def test_labels_that_are_not_finite_are_named():
    y = Y.copy()
    y[3] = np.nan
    with pytest.raises(ValueError, match="first batch is not finite.*NaN.*targets"):
        fit(network(), y=y, batch_size=48)


def with_relu():
    model = keras.Sequential([keras.Input((4,)), L.Dense(8, "relu"), L.Dense(1)])
    model.compile(sgd(), "mse")
    return model


@pytest.mark.parametrize("fit_it", [fit, keras_fds.fit_online])
def test_inputs_whose_nan_a_relu_hides_are_named(fit_it):
    """Losses stay finite, the weights do not."""
    x = X.copy()
    x[3] = np.nan
    with pytest.raises(ValueError, match="weights that are not finite.*NaN.*inputs"):
        fit_it(with_relu(), x, Y, batch_size=12, validation_split=0.2, verbose=0)


def test_validation_data_that_are_not_finite_are_named():
    x = X.copy()
    x[-1] = np.nan
    with pytest.raises(ValueError, match="validation data hold NaN or infinities in their inputs"):
        fit(network(), x)


def test_a_train_step_of_an_instance_is_refused():
    model = network()
    model.train_step = lambda data: {}
    with pytest.raises(ValueError, match="has a `train_step` of its own"):
        fit(model)


def test_a_model_with_its_own_step_and_no_loss_is_told_of_its_step():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {}

    model = Own([keras.Input((4,)), L.Dense(1)])
    model.compile(sgd(), None)
    with pytest.raises(ValueError, match="overrides `train_step`"):
        fit(model)


def test_the_check_says_how_many_batches_it_needs():
    model = network(keras_fds.Hyperparameter("learning_rate", 7, 0.1))
    with pytest.raises(ValueError, match="num_buckets=7, horizon=4. Train over at least 7 batches"):
        keras_fds.check_hypergradients(model, *data(), verbose=False)


def test_fewer_batches_than_steps_after_the_split_are_refused():
    with pytest.raises(ValueError, match="has only 5 batches. Received: steps_per_epoch=6"):
        fit(network(), steps_per_epoch=6)


def test_epochs_that_keras_would_cut_short_are_refused():
    with pytest.raises(ValueError, match="5 batches.*steps_per_epoch=2.*to 1 steps"):
        fit(network(), steps_per_epoch=2, epochs=3)


def test_resplit_still_works_and_says_its_new_name():
    x, y = arrays()
    with pytest.warns(DeprecationWarning, match="resample_validation"):
        old = fit(make_model(initial=0.1), x, y, outer_steps=2, seed=1, resplit=True)
    new = fit(
        make_model(initial=0.1), x, y, outer_steps=2, seed=1, resample_validation="outer_step"
    )
    assert old.history["val_loss"] == pytest.approx(new.history["val_loss"])


# ------------------------------------------------------------------------------------ what is told
@pytest.mark.parametrize("start", [0.0, 1e-5, 1e-3])
def test_a_start_that_is_far_too_small_is_no_hindrance(start):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
    rate = keras_fds.Hyperparameter("learning_rate", 2, start)
    model = keras.Sequential([keras.Input((4,)), L.Dense(8, "tanh"), L.Dense(1)])
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.Adam(), [rate]), "mse")
    y = np.tanh(2 * x[:, :1]) + x[:, 1:2]
    fit(model, x, y, epochs=20, outer_steps=None, budget=5, seed=0)
    assert model.optimizer.search.best.loss < 0.1  # Untrained it is about 1.5.


def test_a_missing_onednn_is_told_once(monkeypatch):
    tell_of_missing_onednn.cache_clear()
    monkeypatch.setattr(arguments.tf_graph, "lacks_onednn", lambda: True)
    told = []
    monkeypatch.setattr(tf.get_logger(), "warning", told.append)
    for _ in range(2):
        tell_of_missing_onednn()
    assert len(told) == 1
    assert "TF_ENABLE_ONEDNN_OPTS=1" in told[0]


def test_the_cost_told_includes_tracing(capsys):
    fit(network(keras_fds.Hyperparameter(**MOMENTUM)), verbose=2)
    assert "tracing" in capsys.readouterr().out


# ----------------------------------------------------------------- what callbacks assign, and when
class Scaling(keras.Model):
    """Its output is scaled by a variable that no step assigns."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(1, "tanh")
        self.scale = self.add_weight(shape=(), initializer="zeros", trainable=False, name="scale")

    def call(self, x):
        return self.dense(x) * (0.2 + self.scale)


class Annealing(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        self.model.scale.assign(0.3 * batch)


class Shrinking(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        for variable in self.model.trainable_variables:
            variable.assign(variable * 0.8)


def scaled(rate=0.05):
    keras.utils.set_random_seed(1)
    model = Scaling()
    model.compile(
        keras_fds.HyperOptimizer(
            keras.optimizers.SGD(), [keras_fds.Hyperparameter("learning_rate", 1, rate)]
        ),
        "mse",
    )
    return model


def test_a_variable_that_a_callback_anneals_is_right_in_forward_mode_and_refused_in_the_other():
    def measured(rate):
        model = scaled(rate)
        history = fit(model, initial_weights="same", shuffle=False, differentiation="forward",
                      callbacks=[Annealing()])  # fmt: skip
        return history.history["val_loss"][0], model.optimizer.hypergradients["learning_rate"][0]

    _, found = measured(0.05)
    difference = (measured(0.051)[0] - measured(0.049)[0]) / 0.002 / 5
    assert found == pytest.approx(difference, rel=1e-2)
    with pytest.raises(ValueError, match=r"callback assigns '.*scale'.*'forward'"):
        fit(scaled(), differentiation="reverse", callbacks=[Annealing()])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_weights_that_a_callback_assigns_between_steps_are_refused(mode):
    with pytest.raises(ValueError, match="callback assigns 'scaling.*dense.*kernel'"):
        fit(scaled(), differentiation=mode, callbacks=[Shrinking()])


def test_weights_that_a_callback_sets_at_the_beginning_are_those_to_start_from():
    def load(logs=None):
        model.layers[0].kernel.assign(np.full((4, 3), 0.5))

    results = []
    for run in (keras.Model.fit, keras_fds.fit):
        keras.utils.set_random_seed(0)
        model = network()
        if run is keras.Model.fit:
            model.compile(keras.optimizers.SGD(0.1, momentum=0.5), "mse")
        more = {"outer_steps": 1, "initial_weights": "same"} if run is keras_fds.fit else {}
        callback = keras.callbacks.LambdaCallback(on_train_begin=load)
        run(model, X, Y, batch_size=10, validation_split=0.2, shuffle=False, verbose=0,
            callbacks=[callback], **more)  # fmt: skip
        results.append(model.get_weights())
    for mine, stock in zip(*results):
        np.testing.assert_allclose(mine, stock, rtol=1e-5)


class Dividing(L.Layer):
    """Assigns a variable in training and then computes with it, which cuts the gradient."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x, training=False):
        if training:
            self.mean.assign(keras.ops.mean(keras.ops.abs(x)))
        return x / self.mean


@keras.saving.register_keras_serializable("same_meaning_test")
class RegisteredDividing(Dividing):
    pass


def test_what_is_assigned_and_then_used_is_constant_to_the_step_and_moves_with_the_weights():
    def make(optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), L.Dense(1), RegisteredDividing()])
        model.compile(optimizer, "mse")
        return model

    arguments = {"batch_size": 10, "shuffle": False, "validation_split": 0.2, "verbose": 0}
    stock = make(keras.optimizers.SGD(0.1, momentum=0.5))
    stock.fit(X, Y, **arguments)
    mine = make(sgd())
    keras_fds.fit(mine, X, Y, outer_steps=1, initial_weights="same", **arguments)
    for a, b in zip(mine.get_weights(), stock.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    learning = make(sgd(keras_fds.Hyperparameter("learning_rate", 2, 0.1)))
    check = keras_fds.check_hypergradients(learning, *data(), verbose=False)
    assert check.passed, check
    reverse = keras_fds.hypergradients(
        learning, *data(), dtype="float64", differentiation="reverse"
    )
    np.testing.assert_allclose(reverse["learning_rate"], check.forward["learning_rate"], rtol=1e-8)


@pytest.mark.sweep("loss1")
@pytest.mark.parametrize("loss", [keras.losses.Huber(0.2), keras.losses.CosineSimilarity(axis=0)])
def test_losses_keep_their_arguments_in_float64(loss):
    model = network(keras_fds.Hyperparameter("learning_rate", 2, 0.1), loss=loss)
    own = keras_fds.hypergradients(model, *data())["learning_rate"]
    twin = keras_fds.hypergradients(model, *data(), dtype="float64")["learning_rate"]
    np.testing.assert_allclose(own, twin, rtol=1e-3, atol=1e-6)


def test_metrics_that_are_no_scalars_are_kept_as_lists(tmp_path):
    labels = np.eye(3, dtype="float32")[RNG.integers(0, 3, 60)]
    results = []
    for run in (keras.Model.fit, keras_fds.fit):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), L.Dense(3, "softmax")])
        own = run is keras_fds.fit
        learned = keras_fds.Hyperparameter(**MOMENTUM)
        optimizer = sgd(learned) if own else keras.optimizers.SGD(0.1, momentum=0.5)
        model.compile(optimizer, "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
        more = {"outer_steps": 1, "initial_weights": "same"} if own else {}
        if own:
            more["callbacks"] = [keras_fds.callbacks.TensorBoard(tmp_path / "logs"),
                                 keras_fds.callbacks.ScheduleExport(tmp_path),
                                 keras_fds.callbacks.Checkpoint(tmp_path / "kept")]  # fmt: skip
        history = run(model, X, labels, batch_size=10, validation_split=0.2, shuffle=False,
                      verbose=0, **more)  # fmt: skip
        results.append(history.history)
    for name, values in results[0].items():
        np.testing.assert_allclose(np.asarray(results[1][name]), np.asarray(values), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compiled": {"run_eagerly": True}}, "run_eagerly=True"),
        ({"y": {"a": Y, "b": Y}, "sample_weight": {"a": Y[:, 0]}}, "one array for each output"),
    ],
    ids=["eager", "weights"],
)
def test_what_cannot_mean_the_same_is_refused(change, message):
    model = network()
    model.compile(sgd(), "mse", **change.pop("compiled", {}))
    with pytest.raises(ValueError, match=message):
        fit(model, **change)


def test_layers_that_a_callback_freezes_are_refused():
    model = network()

    def freeze(epoch, logs=None):
        model.layers[0].trainable = False

    with pytest.raises(ValueError, match="Other weights .* are trainable now"):
        fit(model, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=freeze)])


def test_results_of_compute_metrics_that_are_no_metrics_are_refused():
    class Own(keras.Sequential):
        def compute_metrics(self, *arguments, **keywords):
            return {**super().compute_metrics(*arguments, **keywords), "extra": 1.0}

    model = Own([keras.Input((4,)), L.Dense(1)])
    model.compile(sgd(), "mse")
    with pytest.raises(ValueError, match="returns 'extra'"):
        fit(model)


# ------------------------------------------------------------------------------- embeddings
OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.1),
    "SGD, clipped": lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1),
    "the paper's": lambda: keras_fds.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.05, momentum=0.5, centered=True),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Nadam": lambda: keras.optimizers.Nadam(0.1),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.1),
    "Muon": lambda: keras.optimizers.Muon(0.05),
}


@pytest.mark.sweep("Adam", "SGD, clipped")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_that_is_looked_up_twice_is_trained_as_keras_trains_it(name):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (24, 5)).astype("int32")
    y = rng.normal(size=(24, 1)).astype("float32")

    def make_model(num_buckets=None):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(6, 3),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        optimizer = OPTIMIZERS[name]()
        if num_buckets:
            rate = keras_fds.Hyperparameter(
                "learning_rate", num_buckets, initial=float(optimizer.learning_rate)
            )
            optimizer = keras_fds.HyperOptimizer(optimizer, [rate])
        model.compile(optimizer, "mse")
        return model

    arguments = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
    stock = make_model()
    stock.fit(x, y, **arguments)
    for mode in ("forward", "reverse"):
        model = make_model(num_buckets=1)
        keras_fds.fit(
            model,
            x,
            y,
            validation_data=(x, y),
            outer_steps=1,
            initial_weights="same",
            differentiation=mode,
            **arguments,
        )
        for mine, expected in zip(model.get_weights(), stock.get_weights()):
            np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model = make_model(num_buckets=2)
    check = keras_fds.check_hypergradients(model, batches, batches, verbose=False)
    assert check.passed
    reverse = keras_fds.hypergradients(
        model, batches, batches, differentiation="reverse", dtype="float64"
    )
    found = check.forward["learning_rate"]
    np.testing.assert_allclose(found, reverse["learning_rate"], rtol=1e-10)
