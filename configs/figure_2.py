"""Figure 2 of the paper: how noisy the hypergradients of single steps are, LeNet on SVHN.

    python -m trainers.prepare_data --dataset=svhn_cropped
    python -m trainers.search --config=configs/figure_2.py --workdir=runs/figure_2-search
    python -m trainers.train --config=configs/figure_2.py \
        --schedules=runs/figure_2-search/schedules.json --workdir=runs/figure_2-train
    python -m trainers.fluctuation --config=configs/figure_2.py --seeds=100 --horizon=250 \
        --workdir=runs/figure_2
    python -m trainers.figures --figure=2 --results=runs/figure_2

Expected: under a minute per seed on two cores, an estimate.
Published: mean squared error .072 without sharing, least (.038) at 50 steps a bucket, .064 at 250;
greedy .39.
Measured: the twins `configs/figure_2_cifar10.py` and the perceptron of docs/concepts/noise.md; SVHN
was not there.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.dataset = "svhn_cropped"
    config.network = "lenet_valid"
    config.batch_size = 128
    config.epochs = (1,)
    config.validation_split = 2000 / 73257  # 2000 images.
    config.validation_batch_size = 500
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "clipvalue": 1.0}
    config.reverse_memory = 2**32
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 250},
        {"name": "momentum"},
        {"name": "weight_decay"},
    ]
    config.train_epochs = 1
    return config
