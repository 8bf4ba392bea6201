"""All that is not public of Keras and TensorFlow, and nothing else."""
