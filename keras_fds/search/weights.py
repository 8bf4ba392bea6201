"""The weights that every outer step starts from."""

import warnings

from keras_fds.functional import draw_weights, pretrained_layers, seeded, values_from


class WeightInitializer:
    """Assigns the weights that an outer step starts from; `inputs` are the model's specs.

    `start` holds the values that every outer step starts from, or `None` if they are redrawn.
    """

    def __init__(self, model, mode, initial_weights, inputs):
        self.model, self.start = model, None
        self.outside = [(variable, variable.numpy()) for variable in mode.outside_variables]
        self.variables = variables = mode.trained_variables
        if callable(initial_weights):
            self.draw = lambda: values_from(model, inputs, initial_weights, variables)
        elif initial_weights == "fresh":
            self.draw = lambda: draw_weights(model, inputs, variables)
        elif initial_weights == "same":
            self.variables, self.draw = model.variables, lambda: self.start
            self.start = [variable.numpy() for variable in self.variables]
        else:
            raise ValueError(
                "`initial_weights` must be 'fresh', 'same' or a function that returns a new "
                f"model. Received: initial_weights={initial_weights!r}"
            )
        values = self.draw()  # Raises before any training when it cannot be done.
        optimizer = model.optimizer
        is_new = optimizer.search is None and not optimizer.iterations.numpy()
        if initial_weights == "fresh" and is_new:
            _tell_of_pretrained(pretrained_layers(model, variables, values))

    def remember(self):
        """Starts from the present weights from now on; returns them, `None` if they are redrawn."""
        self.outside = [(variable, variable.numpy()) for variable, _ in self.outside]
        if self.start is not None:
            self.start = [variable.numpy() for variable in self.variables]
        return self.start

    def __call__(self, seed):
        with seeded(seed):
            values = self.draw()
        for variable, value in (*self.outside, *zip(self.variables, values)):
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
