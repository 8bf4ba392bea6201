"""The weights that every outer step starts from."""

import warnings

from keras_fds.functional import draw_weights, pretrained_layers, seeded, values_from


class WeightInitializer:
    """Assigns the weights that an outer step starts from.

    Args:
        model: A built `keras.Model`.
        mode: The bound mode that trains it.
        initial_weights: See `fit`.
        inputs: The `tf.TensorSpec`s of the model's inputs.

    Attributes:
        start: The values that every outer step starts from; `None` if they are redrawn.
    """

    def __init__(self, model, mode, initial_weights, inputs):
        self.model, self.start = model, None
        self.outside = [(variable, variable.numpy()) for variable in mode.outside_variables]
        self.trained = trained = mode.trained_variables
        if callable(initial_weights):
            self.draw = lambda: values_from(model, inputs, initial_weights, trained)
        elif initial_weights == "fresh":
            self.draw = lambda: draw_weights(model, inputs, trained)
        elif initial_weights == "same":
            self.start = [variable.numpy() for variable in model.variables]
            self.draw = None
        else:
            raise ValueError(
                "`initial_weights` must be 'fresh', 'same' or a function that returns a new "
                f"model. Received: initial_weights={initial_weights!r}"
            )
        if self.draw is not None:
            values = self.draw()  # Raises before any training when it cannot be done.
        optimizer = model.optimizer
        if (
            initial_weights == "fresh"
            and optimizer.search is None
            and not optimizer.iterations.numpy()
        ):
            _tell_of_pretrained(pretrained_layers(model, trained, values))

    def remember(self):
        """Starts from the present weights from now on; returns them, `None` if they are redrawn."""
        self.outside = [(variable, variable.numpy()) for variable, _ in self.outside]
        if self.draw is None:
            self.start = [variable.numpy() for variable in self.model.variables]
        return self.start

    def __call__(self, seed):
        for variable, value in self.outside:
            variable.assign(value)
        if self.draw is None:
            for variable, value in zip(self.model.variables, self.start):
                variable.assign(value)
        else:
            with seeded(seed):
                values = self.draw()
            for variable, value in zip(self.trained, values):
                variable.assign(value)


def _tell_of_pretrained(layers):
    if layers:
        named = ", ".join(map(repr, layers[:4])) + (", …" if len(layers) > 4 else "")
        warnings.warn(
            f"The weights of {named} are not as their initialisers draw them: they seem to be "
            "trained. initial_weights='fresh' redraws them in every outer step. Freeze the "
            "layers that are to stay (`layer.trainable = False`), or pass initial_weights='same' "
            "to start every outer step from the present weights.",
            UserWarning,
            stacklevel=4,
        )
