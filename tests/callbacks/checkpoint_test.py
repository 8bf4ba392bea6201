"""A search that was interrupted ends as if it had not been."""

import dataclasses
import json
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.callbacks import Checkpoint, checkpoint
from keras_fds.callbacks.checkpoint import DAMAGE
from tests import small_problem
from tests.numpy_mode import NumpyMode, arrays, make_model

OUTER_STEPS = 4
BATCHES = 10
FORWARD, REVERSE = NumpyMode("forward"), NumpyMode("reverse", resumable=False)
MODES = {"forward": FORWARD, "reverse": REVERSE}


class Killed(BaseException):
    """What no one catches."""


class Kill(keras.callbacks.Callback):
    """Ends a search at an outer step, both counted from 0, at or after an inner step."""

    def __init__(self, outer_step, inner_step):
        super().__init__()
        self.when = (outer_step, inner_step)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) >= self.when:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if (self.epoch, BATCHES) >= self.when:
            raise Killed


def search(callbacks=(), model_seed=0, x=None, y=None, **arguments):
    """A search on a model that is made anew, as in a new process."""
    keras.utils.set_random_seed(model_seed)
    model = arguments.pop("model", None) or make_model(steps_per_execution=3)
    if x is None:
        x, y = arrays()
        arguments.setdefault("validation_split", 0.2)
    defaults = {
        "batch_size": 10,
        "epochs": 2,
        "outer_steps": OUTER_STEPS,
        "seed": 7,
        "verbose": 0,
        "differentiation": REVERSE,
    }
    history = keras_fds.fit(model, x, y, callbacks=list(callbacks), **{**defaults, **arguments})
    return model, history


def results(model, history):
    """All that a search ends with; equal for two of them to the last bit, or not."""
    optimizer = model.optimizer
    return {
        "history": history.history,
        "epoch": history.epoch,
        "records": [dataclasses.asdict(record) for record in optimizer.search.records],
        "weights": [weight.tolist() for weight in model.get_weights()],
        "schedules": {name: s.get_config() for name, s in optimizer.schedules.items()},
        "observations": [
            (o.coordinates.tolist(), o.horizon, o.loss, o.hypergradients is None)
            for o in optimizer.search.observations
        ],
    }


def assert_same(one, other):
    """Equal, and not a number where the other is not."""
    assert json.dumps(one, indent=1) == json.dumps(other, indent=1)


def killed(callbacks, when, **arguments):
    with pytest.raises(Killed):
        search([*callbacks, Kill(*when)], **arguments)


MOMENTS = [(0, 2), (1, BATCHES), (2, 5), (OUTER_STEPS - 1, BATCHES)]
CALLBACKS = {
    "checkpoint": lambda folder: Checkpoint(folder, config={"name": "stripes"}),
    "checkpoint within": lambda folder: Checkpoint(folder, config={"name": "stripes"}, minutes=0),
    "backup": lambda folder: keras.callbacks.BackupAndRestore(folder, double_checkpoint=True),
    "backup in the middle": lambda folder: keras.callbacks.BackupAndRestore(folder, save_freq=3),
}


@pytest.fixture(scope="module")
def uninterrupted():
    """Results of a search that was not interrupted, in the mode of that name."""
    return {name: results(*search(differentiation=mode)) for name, mode in MODES.items()}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("reverse", "backup in the middle"), *(("forward", kind) for kind in CALLBACKS)],
)
def test_it_ends_the_same_wherever_it_was_interrupted(uninterrupted, mode, kind, tmp_path):
    for model_seed, when in enumerate(MOMENTS):
        killed(
            [CALLBACKS[kind](tmp_path)], when, differentiation=MODES[mode], model_seed=model_seed
        )
    found = results(
        *search([CALLBACKS[kind](tmp_path)], differentiation=MODES[mode], model_seed=99)
    )
    assert_same(found, uninterrupted[mode])


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial_weights": "same", "epochs": [1, 2, 3, 1]},
        {"initial_weights": lambda: make_model(compiled=False), "validation_batch_size": 4},
    ],
    ids=["same", "function"],
)
def test_so_does_one_with_other_arguments(arguments, tmp_path):
    expected = results(*search(**arguments))
    killed([Checkpoint(tmp_path)], (2, 5), **arguments)
    assert_same(results(*search([Checkpoint(tmp_path)], model_seed=5, **arguments)), expected)


