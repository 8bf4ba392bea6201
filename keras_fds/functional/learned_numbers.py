"""Learned numbers: where objects keep them, and the tensors that take their place.

A learned number is an attribute of some object: the optimizer (`momentum`), the compiled loss
(`loss.label_smoothing`), a layer (`dense.kernel_regularizer.l2`) or the model itself
(`model.temperature`). While a training step is traced, a tensor takes its place. The attribute may
also be an array. A pattern that matches several layers gives them one value, or each its own.
"""

import contextlib
import fnmatch
import inspect
import operator
import re

import keras
import numpy as np
import tensorflow as tf

from keras_fds.internals import keras_layers, keras_models

# The name of a number that no layer keeps but every layer has: a factor on its learning rate.
MULTIPLIER = "learning_rate_multiplier"
# Vectors of factors on the training loss of examples.
EXAMPLE_WEIGHTS = ("class_weight", "sample_weight")


class LearnedScalar:
    """A tensor that stands where a Keras object keeps a Python number, or an array.

    It converts to a tensor and computes like one. Compared with a number in Python, it is greater
    and different, so no branch is switched off.
    """

    def __init__(self, tensor, name="number"):
        self._tensor, self.name = tensor, name
        self.used = False

    @property
    def tensor(self):
        self.used = True
        return self._tensor

    @property
    def dtype(self):
        return self._tensor.dtype

    @property
    def shape(self):
        return self._tensor.shape

    def __bool__(self):
        return True

    def __eq__(self, other):
        return self is other

    def __ne__(self, other):
        return self is not other

    def __gt__(self, other):
        return True

    def __lt__(self, other):
        return False

    __ge__, __le__ = __gt__, __lt__
    __hash__ = object.__hash__

    def __repr__(self):
        return f"<learned number {self.name!r}>"

    def _as_number(self, *_):
        raise ValueError(
            f"{self.name!r} cannot be learned: it is used as a Python number, through which no "
            "derivative passes. Compute with it in TensorFlow, or leave it out."
        )

    __float__ = __int__ = __index__ = _as_number

    # What arrays have.
    @property
    def ndim(self):
        return len(self.shape)

    def __getitem__(self, key):
        return self.tensor[key]

    def __len__(self):
        return len(self.tensor)

    def __iter__(self):
        return iter(tf.unstack(self.tensor))


def _delegate(name):
    function = getattr(operator, name)
    setattr(LearnedScalar, f"__{name}__", lambda self, other: function(self.tensor, other))
    setattr(LearnedScalar, f"__r{name}__", lambda self, other: function(other, self.tensor))


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    _delegate(_name)
LearnedScalar.__neg__ = lambda self: -self.tensor
LearnedScalar.__abs__ = lambda self: abs(self.tensor)
# Unlike `__tf_tensor__`, it is told the dtype of the other operand.
tf.register_tensor_conversion_function(
    LearnedScalar,
    lambda value, dtype=None, name=None, as_ref=False: (
        value.tensor if dtype is None else tf.cast(value.tensor, dtype)
    ),
)


# --------------------------------------------------------------------------------- where they live
def is_number(value):
    """Whether a value is a number that a tensor can replace."""
    if isinstance(value, (bool, np.bool_, keras.Variable)):
        return False
    if tf.is_tensor(value):
        return value.shape.rank == 0 and value.dtype.is_floating
    return isinstance(value, (int, float, np.number))


def is_array(value):
    """Whether a value is an array of numbers that a tensor can replace."""
    if isinstance(value, keras.Variable):
        return False
    if tf.is_tensor(value):
        return bool(value.shape.rank) and value.dtype.is_floating
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(v, (float, np.floating)) for v in value)
    return isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind == "f"


def _follow(owner, path):
    """`[(attributes, name)]` of the number or array at a dotted path from an object, or nothing."""
    *steps, last = path
    for step in steps:
        owner = getattr(owner, step, None)
    if not hasattr(owner, "__dict__"):
        return []
    # A loss such as CategoricalCrossentropy passes its numbers on to a function.
    for attributes in (keras_models.loss_arguments(owner) or {}, vars(owner)):
        if is_number(attributes.get(last)) or is_array(attributes.get(last)):
            return [(attributes, last)]
    is_default = is_number(inspect.getattr_static(type(owner), last, None))  # In the class's body.
    return [(vars(owner), last)] if is_default else []


