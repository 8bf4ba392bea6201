"""The scales on which values move, and where they are searched without a range of their own."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

# The upper end of the range of exponential averages; all other ranges are unbounded.
LARGEST_DECAY = 0.999
DECAYS = ("momentum", "beta_1", "beta_2", "rho", "ema_momentum", "adam_beta_1", "adam_beta_2")
# Where values are searched when no range is given: scale and range, by the last part of the name.
SEARCHED = {
    "learning_rate": ("log", 1e-5, 10.0),
    "weight_decay": ("log", 1e-6, 10.0),
    **dict.fromkeys(DECAYS, ("complement", 0.0, 0.995)),
    **dict.fromkeys(("momentum", "beta_1", "adam_beta_1"), ("complement", 0.0, 0.98)),
    **dict.fromkeys(("beta_2", "adam_beta_2"), ("complement", 0.5, 0.999)),
    "epsilon": ("log", 1e-9, 1e-1),
    "clip_threshold": ("log", 0.1, 10.0),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue"), ("log", 1e-2, 1e2)),
    "l1": ("log", 1e-7, 1e-1),
    "l2": ("log", 1e-7, 1e-1),
    "learning_rate_multiplier": ("log", 1e-2, 1e2),
    "label_smoothing": ("linear", 0.0, 0.5),
    "rate": ("linear", 0.0, 0.9),  # Of dropout.
}
ABOVE_ZERO = ("epsilon", "clipnorm", "global_clipnorm", "clipvalue", "clip_threshold")
SEARCHED_ELSEWHERE = "log", 1e-4, 1e2

# scale: coordinate of a value, value at a coordinate, derivative of the value by its coordinate
SCALES: dict[str, tuple[Callable, Callable, Callable]] = {
    "linear": (lambda x: x, lambda u: u, np.ones_like),
    "log": (np.log, tf.exp, lambda x: x),
    "logit": (lambda x: np.log(x) - np.log1p(-x), tf.sigmoid, lambda x: x * (1 - x)),
    "complement": (lambda x: -np.log1p(-x), lambda u: -tf.math.expm1(-u), lambda x: 1 - x),
}
