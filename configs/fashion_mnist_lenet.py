"""LeNet on Fashion-MNIST, everything learned from zero, for five epochs of training.

In reverse mode 28 buckets of the learning rate cost no more than the seven of Micaelli & Storkey
(2021), Figure 1. Momentum and weight decay have seven buckets, smoothed to nearly one value
(`smoothing_window=1`): chaos in the first epoch hides only its own slopes. The search begins with
short horizons, a fifth of an epoch, and ends at the five epochs that the schedules are for.
Gradients are clipped to a global norm of 1.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/fashion_mnist_lenet.py --workdir=runs/fashion
    python -m trainers.train --config=configs/fashion_mnist_lenet.py \
        --schedules=runs/fashion/schedules.json --workdir=runs/fashion-train --config.train_seeds=3

Expected: a search of about ten minutes on two cores, test accuracy of 89% or more.
Measured: test accuracy of 90.28%; a tuned cosine decay has 90.25% (means of ten searches, see
docs/reproductions.md).

A quick look: --config.outer_steps=2.
"""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.dataset = "fashion_mnist"
    config.data_dir = config_dict.placeholder(str)  # None: the folder of TFDS.
    config.network = "lenet"

    # The search. `epochs` holds one number of epochs per outer step; the last number is for all
    # outer steps that follow.
    config.batch_size = 128
    config.epochs = (0.2, 0.2, 0.5, 0.5, 2.5, 5)
    config.outer_steps = 9
    config.validation_split = 0.05
    config.validation_batch_size = 500
    config.resample_validation = "once"  # The paper holds out others in every "outer_step".
    config.validation_training = False
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "global_clipnorm": 1.0}
    config.tangent_clipvalue = config_dict.placeholder(float)  # None: exact hypergradients.
    config.differentiation = "auto"
    config.reverse_memory = 2**31  # Bytes: enough for the states of five epochs.
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 28, "initial": 0.0, "step_size": 0.02},
        {
            "name": "momentum",
            "num_buckets": 7,
            "initial": 0.0,
            "step_size": 0.5,
            "smoothing_window": 1.0,
        },
        {
            "name": "weight_decay",
            "num_buckets": 7,
            "initial": 0.0,
            "step_size": 2e-3,
            "smoothing_window": 1.0,
        },
    ]
    config.outer = {"name": "TrustRegionDescent", "tolerance": 0.02}

    # Training with what was learned, on the whole training split.
    config.train_epochs = 5
    config.train_seeds = 1
    return config
