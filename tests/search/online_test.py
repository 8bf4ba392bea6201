"""`fit_online`: what it leaves behind, what callbacks see, and what it refuses."""

import csv
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.search import online
from tests import small_problem

X, Y = small_problem.arrays()
ARGUMENTS = {"batch_size": 10, "epochs": 3, "validation_split": 0.2, "verbose": 0, "seed": 1}
STEPS = 15


def make_model(**arguments):
    keras.utils.set_random_seed(0)
    return small_problem.make_model(1, **{"initial": 0.1, **arguments})


def fit(model, x=X, y=Y, **arguments):
    return keras_fds.fit_online(model, x, y, **{**ARGUMENTS, **arguments}).history


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------ what it leaves
def test_schedules_hold_what_every_step_used_and_model_fit_trains_with_them():
    model = make_model()
    start = model.get_weights()
    history = fit(model, shuffle=False)
    rate = model.optimizer.schedules["learning_rate"]
    assert (rate.num_buckets, rate.horizon) == (STEPS, STEPS)
    assert rate.values[0] == 0.1 and np.ptp(rate.values) > 0.001
    assert history["learning_rate"] == list(rate.values[4::5])
    trained = model.get_weights()
    model.set_weights(start)
    model.optimizer.reset_slots()
    again = model.fit(X[:48], Y[:48], batch_size=10, epochs=3, shuffle=False, verbose=0).history
    np.testing.assert_allclose(again["loss"], history["loss"], rtol=1e-5)
    for value, expected in zip(model.get_weights(), trained):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_a_long_training_leaves_means(monkeypatch):
    model = make_model()
    fit(model)
    each = model.optimizer.schedules["momentum"].values
    monkeypatch.setattr(online, "MOST_VALUES", 5)
    model = make_model()
    fit(model)
    schedule = model.optimizer.schedules["momentum"]
    assert (schedule.num_buckets, schedule.horizon) == (5, STEPS)
    np.testing.assert_allclose(schedule.values, each.reshape(5, 3).mean(axis=1), rtol=1e-12)


def test_a_second_call_continues_with_the_last_values_and_slots():
    model = make_model()
    fit(model)
    last = {name: schedule.values[-1] for name, schedule in model.optimizer.schedules.items()}
    fit(model, epochs=1, outer_optimizer=keras.optimizers.SGD(0.0))
    for name, schedule in model.optimizer.schedules.items():
        assert schedule.horizon == 5
        np.testing.assert_allclose(schedule.values, last[name], rtol=1e-12)
    assert int(model.optimizer.iterations) == 20


def test_a_search_goes_on_from_what_was_learned():
    model = make_model()
    fit(model)
    history = keras_fds.fit(
        model, X, Y, batch_size=10, epochs=3, outer_steps=1, validation_split=0.2, verbose=0
    )
    assert len(history.history["val_loss"]) == 1


def test_saved_models_keep_their_schedules(tmp_path):
    model = make_model()
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for name, schedule in model.optimizer.schedules.items():
        np.testing.assert_array_equal(loaded.optimizer.schedules[name].values, schedule.values)
    with pytest.raises(ValueError, match="'learning_rate' has 15 values"):
        fit(loaded)


