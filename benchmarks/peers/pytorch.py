"""The paper's recursion in PyTorch: products with the Hessian by double backward, one per tangent.

With velocity v, tangents Z of the weights w and C of the velocity, and the Hessian H:

    v ← β v + g + ξ w;  C ← β C + H Z + ξ Z + [β-bucket] v + [ξ-bucket] w
    w ← w − α v;        Z ← Z − α C − [α-bucket] v
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import problems


class Engine:
    """See `benchmarks.peers`."""

    def __init__(self, problem, dtype):
        torch.set_num_threads(2)
        self.problem, self.dtype = problem, getattr(torch, dtype)
        self.apply, weights = _NETWORKS[problem.network.split("_")[0]], problems.weights(problem)
        self.structure = [(kind, [len(w) for w in layers]) for kind, layers in weights.items()]
        flat = [w for layers in weights.values() for layer in layers for w in layer]
        self.initial = [torch.tensor(_to_torch(w), dtype=self.dtype) for w in flat]
        x, y, *held_out = problem.data()
        self.x, self.x_validation = (
            torch.tensor(np.moveaxis(a, -1, -3), dtype=self.dtype) for a in (x, held_out[0])
        )
        self.y, self.y_validation = torch.tensor(y), torch.tensor(held_out[1])
        self.reset()

    def reset(self):
        self.w = [w.clone().requires_grad_() for w in self.initial]
        self.v = [torch.zeros_like(w) for w in self.initial]
        shape = [self.problem.num_tangents]
        self.z, self.c = (
            [torch.zeros([*shape, *w.shape], dtype=self.dtype) for w in self.w] for _ in "zc"
        )

    def loss(self, x, y):
        weights, parameters = {}, iter(self.w)
        for kind, sizes in self.structure:
            weights[kind] = [[next(parameters) for _ in range(size)] for size in sizes]
        return F.cross_entropy(self.apply(weights, x), y)

    def step(self, t):
        gradients = torch.autograd.grad(self.loss(self.x[t], self.y[t]), self.w, create_graph=True)
        products = [
            torch.autograd.grad(gradients, self.w, [z[k] for z in self.z], retain_graph=True)
            for k in range(self.problem.num_tangents)
        ]
        a, b, decay = self.problem.values_at(t)
        of_a, of_b, of_decay = torch.tensor(self.problem.one_hot_at(t), dtype=self.dtype)
        with torch.no_grad():
            for i, g in enumerate(gradients):
                w, v, z, c = self.w[i], self.v[i], self.z[i], self.c[i]
                ones = [-1, *(1 for _ in w.shape)]
                c.mul_(b).add_(torch.stack([p[i] for p in products])).add_(z, alpha=decay)
                c.add_(of_b.reshape(ones) * v).add_(of_decay.reshape(ones) * w)
                v.mul_(b).add_(g).add_(w, alpha=decay)
                z.add_(c, alpha=-a).sub_(of_a.reshape(ones) * v)
                w.sub_(v, alpha=a)

    def hypergradients(self):
        self.reset()
        for t in range(self.problem.horizon):
            self.step(t)
        loss = self.loss(self.x_validation, self.y_validation)
        gradients = torch.autograd.grad(loss, self.w)
        sums = sum((z * g).flatten(1).sum(1) for z, g in zip(self.z, gradients))
        return self.problem.means(sums.numpy())

    def steps(self, count):
        for i in range(count):
            self.step(self.problem.horizon - 1 - i % 2)


def _to_torch(weight):
    return {4: lambda w: w.transpose(3, 2, 0, 1), 2: np.transpose}.get(weight.ndim, np.array)(
        weight
    ).copy()


def _lenet(weights, x):
    (first, second), dense = weights["Conv2D"], weights["Dense"]
    x = F.max_pool2d(F.relu(F.conv2d(x, *first, padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, *second)), 2)
    return _dense(dense, x.permute(0, 2, 3, 1).flatten(1))


def _mlp(weights, x):
    return _dense(weights["Dense"], x.permute(0, 2, 3, 1).flatten(1))


def _dense(layers, x):
    for layer in layers[:-1]:
        x = F.relu(F.linear(x, *layer))
    return F.linear(x, *layers[-1])


def _wide_resnet(weights, x):
    convolutions = iter(kernel for (kernel,) in weights["Conv2D"])
    normalizations = iter(weights["BatchNormalization"])

    def activation(x):
        gamma, beta = next(normalizations)
        return F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-5))

    x = F.conv2d(x, next(convolutions), padding=1)
    blocks = (len(weights["BatchNormalization"]) - 1) // 2
    for block in range(blocks):
        stride = 2 if block and block % (blocks // 3) == 0 else 1
        activated, shortcut = activation(x), x
        if stride == 2:
            shortcut = F.conv2d(activated, next(convolutions), stride=stride)
        x = activation(F.conv2d(activated, next(convolutions), stride=stride, padding=1))
        x = F.conv2d(x, next(convolutions), padding=1) + shortcut
    return _dense(weights["Dense"], activation(x).mean((2, 3)))


_NETWORKS = {"lenet": _lenet, "mlp": _mlp, "wrn": _wide_resnet}
