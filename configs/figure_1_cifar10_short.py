"""Figure 1 of the paper shortened for two cores: WRN-16-1 on CIFAR-10, horizons of one epoch.

The settings of `configs/figure_1.py` but for: horizons of one epoch in place of ten, stretched to
three in place of 50; batches of 128 in place of 256, so an epoch has 372 inner steps; exact
tangents; a smaller grid.

    python -m trainers.prepare_data --dataset=cifar10
    python -m trainers.search --config=configs/figure_1_cifar10_short.py \
        --workdir=runs/figure_1-search
    python -m trainers.train --config=configs/figure_1_cifar10_short.py \
        --schedules=runs/figure_1-search/schedules.json --workdir=runs/figure_1-train
    python -m trainers.compare --config=configs/figure_1_cifar10_short.py \
        --workdir=runs/figure_1_cifar10_short --seeds=3 --methods=default_rule,greedy,cosine
    python -m trainers.figures --figure=1 --results=runs/figure_1_cifar10_short

On a folder of images: --config.dataset=image_folder --config.data_dir=FOLDER.

Expected: half an hour per seed on two cores, an estimate.
Measured: see docs/results/paper.md.
"""

from configs import figure_1
from trainers import methods


def get_config():
    config = figure_1.get_config()
    config.batch_size = 128
    config.epochs = (1,)
    config.tangent_clipvalue = None
    config.differentiation = "reverse"
    config.reverse_memory = 2**32
    config.train_epochs = 3
    config.methods = {
        "paper": {},
        "greedy": methods.greedy(epochs=1, hyperparameters=figure_1.NUMBERS),
        "default_rule": methods.default_rule(epochs=1, budget=8.0),
        "cosine": methods.decay_grid(
            epochs=1,
            learning_rate=(0.03, 0.1, 0.3, 1.0),
            momentum=(0.9,),
            weight_decay=(0.0, 5e-4),
        ),
    }
    return config