class Watch(keras.callbacks.Callback):
    """Notes where outer steps begin, as inner steps."""

    def on_train_begin(self, logs=None):
        self.begins = []

    def on_epoch_begin(self, epoch, logs=None):
        self.at_begin = True

    def on_train_batch_begin(self, batch, logs=None):
        if self.at_begin:
            self.begins.append(batch)
        self.at_begin = False


def test_an_outer_step_goes_on_where_it_was_interrupted(tmp_path, capsys):
    mode, watch = {"differentiation": FORWARD}, Watch()
    killed([Checkpoint(tmp_path, minutes=0)], (1, 5), **mode)
    search([Checkpoint(tmp_path), watch], model_seed=1, verbose=2, **mode)
    assert watch.begins == [3, 0, 0]
    assert "Resuming after inner step 3 of outer step 2 of 4." in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"epochs": [2, 1]}, {"metrics": ["mae"]}], ids=str)
def test_an_outer_step_begins_anew_over_another_horizon_or_with_other_metrics(
    change, tmp_path, capsys
):
    def changed(callbacks):
        model = make_model(steps_per_execution=3, **compiled)
        return search(callbacks, model=model, verbose=2, outer_steps=2, **fitted)

    mode, watch = {"differentiation": FORWARD}, Watch()
    compiled, fitted = ({}, change) if "epochs" in change else (change, {})
    fitted.update(mode)
    expected = changed([])[1].history
    killed([Checkpoint(tmp_path, minutes=0)], (1, 5), **mode)
    found = changed([Checkpoint(tmp_path), watch])[1].history
    assert found["val_loss"] == expected["val_loss"]
    assert watch.begins == [0]
    assert "Resuming after outer step 1 of 2." in capsys.readouterr().out


def test_a_broken_off_outer_step_begins_anew_in_the_same_process():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = len(self.model.optimizer.search.records) == 2

    mode, watch = {"differentiation": FORWARD}, Watch()
    model, _ = search([Stop()], **mode)
    search([watch], model=model, initial_epoch=2, **mode)
    assert watch.begins == [0, 0]


class Strength(keras.layers.Layer):
    """Multiplies by a number that only a callback changes."""

    def build(self, shape):
        self.strength = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x):
        return self.strength * x


