"""Keras models and optimizers as pure functions."""

from keras_fds.functional.example_weights import example_places
from keras_fds.functional.float64_twin import float64, float64_twin, in_float64
from keras_fds.functional.learnable import check_hyperparameter, check_optimizer
from keras_fds.functional.learned_numbers import (
    EXAMPLE_WEIGHTS,
    held_values,
    is_multiplier,
    multiplied_variables,
)
from keras_fds.functional.model import StatelessModel, forget_compiled, kept_with
from keras_fds.functional.optimizer import (
    StatelessOptimizer,
    build_optimizer,
    fresh_slots,
    multipliers_of,
    replace_variable,
    scalars_of,
    steps_taken,
    with_hyperparameters,
)
from keras_fds.functional.rebuild import (
    build_compiled,
    draw_weights,
    keeping_random_state,
    pretrained_layers,
    seeded,
    values_from,
)
from keras_fds.functional.stock_fit import AnnounceHorizon, announce_horizons
from keras_fds.functional.vectors import settle_vectors
