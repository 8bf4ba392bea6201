"""Independent implementations of the paper's recursion, to compare with: PyTorch and JAX.

Each offers `Engine(problem, dtype)` for a `benchmarks.problems.Problem`, with

    hypergradients() -> {name: float64 array [num_buckets]}    over the whole horizon
    steps(count)                                               steps with every tangent open
"""
