"""Tells a HyperOptimizer its horizon and its model in stock `model.fit`.

Keras tells an optimizer neither; the callback list of `fit` knows both.
"""

import keras
import tensorflow as tf

from keras_fds.functional.learned_numbers import locate, substituted
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
            keras_models.build_model(model, keras.utils.unpack_x_y_sample_weight(specs))
        optimizer.multiplied(model)
        places = {name: locate(model, name) for name in optimizer.model_names}
        with substituted(places, optimizer.present_values(keras.config.floatx())):
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
            if "train_step" not in vars(model) and any("." in name for name in optimizer.names):
                _use_learned_numbers(model)
        stock(callback_list, model)

    set_model.of_keras_fds = True
    keras.callbacks.CallbackList.set_model = set_model
