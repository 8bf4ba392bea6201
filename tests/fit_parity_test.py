"""The parity contract: where no hyperparameter moves, training is `model.fit`.

Every case runs stock Keras and one outer step of `keras_fds.fit`, or `keras_fds.fit_online`, on the
same model and data, and compares history, weights and the calls of callbacks.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 4)).astype("float32")
Y = (X[:, :1] + 0.3 * X[:, 1:2] ** 2).astype("float32")
LABELS = RNG.integers(0, 3, 23)
WEIGHTS = RNG.uniform(0.2, 3.0, 23).astype("float32")
XV, YV = RNG.normal(size=(11, 4)).astype("float32"), RNG.normal(size=(11, 1)).astype("float32")
SEQUENCES = RNG.normal(size=(24, 6, 4)).astype("float32")

CASES = {}


def case(name, model, x, y=None, compiled=None, **keywords):
    """Adds a case: `model()` makes a model, `compiled` are the arguments of `compile`."""
    keywords = {"batch_size": 5, "shuffle": False, "validation_split": 0.3, **keywords}
    if keywords.get("validation_data") is not None:
        keywords.pop("validation_split")
    CASES[name] = model, (lambda: x() if callable(x) else x), y, compiled or {}, keywords


def dense(outputs=1, **keywords):
    def model():
        return keras.Sequential(
            [keras.Input((4,)), L.Dense(5, "tanh", name="inner"), L.Dense(outputs, **keywords)]
        )

    return model


def dataset(batch=5, weights=None, count=1):
    arrays = (X, Y) if weights is None else (X, Y, weights)
    made = tf.data.Dataset.from_tensor_slices(arrays).batch(batch)
    return made if count == 1 else made.repeat(count)


def validation(batch=4, count=1):
    return tf.data.Dataset.from_tensor_slices((XV, YV)).batch(batch).repeat(count)


class Batches(keras.utils.PyDataset):
    def __init__(self, x=X, y=Y, size=5):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, i):
        part = slice(i * self.size, (i + 1) * self.size)
        return self.x[part], self.y[part]


# ------------------------------------------------------------------------------- forms of data
case("arrays", dense(), X, Y)
case("tensors", dense(), tf.constant(X), tf.constant(Y))
case("float64 arrays", dense(), X.astype("float64"), Y.astype("float64"))
case("two epochs", dense(), X, Y, epochs=2)
case("batch size left out", dense(), X, Y, batch_size=None)
data = {"batch_size": None, "validation_data": (XV, YV)}
case("dataset", dense(), dataset, **data)
case("dataset, two epochs", dense(), dataset, epochs=2, **data)
case("reshuffled dataset", dense(), lambda: dataset().shuffle(5, 1), **data)
case("endless dataset", dense(), lambda: dataset(count=-1), steps_per_epoch=7, **data)
case("endless, two epochs", dense(), lambda: dataset(count=-1), steps_per_epoch=3, epochs=2, **data)
case("weighted dataset", dense(), lambda: dataset(weights=WEIGHTS), **data)
case("PyDataset", dense(), Batches, **data)
case("PyDataset validates", dense(), X, Y, validation_data=Batches(XV, YV, 4))
case("dataset validates", dense(), X, Y, validation_data=validation())


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    return keras.Model({"a": a, "b": b}, L.Dense(1)(L.Concatenate()([a, b])))


case("dict inputs", two_inputs, {"a": X, "b": X[:, :2]}, Y)
case("dict inputs in a dataset", two_inputs, lambda: tf.data.Dataset.from_tensor_slices(
    ({"a": X, "b": X[:, :2]}, Y)).batch(5), validation_data=({"a": XV, "b": XV[:, :2]}, YV),
    batch_size=None)  # fmt: skip
case("a missing channel axis", lambda: keras.Sequential(
    [keras.Input((6, 4, 1)), L.Conv2D(2, 3), L.Flatten(), L.Dense(1)]), SEQUENCES[:23],
    Y)  # fmt: skip

# ------------------------------------------------------------------------- weights and splits
sparse = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
classes = {"class_weight": {0: 1.0, 1: 20.0}, "compiled": sparse}
case("class weights", dense(3), X, LABELS, **classes)
case("class weights of one-hot", dense(3), X, np.eye(3, dtype="float32")[LABELS], compiled={
    "loss": keras.losses.CategoricalCrossentropy(from_logits=True)},
    class_weight={0: 1.0, 2: 7.0})  # fmt: skip
case("class weights of a dataset", dense(3), lambda: tf.data.Dataset.from_tensor_slices(
    (X, LABELS)).batch(5), validation_data=(X[:9], LABELS[:9]), batch_size=None,
    compiled=sparse, class_weight={0: 1.0, 1: 20.0, 2: 0.5})  # fmt: skip
case("sample weights", dense(), X, Y, sample_weight=WEIGHTS)
case("sample weights, weighted metrics", dense(), X, Y, sample_weight=WEIGHTS,
     compiled={"loss": "mse", "metrics": ["mae"], "weighted_metrics": ["mse"]})  # fmt: skip
case("weighted validation", dense(), X, Y, validation_data=(XV, YV, WEIGHTS[:11]))
case("split of a quarter", dense(), X, Y, validation_split=0.25)
case("split of a time series", dense(), X, np.arange(23.0, dtype="float32"), validation_split=0.2)

# ----------------------------------------------------------------------------- steps and sizes
case("validation_steps, arrays", dense(), X, Y, validation_data=(XV, YV), validation_steps=2)
case("validation_steps, split", dense(), X, Y, validation_steps=1)
case("validation_steps, dataset", dense(), X, Y, validation_data=validation(3), validation_steps=2)
case("validation_steps, endless", dense(), X, Y, validation_data=validation(3, -1),
     validation_steps=5)  # fmt: skip
case("validation_batch_size", dense(), X, Y, validation_batch_size=2)
case("partial last batches", dense(), X, Y, batch_size=7, validation_data=(XV, YV))
case("one validation batch", dense(), X, Y, validation_data=(XV, YV), validation_batch_size=99)
case("steps_per_epoch", dense(), X, Y, steps_per_epoch=2)
case("steps_per_epoch without a size", dense(), X, Y, batch_size=None, steps_per_epoch=4)
case("steps_per_epoch goes on", dense(), X, Y, batch_size=4, steps_per_epoch=2, epochs=2)
case("steps_per_execution", dense(), X, Y, compiled={"loss": "mse", "steps_per_execution": 2},
     batch_size=4)  # fmt: skip


# --------------------------------------------------------------------- outputs, losses, metrics
def two_outputs(form=dict):
    inputs = keras.Input((4,))
    inner = L.Dense(5, "tanh")(inputs)
    heads = {"a": L.Dense(1, name="a")(inner), "b": L.Dense(1, name="b")(inner)}
    return keras.Model(inputs, heads if form is dict else list(heads.values()))


both = {"a": Y, "b": -Y}
case("several outputs", two_outputs, X, both,
     compiled={"loss": {"a": "mse", "b": "mae"}, "metrics": {"a": ["mae"]}})  # fmt: skip
case("loss weights", two_outputs, X, both,
     compiled={"loss": {"a": "mse", "b": "mae"}, "loss_weights": {"a": 0.3, "b": 2.0}})  # fmt: skip
case("outputs in a list", lambda: two_outputs(list), X, [Y, -Y], compiled={"loss": ["mse", "mae"]})
case("sample weights of several outputs", two_outputs, X, both, sample_weight=WEIGHTS,
     compiled={"loss": {"a": "mse", "b": "mse"}})  # fmt: skip
for reduction in ("sum", "sum_over_batch_size", "mean", "mean_with_sample_weight", "none"):
    case(f"reduction {reduction}", dense(), X, Y, sample_weight=WEIGHTS,
         compiled={"loss": keras.losses.MeanSquaredError(reduction=reduction)})  # fmt: skip
case("metrics", dense(3), X, LABELS, compiled={**sparse, "metrics": ["accuracy"]})


@keras.saving.register_keras_serializable("parity")
class Watching(L.Layer):
    """Updates a metric, and counts its calls in training."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.seen = keras.metrics.Mean(name="seen")
        self.count = self.add_weight(shape=(), trainable=False, initializer="zeros", name="count")

    def call(self, x, training=False):
        self.seen.update_state(x)
        if training:
            self.count.assign_add(1.0)
        return x * keras.ops.minimum(self.count / 4.0, 1.0)


