"""Figure 3 of the paper on Fashion-MNIST: LeNet, one epoch; see `configs/figure_3_mnist.py`.

The step size of the paper's rule is not published for this figure. Beside that of Figure 1, 0.1,
`shared_small_steps` has half of it.

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
    small_steps = {"name": "learning_rate", "num_buckets": 10, "step_size": 0.05}
    config.methods.shared_small_steps = {"hyperparameters": (small_steps,)}
    return config
