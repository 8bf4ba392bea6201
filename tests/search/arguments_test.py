"""What is refused before any training, and in which words."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from tests.small_problem import arrays, make_model


def fit(model, x=None, y=None, **arguments):
    arguments = {"batch_size": 10, "outer_steps": 3, "validation_split": 0.2, **arguments}
    return keras_fds.fit(model, *(arrays() if x is None else (x, y)), verbose=0, **arguments)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


def own_step():
    model = OwnStep([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(make_model().optimizer, loss="mse")
    return model


X, Y = arrays()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: make_model(compiled=False), {}, "not compiled"),
        (lambda: make_model(loss=None), {}, "without a loss"),
        (own_step, {}, "OwnStep overrides `train_step`"),
        (make_model, {"validation_split": 0.0}, "need validation data.*validation_split=0.0"),
        (make_model, {"validation_split": 0.999}, "leaves no examples to train"),
        (make_model, {"x": None, "y": None}, "missing"),
        (make_model, {"y": None}, "`y` is missing"),
        (make_model, {"x": iter([X]), "y": Y}, "arrays, a tf.data.Dataset or .*list_iterator"),
        (make_model, {"x": X.tolist(), "y": Y}, "numpy.asarray"),
        (make_model, {"x": X[:0], "y": Y[:0]}, "empty"),
        (make_model, {"y": Y[:5]}, "same number of examples"),
        (make_model, {"validation_data": (X[:0], Y[:0])}, "`validation_data` is empty"),
        (make_model, {"validation_data": (X[:, :2], Y)}, "structure, shapes"),
        (make_model, {"epochs": [1, 2]}, "3 numbers, one per outer step"),
        (make_model, {"epochs": 0}, "must be a number above 0"),
        (make_model, {"outer_steps": 0}, "`outer_steps`"),
        (make_model, {"divergence_factor": 1}, "above 1.*divergence_factor=1"),
        (make_model, {"steps_per_epoch": 99}, "steps_per_epoch=99"),
        (make_model, {"initial_weights": "old"}, "initial_weights='old'"),
        (lambda: make_model(num_buckets=9), {}, "num_buckets=9, horizon=5"),
        (
            make_model,
            {
                "x": tf.data.Dataset.from_tensors((X, Y)).repeat(),
                "y": None,
                "validation_data": (X, Y),
            },
            "infinite length.*steps_per_epoch",
        ),
        (
            make_model,
            {"x": tf.data.Dataset.from_tensors((X, Y)), "y": None},
            "`validation_split` needs arrays",
        ),
    ],
)
def test_bad_input_gets_a_sentence_before_any_training(make, arguments, message):
    model = make()
    before = model.get_weights()
    data = {"x": X, "y": Y, **{k: arguments[k] for k in ("x", "y") if k in arguments}}
    rest = {k: v for k, v in arguments.items() if k not in data}
    arguments = {"batch_size": 10, "outer_steps": 3, "validation_split": 0.2, **rest}
    with pytest.raises(ValueError, match=message):
        keras_fds.fit(model, data["x"], data["y"], verbose=0, **arguments)
    for weight, value in zip(model.get_weights(), before):
        np.testing.assert_array_equal(weight, value)


def test_a_model_compiled_with_another_optimizer_is_refused():
    model = make_model()
    model.compile("adam", loss="mse")
    with pytest.raises(ValueError, match=r"HyperOptimizer.*Received: optimizer=.*Adam"):
        fit(model)


def test_an_unbatched_dataset_is_refused():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(ValueError, match="lack the batch axis"):
        fit(make_model(), dataset, None, validation_data=dataset.batch(10), validation_split=0.0)


def test_a_model_that_is_frozen_is_refused():
    model = make_model(compiled=False)
    model.trainable = False
    model.compile(make_model().optimizer, loss="mse")
    with pytest.raises(ValueError, match="frozen: there is nothing to train"):
        fit(model)


def test_an_optimizer_built_for_another_model_is_refused():
    first, second = make_model(), make_model(compiled=False)
    fit(first, outer_steps=1)
    second.compile(first.optimizer, loss=first.loss)
    with pytest.raises(ValueError, match="built for weights other.*new HyperOptimizer"):
        fit(second)


def test_several_replicas_are_refused_where_one_device_computes():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_model()
    with pytest.raises(ValueError, match="fit_online computes on one device.*2 replicas"):
        keras_fds.fit_online(model, *arrays(), verbose=0)
