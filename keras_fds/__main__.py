"""`python -m keras_fds --version`: the version, with those of Keras and TensorFlow beside it."""

import argparse

import keras
import tensorflow as tf

import keras_fds


def main():
    """The program."""
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    parser = argparse.ArgumentParser(
        prog="python -m keras_fds",
        description="Learns hyperparameter schedules of compiled Keras models. The programs are "
        "trainers.search, trainers.train and trainers.prepare_data.",
    )
    parser.add_argument(
        "--version", action="version", version=f"keras_fds {keras_fds.__version__} ({versions})"
    )
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()