case("a metric updated in call", lambda: keras.Sequential(
    [keras.Input((4,)), L.Dense(3), Watching(), L.Dense(1)]), X, Y)  # fmt: skip


class OwnLoss(keras.Model):
    """Its `compute_loss` is its own, and updates a metric."""

    def __init__(self):
        super().__init__()
        self.dense, self.size = L.Dense(1), keras.metrics.Mean(name="size")

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        self.size.update_state(keras.ops.abs(y_pred))
        return keras.ops.mean(keras.ops.square(y - y_pred) ** 1.5)


case("compute_loss with a metric", OwnLoss, X, Y, compiled={"loss": None})


class Encoder(L.Layer):
    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


case("add_loss", lambda: keras.Sequential(
    [keras.Input((4,)), L.Dense(3), Encoder(), L.Dense(1)]), X, Y)  # fmt: skip
case("add_loss only", lambda: keras.Sequential(
    [keras.Input((4,)), L.Dense(3), Encoder()]), X, Y, compiled={"loss": None})  # fmt: skip

# ------------------------------------------------------------------------------ layers with state
case("batch normalisation", lambda: keras.Sequential(
    [keras.Input((4,)), L.Dense(5), L.BatchNormalization(), L.Dense(1)]), X, Y)  # fmt: skip
