"""Tells a HyperOptimizer its horizon and its model in stock `model.fit`.

Keras tells an optimizer neither; the callback list of `fit` knows both.
"""

import keras
import tensorflow as tf

from keras_fds.functional.example_weights import weighted
from keras_fds.functional.learned_numbers import EXAMPLE_WEIGHTS, locate, substituted
from keras_fds.functional.vectors import settle_vectors
from keras_fds.internals import keras_models


class AnnounceHorizon(keras.callbacks.Callback):
    """Stretches the learned schedules to the horizon of a stock `model.fit`."""

    def on_train_begin(self, logs=None):
        self._announced = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._announced:
            return
        self._announced = True
        steps, optimizer = self.params.get("steps"), self.model.optimizer
        if steps:
            # A run resumed at a later epoch is that far along its horizon.
            optimizer.begin_schedules(steps * self.params["epochs"], elapsed=epoch * steps)
        else:
            tf.get_logger().warning(
                "The number of batches per epoch is not known, so the learned schedules keep their "
                f"horizon of {optimizer.horizon} steps. Pass `steps_per_epoch` to stretch them."
            )


def _use_learned_numbers(model):
    """Lets a model's stock `train_step` compute with the learned numbers of model and loss."""
    stock = model.train_step

    def train_step(data):
        optimizer = model.optimizer
        if not hasattr(optimizer, "begin_schedules"):
            return stock(data)
        with tf.init_scope():
            specs = keras.tree.map_structure(tf.type_spec_from_value, data, none_is_leaf=False)
            specs = keras.utils.unpack_x_y_sample_weight(specs)
            keras_models.build_model(model, specs)
            settle_vectors(model, specs)
        optimizer.multiplied(model)
        names, values = optimizer.model_names, optimizer.present_values(keras.config.floatx())
        batch = keras.utils.unpack_x_y_sample_weight(data)
        if "sample_weight" in names and batch[2] is None:
            model.train_function = None  # It would stay half made.
            raise ValueError(
                "'sample_weight' is learned, and model.fit does not tell an optimizer which "
                "example is which. Pass the learned weights yourself, `sample_weight=model."
                "optimizer.values['sample_weight'][-1]` (of groups: `[-1][groups]`), or "
                "`sample_weight=np.ones(len(x))` to train without them."
            )
        if "class_weight" in names:
            batch = weighted(batch, None, {"class_weight": values["class_weight"]})
            data = keras.utils.pack_x_y_sample_weight(*batch)
        places = {name: locate(model, name) for name in names if name not in EXAMPLE_WEIGHTS}
        with substituted(places, values, optimizer.each_names):
            return stock(data)

    train_step.of_keras_fds = True
    vars(model)["train_step"] = train_step
    model.train_function = None  # `train_on_batch` may have made one of the stock step.


def announce_horizons():
    """Lets Keras's callback lists tell a `HyperOptimizer` its horizon; once, when one is made."""
    stock = keras.callbacks.CallbackList.set_model
    if hasattr(stock, "of_keras_fds"):
        return

    def set_model(callback_list, model):
        optimizer = getattr(model, "optimizer", None)
        announced = any(isinstance(c, AnnounceHorizon) for c in callback_list.callbacks)
        if hasattr(optimizer, "begin_schedules") and not announced:
            callback_list.callbacks.append(AnnounceHorizon())
            of_model = optimizer.model_names or optimizer.multiplied_names
            if "train_step" not in vars(model) and of_model:
                _use_learned_numbers(model)
        stock(callback_list, model)

    set_model.of_keras_fds = True
    keras.callbacks.CallbackList.set_model = set_model