class _LossWeight(dict):
    """The weight of one output's compiled loss, as a dictionary with that one key."""

    def __init__(self, losses, position):
        self.losses, self.position, self.stock = losses, position, losses[position]
        weight = self.stock.loss_weights
        super().__init__(weight=1.0 if weight is None else weight)

    def __setitem__(self, key, value):
        learned = isinstance(value, LearnedScalar)
        changed = self.stock._replace(loss_weights=value)
        self.losses[self.position] = changed if learned else self.stock


def locate(model, name):
    """Where a built model keeps the number with a dotted name: `[(dictionary, key), …]`.

    Names are such as `"loss.label_smoothing"`, `"loss_weights.output"`, `"model.temperature"`,
    `"dense.kernel_regularizer.l2"`, `"conv_*.kernel_regularizer.l2"`.
    """
    root, *path = name.split(".")
    losses = keras_models.compiled_losses(model)
    found = []
    if root == "loss":
        owners = {each.name: each.loss for each in losses}
        if len(path) > 1 and path[0] in owners:
            _check_own_loss(name, path[0], owners)
            owners, path = {path[0]: owners[path[0]]}, path[1:]
        found = [place for owner in owners.values() for place in _follow(owner, path)]
    elif root == "loss_weights":
        if len(path) == 1:
            found = [
                (_LossWeight(losses, i), "weight")
                for i, each in enumerate(losses)
                if fnmatch.fnmatchcase(each.name, path[0])
            ]
    elif root == "model":
        found = _follow(model, path)
    in_layers = _places_in_layers(model, name)
    here, there = ({id(attributes) for attributes, _ in f} for f in (found, in_layers))
    if here and there - here:
        raise ValueError(
            f"{name!r} is ambiguous: the layer {root!r} has such a number, and so has the model or "
            "its loss. Give the layer another name."
        )
    unique = {id(place[0]): place for place in found or in_layers}
    if not unique:
        raise ValueError(
            f"The model {model.name!r} has no number {name!r} that can be learned. {_hint(model)}"
        )
    return list(unique.values())


def _places_in_layers(model, name):
    parts, found = name.split("."), []
    for i in range(1, len(parts)):  # The names of layers may also contain dots.
        owners, path = _layers_called(model, ".".join(parts[:i])), parts[i:]
        _check_random_mask(name, owners, path)
        places = [place for owner in owners for place in _follow(owner, path)]
        if places:
            _check_not_shared(model, name, owners, path)
        found += places
    return found


def _check_not_shared(model, name, owners, path):
    """Raises a `ValueError` for an object that also stands where the name does not point."""
    inside = {id(layer) for owner in owners for layer in keras_layers.layers_of(owner)}
    others = [layer for layer in keras_layers.layers_of(model) if id(layer) not in inside]
    for owner in owners:
        part = owner
        for step in path[:-1]:
            part = getattr(part, step, None)
            if part is None or isinstance(part, keras.layers.Layer):
                continue
            sharing = [
                layer.name for layer in others if any(v is part for v in vars(layer).values())
            ]
            if sharing:
                raise ValueError(
                    f"{name!r} cannot be learned by itself: {owner.name!r} shares its "
                    f"{type(part).__name__} object with {', '.join(map(repr, sharing))}, so all of "
                    "them have the same number. Give each layer an object of its own, or learn "
                    "the number by a pattern that matches all their names, such as "
                    f"'*.{'.'.join(path)}'."
                )


def _layers_called(model, pattern):
    return [
        each for each in keras_layers.layers_of(model) if fnmatch.fnmatchcase(each.name, pattern)
    ]


def _check_own_loss(name, output, losses):
    sharing = [other for other, loss in losses.items() if loss is losses[output]]
    if len(sharing) > 1:
        raise ValueError(
            f"{name!r} cannot be learned: the outputs {', '.join(map(repr, sharing))} share one "
            "loss object. Give each its own in `compile(loss=...)`, or learn the number for all, "
            f"{name.replace(f'.{output}.', '.')!r}."
        )


def _check_random_mask(name, owners, path):
    for owner in owners:
        kinds = (keras.layers.Dropout, keras.layers.AlphaDropout)
        if path == ["rate"] and isinstance(owner, kinds):
            raise ValueError(
                f"{name!r} cannot be learned: which units a {type(owner).__name__} layer drops "
                "jumps with its rate. Use GaussianDropout, whose noise moves smoothly with it."
            )


