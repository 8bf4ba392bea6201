"""Theorem 4.1 of the paper: a bound on the error of shared hypergradients, checked by simulation.

    python -m trainers.theorem_4_1 --config=configs/theorem_4_1.py

Expected: under a minute on one core.
Measured: the bound holds in all 20 settings, each without and with correlated noise. What it does
not cover is printed below them, and told in docs/concepts/noise.md.
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.settings = 20  # Random ones, each without and with correlated noise.
    config.samples = 4000  # Simulated seeds of each.
    config.seed = 0
    return config
