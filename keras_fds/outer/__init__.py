"""Outer rules: from the observations so far, the next outer step."""

from keras_fds.outer.base import Observation, Problem, Proposal, Rule
from keras_fds.outer.bayesian_optimization import BayesianOptimization
from keras_fds.outer.descent import Descent
from keras_fds.outer.sign_descent import SignDescent

__all__ = [
    "BayesianOptimization",
    "Descent",
    "Observation",
    "Problem",
    "Proposal",
    "Rule",
    "SignDescent",
]