stateful = {"batch_size": 4, "validation_data": (SEQUENCES[16:], Y[:8])}
case("stateful LSTM", lambda: keras.Sequential(
    [keras.Input(batch_shape=(4, 6, 4)), L.LSTM(3, stateful=True), L.Dense(1)]),
    SEQUENCES[:16], Y[:16], **stateful)  # fmt: skip
case("frozen layer", lambda: keras.Sequential(
    [keras.Input((4,)), L.Dense(5, trainable=False), L.Dense(1)]), X, Y)  # fmt: skip


class Recorder(keras.callbacks.Callback):
    """Every call, and which logs came with it."""

    def __init__(self):
        super().__init__()
        self.calls = []


def _recording(name):
    def hook(self, *arguments, logs=None):
        if arguments and isinstance(arguments[-1], dict):
            *arguments, logs = arguments
        self.calls.append((name, *(a for a in arguments if a is not None), sorted(logs or {})))

    return hook


for _kind in ("train", "test", "epoch", "train_batch", "test_batch"):
    for _end in ("begin", "end"):
        setattr(Recorder, f"on_{_kind}_{_end}", _recording(f"on_{_kind}_{_end}"))


def run(name, optimizer, fit, **more):
    make, x, y, compiled, keywords = CASES[name]
    keras.utils.set_random_seed(1)
    model, recorder = make(), Recorder()
    model.compile(optimizer, **{"loss": "mse", **compiled})
    history = fit(model, x(), y, verbose=0, callbacks=[recorder], **{**keywords, **more})
    return history, model.get_weights(), recorder.calls


def stock(name, **more):
    return run(name, sgd(), lambda model, *a, **k: model.fit(*a, **k), **more)


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.5)


def ours(name, hyperparameters=(), **more):
    optimizer = keras_fds.HyperOptimizer(sgd(), list(hyperparameters))
    arguments = {"outer_steps": 1, "initial_weights": "same", **more}
    return run(name, optimizer, keras_fds.fit, **arguments)


def assert_alike(received, expected, epochs=1):
    (history, weights, calls), (stock_history, stock_weights, stock_calls) = received, expected
    for value, stock_value in zip(weights, stock_weights, strict=True):
        np.testing.assert_allclose(value, stock_value, rtol=2e-5, atol=2e-6)
    assert set(history.history) == set(stock_history.history)
    for key, values in history.history.items():
        # An outer step of several epochs is one epoch to callbacks: its loss is of all its steps.
        if epochs == 1 or key.startswith("val_"):
            np.testing.assert_allclose(
                values[-1], stock_history.history[key][-1], 2e-5, 1e-6, err_msg=key
            )
    if epochs == 1:
        assert calls == stock_calls
        assert history.epoch == stock_history.epoch


@pytest.mark.sweep(
    "arrays",
    "dataset, two epochs",
    "reshuffled dataset",
    "endless, two epochs",
    "PyDataset",
    "dict inputs",
    "class weights",
    "class weights of a dataset",
    "sample weights, weighted metrics",
    "weighted validation",
    "split of a quarter",
    "validation_steps, endless",
    "validation_batch_size",
    "partial last batches",
    "steps_per_epoch without a size",
    "steps_per_epoch goes on",
    "steps_per_execution",
    "sample weights of several outputs",
    "reduction none",
    "a metric updated in call",
    "compute_loss with a metric",
    "add_loss",
    "batch normalisation",
    "stateful LSTM",
    "frozen layer",
)
@pytest.mark.parametrize("name", CASES)
def test_one_outer_step_is_model_fit(name):
    epochs = CASES[name][-1].get("epochs", 1)
    assert_alike(ours(name), stock(name), epochs)


@pytest.mark.sweep(
    "arrays", "dataset, two epochs", "PyDataset validates", "steps_per_execution", "add_loss"
)
@pytest.mark.parametrize("name", CASES)
def test_fit_online_that_moves_nothing_is_model_fit(name):
    learned = keras_fds.Hyperparameter("momentum", 1, 0.5)
    still = {"outer_optimizer": keras.optimizers.SGD(0.0), "tangent_decay": 0.5}
    optimizer = keras_fds.HyperOptimizer(sgd(), [learned])
    history, weights, calls = run(name, optimizer, keras_fds.fit_online, **still)
    assert set(history.history.pop("momentum")) == {0.5}
    for *_, logs in calls:
        if "momentum" in logs:
            logs.remove("momentum")
    assert_alike((history, weights, calls), stock(name))


