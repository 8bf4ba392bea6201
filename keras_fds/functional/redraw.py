"""New weights for a model in place, from the initialisers of its layers.

For models that Keras cannot rebuild from a config. Each layer's `build` runs again, while
`add_weight` returns the existing variables and records their initialisers.
"""

import keras
import tensorflow as tf

from keras_fds.internals import keras_layers


def redrawn_values(model, wanted):
    """`{id of a variable: a newly drawn value}`, for the wanted variables of a built model.

    Draws from Python's `random` in the order of the layers, as Keras does when it makes them.
    """
    wanted = {id(variable): variable for variable in wanted}
    values = {}
    for layer in keras_layers.layers_of(model):
        generators = [g for g in keras_layers.seed_generators_of(layer) if id(g.state) in wanted]
        own = [v for v in keras_layers.own_variables(layer) if id(v) in wanted]
        if own:
            values.update(_of_layer(layer, own))
        for generator in generators:
            values[id(generator.state)] = keras_layers.fresh_seed_state(generator)
    missing = [variable for key, variable in wanted.items() if key not in values]
    if missing:
        raise ValueError(f"The weight {missing[0].path!r} belongs to no layer that could redraw it")
    return values


def _of_layer(layer, own):
    found = {}
    try:
        calls = keras_layers.replayed_build(layer)
    except Exception as error:
        raise ValueError(
            f"The {keras_layers.named(layer)} cannot be built a second time: "
            f"{type(error).__name__}: {error}"
        ) from error
    for variable, shape, dtype, initializer in calls:
        if any(variable is mine for mine in own):
            found[id(variable)] = _drawn(initializer, shape, dtype)
    for variable in own:
        if id(variable) not in found:
            raise ValueError(
                f"The {keras_layers.named(layer)} makes its weight "
                f"{variable.name!r} outside of `build`, so its initialiser cannot be seen"
            )
    return found


def _drawn(initializer, shape, dtype):
    if initializer is None:
        initializer = "glorot_uniform" if tf.as_dtype(dtype).is_floating else "zeros"
    if not callable(initializer) or isinstance(initializer, type):
        initializer = keras.initializers.get(initializer)
    if isinstance(initializer, keras.initializers.Initializer):
        initializer = initializer.clone()  # Which draws a seed of its own.
    return initializer(shape, dtype=dtype)
