"""All uses of Keras's and TensorFlow's internals, and nothing else."""
