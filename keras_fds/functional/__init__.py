"""Keras models and optimizers as pure functions."""
