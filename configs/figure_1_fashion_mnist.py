"""Figure 1 of the paper on Fashion-MNIST: LeNet, horizons of ten epochs, trained for 50.

The settings of `configs/figure_1.py` but for the network, augmentation, and exact tangents: then
reverse mode computes the same for a third of the cost.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/figure_1_fashion_mnist.py \
        --workdir=runs/figure_1-search
    python -m trainers.train --config=configs/figure_1_fashion_mnist.py \
        --schedules=runs/figure_1-search/schedules.json --workdir=runs/figure_1-train
    python -m trainers.compare --config=configs/figure_1_fashion_mnist.py \
        --workdir=runs/figure_1_fashion_mnist --seeds=3
    python -m trainers.figures --figure=1 --results=runs/figure_1_fashion_mnist

Expected: half an hour per seed on two cores, half of it the paper's rule; an estimate.
Measured: see docs/results/paper.md.
"""

from configs import figure_1


def get_config():
    config = figure_1.get_config()
    config.dataset = "fashion_mnist"
    config.augmentation = "none"
    config.network = "lenet"
    config.tangent_clipvalue = None
    config.differentiation = "reverse"
    config.reverse_memory = 2**31
    return config
