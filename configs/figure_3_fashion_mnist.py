"""Figure 3 of the paper on Fashion-MNIST: LeNet, one epoch; see `configs/figure_3_mnist.py`.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/figure_3_fashion_mnist.py \
        --workdir=runs/figure_3-search
    python -m trainers.train --config=configs/figure_3_fashion_mnist.py \
        --schedules=runs/figure_3-search/schedules.json --workdir=runs/figure_3-train
    python -m trainers.compare --config=configs/figure_3_fashion_mnist.py \
        --workdir=runs/figure_3_fashion_mnist
    python -m trainers.figures --figure=3 --results=runs/figure_3_fashion_mnist

Expected: about six minutes per seed on two cores.
Measured: see docs/results/paper.md.
"""

from configs import figure_3_mnist


def get_config():
    config = figure_3_mnist.get_config()
    config.dataset = "fashion_mnist"
    return config