@pytest.mark.sweep("a metric updated in call-forward", "several outputs-reverse")
@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["several outputs", "a metric updated in call", "stateful LSTM"])
def test_it_is_also_while_hypergradients_are_computed(name, differentiation):
    learned = [keras_fds.Hyperparameter("momentum", 2, 0.5)]
    received = ours(name, learned, differentiation=differentiation)
    assert_alike(received, stock(name), CASES[name][-1].get("epochs", 1))


@pytest.mark.sweep("forward")
@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
def test_a_look_at_the_first_batch_draws_no_other_order(differentiation):
    """Every pass over it draws another order; what is looked at is the pass that is trained on."""
    learned = [keras_fds.Hyperparameter("momentum", 2, 0.5)]
    name = "reshuffled dataset"
    steps = {"validation_steps": 2}
    data, same = ({"validation_data": validation().shuffle(3, 2), **steps} for _ in range(2))
    received = ours(name, learned, differentiation=differentiation, **data)
    assert_alike(received, stock(name, **same))


@pytest.mark.parametrize("finished", [0, 1])
def test_training_that_a_callback_stops_within_an_epoch(finished):
    """It is validated and told of as in Keras; where no outer step was finished, it is kept."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.epoch == finished and batch == 1

    def stopped(run_it):
        make, x, y, _, keywords = CASES["arrays"]
        recorder = Recorder()
        keras.utils.set_random_seed(1)
        model = make()
        history = run_it(model, x(), y, verbose=0, callbacks=[recorder, Stop()], **keywords)
        return history, model.get_weights(), recorder.calls

    def run_stock(model, *args, **keywords):
        model.compile(sgd(), "mse")
        return model.fit(*args, epochs=3, **keywords)

    def run_ours(model, *args, **keywords):
        learned = keras_fds.Hyperparameter("momentum", 2, 0.5)
        model.compile(keras_fds.HyperOptimizer(sgd(), [learned]), "mse")
        return keras_fds.fit(model, *args, outer_steps=3, initial_weights="same", **keywords)

    received, expected = stopped(run_ours), stopped(run_stock)
    assert received[2] == expected[2]
    assert set(received[0].history) == set(expected[0].history)
    if not finished:
        assert_alike(received, expected)


def test_initial_epoch_is_the_outer_step_to_begin_at():
    received = ours("arrays", outer_steps=3, initial_epoch=2)
    assert_alike(received, stock("arrays", epochs=3, initial_epoch=2))


def test_shuffled_batches_hold_every_example_once():
    """Keras shuffles by TensorFlow's generator: the orders differ, what they hold does not."""
    seen = []

    class Keeping(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(1)
            self.total = keras.metrics.Sum(name="total")

        def call(self, x, training=False):
            self.total.update_state(x[:, 0] * (10.0 if training else 1.0))
            return self.dense(x)

    for shuffle in (True, "batch", False):
        model = Keeping()
        model.compile(keras_fds.HyperOptimizer(sgd(), []), "mse")
        history = keras_fds.fit(model, X, Y, batch_size=5, validation_split=0.3, shuffle=shuffle,
                                outer_steps=1, initial_weights="same", verbose=0)  # fmt: skip
        seen.append((history.history["total"][0], history.history["loss"][0]))
    np.testing.assert_allclose([total for total, _ in seen], 10 * X[:16, 0].sum(), rtol=1e-5)


def test_val_loss_leaves_out_the_penalties_of_regularizers_only():
    def model():
        return keras.Sequential(
            [
                keras.Input((4,)),
                L.Dense(3, kernel_regularizer="l2", activity_regularizer="l1"),
                Encoder(),
                L.Dense(1),
            ]
        )

    keras.utils.set_random_seed(1)
    regularized = model()
    plain = keras.Sequential([keras.Input((4,)), L.Dense(3), Encoder(), L.Dense(1)])
    plain.set_weights(regularized.get_weights())
    plain.compile("sgd", "mse")
    still = keras_fds.HyperOptimizer(keras.optimizers.SGD(0.0), [])
    regularized.compile(still, "mse")
    history = keras_fds.fit(regularized, X, Y, validation_data=(XV, YV), outer_steps=1,
                            initial_weights="same", verbose=0)  # fmt: skip
    expected = plain.evaluate(XV, YV, verbose=0)
    np.testing.assert_allclose(history.history["val_loss"][0], expected, rtol=1e-5)
