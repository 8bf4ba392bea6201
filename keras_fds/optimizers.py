"""Inner optimizers that stock Keras lacks."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_fds")
class SGD(keras.optimizers.Optimizer):
    """Stochastic gradient descent whose velocity does not contain the learning rate.

    With gradient `g`, velocity `v`, weights `w`:

        v ← momentum · v + g + weight_decay · w
        w ← w − learning_rate · v

    This is the form of the paper and of PyTorch. Stock `keras.optimizers.SGD` scales the velocity
    by the learning rate and decouples the decay: the two differ when the learning rate changes in
    time.

    Args:
        learning_rate: A float or a `LearningRateSchedule`. Defaults to `0.01`.
        momentum: A float in [0, 1). Defaults to `0.0`.
        weight_decay: A float, the coupled (L2) decay. Defaults to `0.0`.
        **kwargs: Keras's other optimizer arguments (`clipvalue`, `clipnorm`, `name`, …).
            Clipping applies to `g` alone, before the decay is added.

    Raises:
        ValueError: When `momentum` is outside [0, 1).

    Example:

    >>> optimizer = keras_fds.optimizers.SGD(learning_rate=0.1, momentum=0.9, clipvalue=3.0)

    Reference: Micaelli & Storkey (2021), appendix on SGD with momentum and weight decay.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        name: str = "sgd",
        **kwargs: object,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs
        )
        if not (isinstance(momentum, (int, float)) and 0 <= momentum < 1):
            raise ValueError(f"`momentum` must lie in [0, 1). Received: momentum={momentum!r}")
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def _apply_weight_decay(self, variables):
        """Nothing: the decay belongs inside the velocity."""

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        direction = ops.cast(gradient, velocity.dtype)
        if self.weight_decay is not None and self._use_weight_decay(variable):
            direction = ops.add(direction, ops.multiply(variable, self.weight_decay))
        self.assign(velocity, ops.add(ops.multiply(velocity, self.momentum), direction))
        self.assign_sub(variable, ops.multiply(velocity, learning_rate))

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}