class Act(keras.callbacks.Callback):
    """Changes a model in the course of an outer step."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.layers[-1].strength.assign(0.5)
        kernel = self.model.layers[0].kernel
        kernel.assign(keras.ops.clip(kernel, -0.5, 0.5))

    def on_train_batch_end(self, batch, logs=None):
        self.model.layers[-1].strength.assign_add(0.1)


def dropout_model():
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3), Strength()])
    stock = small_problem.make_model(initial=0.1, steps_per_execution=3)
    metrics, each = ["accuracy"], stock.steps_per_execution
    model.compile(stock.optimizer, loss=stock.loss, metrics=metrics, steps_per_execution=each)
    return model


@pytest.mark.sweep()
def test_so_does_one_with_dropout_moving_statistics_and_callbacks_that_act(tmp_path):
    x, y = small_problem.arrays()
    mode = {"differentiation": "forward", "x": x, "y": y, "validation_split": 0.2}
    expected = results(*search([Act()], model=dropout_model(), **mode))
    for minutes in (None, 0):
        checkpoint = Checkpoint(tmp_path / str(minutes), minutes=minutes)
        killed([checkpoint, Act()], (2, 9), model=dropout_model(), **mode)
        found = search([checkpoint, Act()], model=dropout_model(), model_seed=3, **mode)
        assert_same(results(*found), expected)


def datasets(endless):
    train = tf.data.Dataset.from_tensor_slices(arrays()).shuffle(60, seed=1)
    train = (train.repeat() if endless else train.repeat(2)).batch(10)  # Shuffled anew each time.
    validation = tf.data.Dataset.from_tensor_slices(arrays()).shuffle(60, seed=2).batch(20).take(2)
    more = {"steps_per_epoch": 4} if endless else {}
    return {"x": train, "validation_data": validation, "epochs": 1.25, **more}


@pytest.mark.parametrize(
    ("endless", "differentiation"), [(False, "forward"), (True, "forward"), (False, "reverse")]
)
def test_so_does_one_on_datasets_that_shuffle(endless, differentiation, tmp_path):
    mode = {"differentiation": MODES[differentiation]}
    expected = results(*search(**datasets(endless), **mode))
    for minutes in (None, 0)[: 2 if differentiation == "forward" else 1]:
        checkpoint = Checkpoint(tmp_path / str(minutes), minutes=minutes)
        killed([checkpoint], (2, 3 if endless else 12), **datasets(endless), **mode)
        found = results(*search([checkpoint], **datasets(endless), **mode))
        assert_same(found, expected)


class Diverge(keras.callbacks.Callback):
    def __init__(self, outer_steps):
        super().__init__()
        self.outer_steps = outer_steps

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in self.outer_steps:
            self.model.set_weights([w * np.nan for w in self.model.get_weights()])


@pytest.mark.filterwarnings("ignore:Outer step")
@pytest.mark.parametrize("outer_steps", [[0], [1]])
def test_so_does_one_with_outer_steps_that_diverge(outer_steps, tmp_path):
    breaking = Diverge(outer_steps)
    expected = results(*search([breaking], initial_weights="same"))
    if outer_steps != [0]:
        killed([Checkpoint(tmp_path), breaking], (2, 1), initial_weights="same")
    for _ in range(2):
        found = results(*search([Checkpoint(tmp_path), breaking], initial_weights="same"))
        assert_same(found, expected)


def within_budget(callbacks=(), budget=4.0, **arguments):
    """A search whose horizons the rule chooses, with and without hypergradients."""
    mode = NumpyMode("forward")
    mode.cost = lambda horizon: 1.1  # So that both kinds of outer step pay.
    return search(
        callbacks, outer_steps=None, budget=budget, epochs=40, differentiation=mode, **arguments
    )


def test_so_does_one_within_a_budget(tmp_path):
    expected = results(*within_budget())
    kinds = [(horizon, plain) for _, horizon, _, plain in expected["observations"]]
    assert {horizon for horizon, _ in kinds} == {1, 20, 60, 200} and len({p for _, p in kinds}) == 2
    assert kinds[-1][0] == 200
    for model_seed, when in enumerate([(1, 2), (5, 3), (8, 1), (len(kinds) - 1, 20)]):
        with pytest.raises(Killed):
            within_budget([Checkpoint(tmp_path, minutes=0), Kill(*when)], model_seed=model_seed)
    assert_same(results(*within_budget([Checkpoint(tmp_path)], model_seed=99)), expected)


def test_a_greater_budget_goes_on_where_a_search_has_ended(tmp_path, capsys):
    first = results(*within_budget([Checkpoint(tmp_path)]))["observations"]
    again = results(*within_budget([Checkpoint(tmp_path)], verbose=2))["observations"]
    assert again == first
    assert f"{len(first)} outer steps are done already." in capsys.readouterr().out
    more = results(*within_budget([Checkpoint(tmp_path)], budget=7.0))["observations"]
    assert more[: len(first)] == first and len(more) > len(first)


def test_a_finished_search_is_left_as_it_is_or_goes_on_with_more_outer_steps(
    uninterrupted, tmp_path, capsys
):
    mode = {"differentiation": FORWARD}
    short = search([Checkpoint(tmp_path, every=2)], outer_steps=2, **mode)
    assert [path.name for path in tmp_path.iterdir()] == ["outer_step_000002.npz"]
    again = search([Checkpoint(tmp_path)], model_seed=1, outer_steps=2, verbose=2, **mode)
    assert_same(results(*again), results(*short))
    assert "2 outer steps are done already." in capsys.readouterr().out
    found = results(*search([Checkpoint(tmp_path)], verbose=2, **mode))
    assert f"Resuming after outer step 2 of {OUTER_STEPS}." in capsys.readouterr().out
    assert_same(found, uninterrupted["forward"])


def test_a_broken_off_outer_step_is_run_again(uninterrupted, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = len(self.model.optimizer.search.records) == 2

    mode = {"differentiation": FORWARD}
    search([Checkpoint(tmp_path), Stop()], **mode)
    found = results(*search([Checkpoint(tmp_path)], model_seed=1, **mode))
    assert_same(found, uninterrupted["forward"])


# ------------------------------------------------------------------------------ what is refused
@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint = Checkpoint(folder, config={"batch_size": 10})
    search([checkpoint], outer_steps=3, differentiation=REVERSE)
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"outer_step_00000{n}.npz" for n in (2, 3)
    ]
    return folder


def test_another_config_is_refused(checkpoints):
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    for config in (None, {"batch_size": 20}):
        with pytest.raises(ValueError, match="another search.*config.*batch_size.*10.*, now"):
            search([Checkpoint(checkpoints, config)])
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_another_model_is_refused(checkpoints):
    model = make_model(num_buckets=5)
    with pytest.raises(ValueError, match="another search.*hyper_optimizer.hyperparameters"):
        search([Checkpoint(checkpoints, {"batch_size": 10})], model=model)


def test_a_damaged_byte_is_noticed_where_it_matters(checkpoints):
    sound = checkpoints / "outer_step_000003.npz"
    content, expected = bytearray(sound.read_bytes()), checkpoint._read(sound)
    newest = checkpoints / "outer_step_000004.npz"
    rng = np.random.default_rng(0)
    try:
        noticed = 0
        for position in rng.integers(len(content), size=40):
            damaged = content.copy()
            damaged[position] ^= 0x40
            newest.write_bytes(damaged)
            try:
                found = checkpoint._read(newest)
            except DAMAGE:
                noticed += 1
            else:  # A time stamp or padding.
                assert found.keys() == expected.keys()
                assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert noticed >= 20
    finally:
        newest.unlink()


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_passed_over(uninterrupted, checkpoints, part, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    newest = folder / "outer_step_000003.npz"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(part * len(content))])
    (folder / "outer_step_000003_mine.npz").write_bytes(content)
    (folder / "outer_step_000004.partial.npz").write_bytes(content[:99])
    with pytest.warns(RuntimeWarning, match="outer_step_000003.* is damaged. The search resumes"):
        checkpoint = Checkpoint(folder, {"batch_size": 10})
        found = results(*search([checkpoint], model_seed=1, differentiation=REVERSE))
    assert_same(found, uninterrupted["reverse"])
    names = [f"outer_step_00000{n}.npz" for n in (3, 4)]
    assert sorted(path.name for path in folder.iterdir()) == [
        *names[:1],
        "outer_step_000003_mine.npz",
        names[1],
    ]


def test_where_every_checkpoint_is_damaged_the_new_ones_are_kept(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("outer_step_00000", "outer_step_00001")))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match="or starts over when there is none"):
        search([Checkpoint(folder, {"batch_size": 10})], outer_steps=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"outer_step_00000{n}.npz" for n in (1, 2)
    ]


def test_a_newer_version_is_refused(checkpoints, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    monkeypatch.setattr("keras_fds.search.state._VERSION", 5)
    with pytest.raises(ValueError, match="a search of version 6, of a newer keras_fds"):
        search([Checkpoint(folder, {"batch_size": 10})])


@pytest.mark.parametrize("every", [0, 1.5, "epoch"])
def test_wrong_arguments_are_refused(every, tmp_path):
    with pytest.raises(ValueError, match="`every` must be a whole number"):
        Checkpoint(tmp_path, every=every)
    Checkpoint(tmp_path, minutes=np.float32(0.5))
    with pytest.raises(ValueError, match="`minutes` must be None or a number of at least 0"):
        Checkpoint(tmp_path, minutes="often")


def test_stock_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Checkpoint is for keras_fds.fit"):
        make_model().fit(*arrays(), callbacks=[Checkpoint(tmp_path)], verbose=0)


def test_going_on_in_another_mode_is_told(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "copy")
    with pytest.warns(RuntimeWarning, match="Pass differentiation='reverse' to resume"):
        search([Checkpoint(folder, {"batch_size": 10})], differentiation=FORWARD)


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(uninterrupted, tmp_path):
    class Fill(keras.callbacks.Callback):
        """Allows files of 4 KiB from an outer step on, less than a checkpoint needs."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    limits, mode = resource.getrlimit(resource.RLIMIT_FSIZE), {"differentiation": FORWARD}
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.warns(RuntimeWarning, match="No checkpoint could be written.*continues"):
            found = results(*search([Checkpoint(tmp_path), Fill()], **mode))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert_same(found, uninterrupted["forward"])
    assert [path.name for path in tmp_path.iterdir()] == ["outer_step_000001.npz"]
    found = results(*search([Checkpoint(tmp_path)], model_seed=1, **mode))
    assert_same(found, uninterrupted["forward"])


def test_seeds(tmp_path):
    one, same, other = (
        results(*search(seed=seed, model_seed=n)) for n, seed in enumerate([1, 1, 2])
    )
    assert_same(one, same)
    assert one["history"]["val_loss"] != other["history"]["val_loss"]
    for seed in (-1, 1.5, "a", True):
        with pytest.raises(ValueError, match="`seed` must be a whole number of at least 0"):
            search(seed=seed)


def test_a_finished_model_holds_no_search(tmp_path):
    model, _ = search([Checkpoint(tmp_path)])
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").optimizer.search is None