def test_a_seed_decides_all_and_the_number_of_steps_a_call_nothing():
    def values(**arguments):
        model = make_model(**arguments)
        fit(model)
        return model.optimizer.schedules["learning_rate"].values

    first = values()
    np.testing.assert_array_equal(values(), first)
    np.testing.assert_allclose(values(steps_per_execution=4), first, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_it_learns(decay):
    model = make_model(initial=0.0)
    history = fit(model, epochs=40, tangent_decay=decay)
    assert history["val_loss"][-1] < 0.6 * history["val_loss"][0]
    assert history["learning_rate"][-1] > 0.05


def test_without_validation_data_the_loss_of_the_next_batch_counts():
    without, told = make_model(), make_model()
    history = fit(without, X[:48], Y[:48], validation_split=0.0)
    assert not any(name.startswith("val_") for name in history)
    history = fit(told, objective="loss")
    assert "val_loss" in history
    for name, schedule in without.optimizer.schedules.items():
        np.testing.assert_allclose(told.optimizer.schedules[name].values, schedule.values)


def test_validation_batches_of_a_dataset_come_in_turn():
    arrays, dataset = make_model(), make_model()
    held_out = X[48:], Y[48:]
    data = {"validation_split": 0.0, "validation_data": held_out, "validation_batch_size": 5}
    fit(arrays, X[:48], Y[:48], **data)
    data["validation_data"] = tf.data.Dataset.from_tensor_slices(held_out).batch(5)
    fit(dataset, X[:48], Y[:48], **data)
    for name, schedule in arrays.optimizer.schedules.items():
        np.testing.assert_allclose(dataset.optimizer.schedules[name].values, schedule.values)


def test_validation_freq_is_that_of_keras():
    assert len(fit(make_model(), epochs=5, validation_freq=2)["val_loss"]) == 2
    assert len(fit(make_model(), epochs=5, validation_freq=[1, 4, 5])["val_loss"]) == 3


def test_its_split_and_order_are_those_of_fit():
    online_model, searched = make_model(), make_model()
    still = {"outer_optimizer": keras.optimizers.SGD(0.0), "resample_validation": "once"}
    received = fit(online_model, **still)
    expected = keras_fds.fit(
        searched,
        X,
        Y,
        **ARGUMENTS,
        outer_steps=1,
        initial_weights="same",
        resample_validation="once",
    ).history
    np.testing.assert_allclose(received["val_loss"][-1], expected["val_loss"][0], rtol=1e-6)
    for value, other in zip(online_model.get_weights(), searched.get_weights()):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------- callbacks
def test_stock_callbacks_work(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1 and not resumed:
                raise KeyboardInterrupt

    model, resumed = make_model(), False
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    callbacks = [log, best, backup, Stop(), keras.callbacks.EarlyStopping(patience=5)]
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=callbacks)
    assert model.optimizer.horizon == 10
    model, resumed = make_model(), True
    assert len(fit(model, callbacks=callbacks)["loss"]) == 2
    rows = rows_of(tmp_path / "log.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "1", "2"]
    assert all(float(row["learning_rate"]) > 0 for row in rows)
    saved = keras.saving.load_model(tmp_path / "best.keras").optimizer.schedules["learning_rate"]
    assert saved.num_buckets == 1


def test_the_files_of_a_search_are_written_as_of_one_outer_step(tmp_path):
    model = make_model()
    board = keras_fds.callbacks.TensorBoard(tmp_path / "tensorboard")
    fit(model, callbacks=[keras_fds.callbacks.ScheduleExport(tmp_path), board])
    written = keras_fds.load_schedules(tmp_path / "schedules.json")
    for name, schedule in model.optimizer.schedules.items():
        np.testing.assert_array_equal(written[name].values, schedule.values)
    assert len(rows_of(tmp_path / "history.csv")) == 1
    assert (tmp_path / "schedules.png").exists()
    assert (tmp_path / "tensorboard" / "schedules" / "outer_step_001").is_dir()


def test_a_learning_rate_that_is_not_learned_can_be_scheduled():
    def compiled(optimizer):
        keras.utils.set_random_seed(0)
        model = small_problem.make_model(compiled=False)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        return model

    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
    learned = [keras_fds.Hyperparameter("momentum", 1, 0.5)]
    model = compiled(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), learned))
    still = keras.optimizers.SGD(0.0)
    received = fit(model, callbacks=[scheduler], outer_optimizer=still, shuffle=False)
    stock = compiled(keras.optimizers.SGD(0.1, momentum=0.5))
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "seed"}
    expected = stock.fit(X, Y, **arguments, shuffle=False, callbacks=[scheduler]).history
    np.testing.assert_allclose(received["loss"], expected["loss"], rtol=1e-5)


# ------------------------------------------------------------------------------ what goes wrong
def test_a_training_that_breaks_down_is_told(tmp_path):
    model = make_model(initial=1e20)
    board = keras_fds.callbacks.TensorBoard(tmp_path)
    with pytest.warns(RuntimeWarning, match="Epoch 3: the training loss was above .* step 11"):
        history = fit(model, callbacks=[board], epochs=4)
    assert len(history["loss"]) == 3
    assert model.optimizer.search.records[0].status == "broke_down"


def test_data_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="training data hold NaN or infinities in their inputs"):
        fit(make_model(), np.full_like(X, np.nan))


def test_fit_learns_one_value_afterwards_too():
    model = make_model()
    fit(model, epochs=1)
    assert model.optimizer.hyperparameters[0].num_buckets > 1
    keras_fds.fit(model, X, Y, batch_size=len(X), outer_steps=1, validation_split=0.2, verbose=0)
    assert all(h.num_buckets == 1 for h in model.optimizer.hyperparameters)


def test_hypergradients_that_are_not_finite_move_nothing_and_are_told():
    model = make_model()
    bad = np.full_like(X[:5], np.inf)
    data = {"validation_split": 0.0, "validation_data": (bad, Y[:5])}
    with pytest.warns(RuntimeWarning, match="'learning_rate', 'momentum' are not finite"):
        fit(model, **data)
    assert set(model.optimizer.schedules["learning_rate"].values) == {0.1}


RATE = keras.callbacks.ReduceLROnPlateau()
REFUSED = {
    "`tangent_decay` must be": {"tangent_decay": 1.5},
    "`objective` must be 'loss' or 'val_loss'": {"objective": "accuracy"},
    "needs validation data": {"objective": "val_loss", "validation_split": 0.0},
    "`outer_optimizer` must be a stock": {"outer_optimizer": "adam"},
    "`epochs` must be": {"epochs": 0.5},
    "ReduceLROnPlateau sets the learning rate, which fit_online": {"callbacks": [RATE]},
    "keeps a search": {"callbacks": [keras_fds.callbacks.Checkpoint("nowhere")]},
    "`validation_freq` must be": {"validation_freq": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(make_model(), **REFUSED[message])


def test_more_than_one_value_is_refused():
    with pytest.raises(ValueError, match="'learning_rate' has 2 values.*num_buckets=1"):
        fit(small_problem.make_model(2))
