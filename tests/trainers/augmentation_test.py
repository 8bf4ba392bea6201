"""Augmented images, and that a search sees the same ones in both modes and after a resume."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from benchmarks import kills
from configs import digits
from trainers import augmentation, networks, search

NUMBERED = np.arange(1.0, 6 * 7 + 1, dtype=np.float32).reshape(1, 6, 7, 1)


def many(image, count=3000):
    return np.repeat(image, count, axis=0)


def test_nothing_happens_outside_of_training():
    layer = augmentation.Augmentation(padding=2, flip=True, cutout=2)
    assert layer(NUMBERED) is not None
    np.testing.assert_array_equal(layer(NUMBERED, training=False), NUMBERED)


def all_crops(image, padding, border, flip):
    """Every crop of a padded image, by its definition, as bytes."""
    height, width = image.shape[:2]
    pad = ((padding, padding), (padding, padding))
    channels = [np.pad(image[..., c], pad, constant_values=b) for c, b in enumerate(border)]
    padded = np.stack(channels, axis=-1)
    crops = [
        padded[row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    ]
    return [crop.tobytes() for crop in crops] + [crop[:, ::-1].tobytes() for crop in crops] * flip


@pytest.mark.parametrize("padding, flip", [(2, False), (2, True), (0, True)])
def test_every_crop_and_mirror_image_is_drawn_alike(padding, flip):
    image = np.concatenate([NUMBERED, -NUMBERED], axis=-1)
    border = [-1.5, 0.25]
    layer = augmentation.Augmentation(padding=padding, flip=flip, border=border, seed=1)
    drawn = [each.tobytes() for each in layer(many(image), training=True).numpy()]
    expected = all_crops(image[0], padding, np.array(border, np.float32), flip)
    assert set(drawn) == set(expected) and len(set(expected)) == len(expected)
    counts = np.array([drawn.count(each) for each in expected])
    mean = len(drawn) / len(expected)
    assert np.square(counts - mean).sum() / mean < 2 * len(expected) + 10  # Chi squared.


def test_squares_are_cut_out_around_every_point():
    layer = augmentation.Augmentation(cutout=4, seed=1)
    drawn = layer(many(NUMBERED), training=True).numpy()
    expected = set()
    for row in range(6):
        for column in range(7):
            image = NUMBERED[0].copy()
            image[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
            expected.add(image.tobytes())
    assert {each.tobytes() for each in drawn} == expected


def test_every_batch_draws_anew_and_a_seed_repeats_it():
    images = many(NUMBERED, 8)
    layers = [augmentation.Augmentation(padding=2, flip=True, seed=3) for _ in range(2)]
    first, again = ([layer(images, training=True) for _ in range(2)] for layer in layers)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    keras.utils.set_random_seed(5)
    one = augmentation.Augmentation(padding=2)(images, training=True)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(one, augmentation.Augmentation(padding=2)(images, training=True))


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_the_same_draws_in_every_precision(dtype):
    images = many(NUMBERED, 8)
    options = {"padding": 2, "flip": True, "cutout": 2, "seed": 3}
    one = augmentation.Augmentation(**options)(images, training=True)
    other = augmentation.Augmentation(dtype=dtype, **options)(images, training=True)
    assert other.dtype == ("float64" if dtype == "float64" else "bfloat16")
    np.testing.assert_array_equal(one, tf.cast(other, "float32"))


def test_is_compiled_and_saved_with_its_model(tmp_path):
    layer = augmentation.make("crop_flip_cutout", (20, 16, 3), border=np.array([1, 2, 3]))
    model = networks.build("mlp", (20, 16, 3), 2, augmentation=layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == layer.get_config()
    assert layer.get_config()["border"] == [1.0, 2.0, 3.0]
    x = np.random.default_rng(0).normal(size=(4, 20, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))


@pytest.mark.parametrize(
    "name, padding, flip, cutout",
    [
        ("crop", 4, False, 0),
        ("flip", 0, True, 0),
        ("crop_flip", 4, True, 0),
        ("crop_flip_cutout", 4, True, 16),
        ("cutout", 0, False, 16),
    ],
)
def test_names(name, padding, flip, cutout):
    layer = augmentation.make(name, (32, 32, 3))
    assert (layer.padding, layer.flip, layer.cutout) == (padding, flip, cutout)


def test_names_that_mean_nothing():
    assert augmentation.make("none", (8, 8, 1)) is None
    for name in ("", "flip_crop", "none_crop", "crop_crop", "rotate", None):
        with pytest.raises(ValueError, match="`augmentation` must be 'none', or one or more of"):
            augmentation.make(name, (32, 32, 3))
    with pytest.raises(ValueError, match=r"16x16: too large .*input_shape=\(8, 32, 1\)"):
        augmentation.make("cutout", (8, 32, 1))


# ------------------------------------------------------------------------------------ in searches
def make_model():
    keras.utils.set_random_seed(1)
    layer = augmentation.Augmentation(padding=2, flip=True, cutout=4, border=[-1.0])
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(layer(inputs))
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    names = [("learning_rate", 2, 0.1), ("momentum", 1, 0.5), ("weight_decay", 1, 1e-3)]
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(),
        [keras_fds.Hyperparameter(n, num_buckets=k, initial=v) for n, k, v in names],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def batches():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8, 8, 1)), rng.integers(0, 3, 60)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(10)


@pytest.mark.parametrize("validation_training", [False, True])
def test_both_modes_see_the_same_images(validation_training):
    found = {}
    for mode in ("forward", "reverse"):
        found[mode] = keras_fds.hypergradients(
            make_model(),
            batches().take(4),
            batches().skip(4),
            differentiation=mode,
            dtype="float64",
            validation_training=validation_training,
        )
    for name, values in found["forward"].items():
        np.testing.assert_allclose(found["reverse"][name], values, rtol=1e-8)
        assert np.all(values != 0)


def test_hypergradients_agree_with_finite_differences(capsys):
    check = keras_fds.check_hypergradients(make_model(), batches().take(4), batches().skip(4))
    assert check.passed
    assert "The hypergradients are right." in capsys.readouterr().out


class Killed(BaseException):
    pass


@pytest.mark.sweep("forward")
@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
def test_a_killed_search_ends_as_if_it_had_not_been(
    differentiation, digits_dir, tmp_path, monkeypatch
):
    config = digits.get_config()
    config.update(
        network="mlp",
        augmentation="crop_flip",
        epochs=(1,),
        outer_steps=2,
        validation_split=0.2,
        differentiation=differentiation,
        data_dir=str(digits_dir),
    )
    search.search(config, tmp_path / "whole", verbose=0, checkpoint_minutes=0.0)
    seen = []

    def kill(self, batch, logs=None):
        seen.append(batch)
        if len(seen) == 17:  # Within the second outer step.
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(keras_fds.callbacks.ScheduleExport, "on_train_batch_end", kill)
        search.search(config, tmp_path / "run", verbose=0, checkpoint_minutes=0.0)
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert any("_000001_inner_step_" in name for name in checkpoints) == (
        differentiation == "forward"
    )
    search.search(config, tmp_path / "run", verbose=0, checkpoint_minutes=0.0)
    whole, run = kills.results(tmp_path / "whole"), kills.results(tmp_path / "run")
    assert kills.differences(whole, run) == []
