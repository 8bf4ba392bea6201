"""Quickstart: seven learning rates, a momentum and a weight decay, on digits.

A small convolutional network on scikit-learn's 8x8 handwritten digits; needs no network data. The
settings are those of Micaelli & Storkey (2021), Figure 1, on a smaller problem.

    python -m trainers.search --config=configs/digits.py --workdir=runs/digits
    python -m trainers.train --config=configs/digits.py --schedules=runs/digits/schedules.json \
        --workdir=runs/digits-train
    python -m trainers.compare --config=configs/digits.py --workdir=runs/digits-compare

Expected: a search of a minute on two cores, test accuracy of 96% or more (mean of three seeds).
Measured: test accuracy of 99.0%; a tuned cosine decay has 99.0%, at three times the cost (means of
ten searches, see docs/reproductions.md).

A quick look: --config.budget=2.
"""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.task = config_dict.placeholder(str)  # A file of your own, see trainers/task.py.
    config.dataset = "digits"
    config.data_dir = config_dict.placeholder(str)  # None: the folder of TFDS.
    config.cache_dir = config_dict.placeholder(str)  # For decoded images; None: data_dir.
    config.normalisation = "channel"  # Or "none".
    config.augmentation = "none"  # Or "crop_flip", "crop_flip_cutout".
    config.network = "digits_cnn"
    config.initializer = "glorot_normal"
    config.dtype_policy = "float32"  # Or "mixed_bfloat16", "mixed_float16".

    # The search. In place of a budget there may be `outer_steps`, and a number of epochs for each
    # of them; the last number is for all that follow.
    config.batch_size = 128
    config.epochs = (30,)
    config.budget = 8.0  # In plain trainings.
    config.outer_steps = config_dict.placeholder(int)
    config.validation_split = 0.1
    config.validation_batch_size = 24  # Several batches give the loss's standard error.
    config.resample_validation = "once"  # The paper holds out others in every "outer_step".
    config.validation_training = False
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "clipvalue": 3.0}
    config.tangent_clipvalue = config_dict.placeholder(float)  # None: exact hypergradients.
    config.differentiation = "auto"  # Or "forward", "reverse".
    config.reverse_memory = config_dict.placeholder(int)  # Bytes; None: 1 GiB.
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 7},
        {"name": "momentum"},
        {"name": "weight_decay"},
    ]
    config.outer = {"name": "BayesianOptimization"}

    # Or "hd", "rtho", "marthe": one training in which the hyperparameters move. Or a black box by
    # Optuna: "random", "tpe", "gp", "cma_es".
    config.method = "search"
    config.tangent_decay = 0.99  # Of "marthe".
    config.outer_optimizer = {"name": "keras.optimizers.Adam", "learning_rate": 0.03}
    config.space = "decay"  # Of a black box. Or "values": all that a search learns.
    config.hyperband = False  # Whether a black box ends poor trials early.
    config.storage = config_dict.placeholder(str)  # URL of a database; None: a file.
    config.seconds = config_dict.placeholder(float)  # After which learning ends; None: no limit.

    # Training with what was learned, on the whole training split.
    config.train_epochs = 30
    config.train_seeds = 3
    return config
