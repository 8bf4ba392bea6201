"""Learned schedules for Keras: forward-mode hypergradients over long horizons."""

from keras_fds import callbacks, differentiation, export, noise, optimizers, outer
from keras_fds.gradcheck import HypergradientCheck, check_hypergradients
from keras_fds.hyper_optimizer import HyperOptimizer
from keras_fds.hyperparameters import Hyperparameter
from keras_fds.schedules import BucketedSchedule, load_schedules, save_schedules
from keras_fds.training import fit, fit_online, hypergradients

__version__ = "0.2.0"

__all__ = [
    "BucketedSchedule",
    "HyperOptimizer",
    "HypergradientCheck",
    "Hyperparameter",
    "callbacks",
    "check_hypergradients",
    "differentiation",
    "export",
    "fit",
    "fit_online",
    "hypergradients",
    "load_schedules",
    "noise",
    "optimizers",
    "outer",
    "save_schedules",
]