def _hint(model):
    losses = keras_models.compiled_losses(model)
    known = [f"loss_weights.{each.name}" for each in losses] if len(losses) > 1 else []
    for each in losses:
        prefix = f"loss.{each.name}" if len(losses) > 1 else "loss"
        known += [
            f"{prefix}.{key}"
            for key, value in (keras_models.loss_arguments(each.loss) or {}).items()
            if is_number(value) and not isinstance(value, int)
        ]
    for layer in keras_layers.layers_of(model):
        for part in ("kernel_regularizer", "bias_regularizer", "activity_regularizer"):
            numbers = vars(getattr(layer, part, None) or object).items()
            known += [f"{layer.name}.{part}.{k}" for k, v in numbers if is_number(v)]
    return (
        "A name is 'loss.<attribute>', 'loss_weights.<output>', 'model.<attribute>' or "
        "'<layer>.<attribute>', where <layer> may hold '*', and the attribute a number"
        + (f"; here for example {', '.join(known[:6])}." if known else ".")
    )


def held_values(model, name, each=False):
    """What a built model holds where a name points to: a float64 array, of a number `()`.

    With `each` it has one value for every place that the name points to.
    """
    if is_multiplier(name):
        held = [1.0] * len(multiplied_variables(model, name, each))
    else:
        held = [_held(attributes, key) for attributes, key in locate(model, name)]
    shapes = {np.shape(value) for value in held}
    if len(shapes) > 1 or (each and shapes != {()}):
        kind = "numbers" if each else "arrays of one shape"
        raise ValueError(
            f"{name!r} must match {kind} only. Received: the shapes "
            f"{', '.join(map(str, sorted(shapes)))}"
        )
    return np.array(held if each else held[0], "float64")


def _held(attributes, key):
    value = attributes.get(key)
    return 0.0 if value is None else keras.ops.convert_to_numpy(value)  # In the class's body.


@contextlib.contextmanager
def substituted(places_by_name, tensors, each=()):
    """While open, tensors by name stand in the places that `locate` tells.

    In the places of the names in `each` stand the elements of their tensor, one after the other.
    Yields `{name: LearnedScalar}`; `used` tells whether the number was used.
    """
    scalars, stock = {}, []
    try:
        for name, found in places_by_name.items():
            for i, (attributes, key) in enumerate(found):
                tensor, label = tensors[name], name
                if name in each:
                    tensor, label = tensor[i], f"{name}[{i}]"
                scalar = scalars.setdefault(label, LearnedScalar(tensor, label))
                stock.append((attributes, key, attributes.get(key)))
                attributes[key] = scalar
        yield scalars
    except TypeError as error:  # TensorFlow's, when an operation's attribute is no number.
        for scalar in scalars.values():
            if repr(scalar) in str(error):
                scalar._as_number()
        raise
    finally:
        for attributes, key, value in reversed(stock):
            if value is None:
                del attributes[key]
            else:
                attributes[key] = value


def check_used(scalars):
    """Raises a `ValueError` for a number that took no part in the computation."""
    for name, scalar in scalars.items():
        if not scalar.used:
            raise ValueError(
                f"{name!r} cannot be learned: no training step uses it, so its hypergradient would "
                "always be zero. Use it in training, or leave it out."
            )


def multiplied_variables(model, name, each=False):
    """The trainable variables whose rate `"<layer>.learning_rate_multiplier"` multiplies.

    A list of lists: with `each` one for every layer that the name matches and that has weights of
    its own, else one for all of them.
    """
    pattern = name.removesuffix(f".{MULTIPLIER}")
    owners = _layers_called(model, pattern)
    if each:
        of_owners = [keras_layers.own_variables(owner) for owner in owners]
    else:
        of_owners = [[v for owner in owners for v in owner.trainable_variables]]
    groups, seen = [], set()
    for variables in of_owners:
        new = {id(v): v for v in variables if v.trainable and id(v) not in seen}
        seen |= new.keys()
        groups += [list(new.values())] if new else []
    if not groups:
        raise ValueError(
            f"{name!r} cannot be learned: no layer of {model.name!r} with trainable weights is "
            f"called {pattern!r}. Its layers are "
            f"{', '.join(repr(each.name) for each in keras_layers.layers_of(model)[1:])}."
        )
    return groups


def is_multiplier(name):
    """Whether a name is that of a factor on the learning rate of layers."""
    return re.fullmatch(rf".+\.{MULTIPLIER}", name) is not None
