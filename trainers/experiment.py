"""What the programs share: a model from a config, a table, a quiet terminal.

TensorFlow is imported inside functions: the import takes seconds and logs, and a wrong flag should
be reported at once.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import sys
import threading

from absl import app, flags, logging
from ml_collections import config_flags

from trainers import devices, quiet_tensorflow, workdirs

CONFIG = config_flags.DEFINE_config_file(
    "config", lock_config=True, help_string="The experiment, a file like those of configs/."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove older results from --workdir first.")
# Of programs that repeat a run; each has its own default.
flags.adopt_module_key_flags(devices)
REQUIRED = ("config", "workdir")

# The fields of a config, and those of them that count something.
_FIELDS = (
    "seed",
    "dataset",
    "data_dir",
    "network",
    "batch_size",
    "epochs",
    "budget",
    "outer_steps",
    "validation_split",
    "validation_batch_size",
    "resample_validation",
    "validation_training",
    "optimizer",
    "tangent_clipvalue",
    "differentiation",
    "reverse_memory",
    "hyperparameters",
    "outer",
    "train_epochs",
    "train_seeds",
)
# The factor by which a step shrinks the tangents; MARTHE's is a field of its own.
_TANGENT_DECAYS = {"hd": 0.0, "rtho": 1.0, "marthe": None}
SAMPLERS = ("random", "tpe", "gp", "cma_es")  # See `trainers.black_box`.
METHODS = ("search", *_TANGENT_DECAYS, *SAMPLERS)
SPACES = ("values", "decay")
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_LOSS_SCALE = 1024.0  # Of mixed_float16, whose least positive number is 6e-8.
_COUNTS = ("batch_size", "validation_batch_size", "train_epochs", "train_seeds")


def check_config(config):
    """Checks that a config has all fields, and that its numbers are possible.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`.

    Raises:
        ValueError: A field is missing or has an impossible value, or the file could not be loaded.
    """
    try:
        missing = [name for name in _FIELDS if not hasattr(config, name)]
    except OSError as error:  # The flag raises it when the config is used.
        raise ValueError(f"--config cannot be loaded. {error}") from error
    if missing:
        raise ValueError(
            f"The config lacks {', '.join(missing)}. Add them as in configs/digits.py."
        )
    for name in _COUNTS:
        _check_count(name, config[name])
    for name in ("reverse_memory", "outer_steps"):
        if config[name] is not None:
            _check_count(name, config[name])
    if not (isinstance(config.seed, int) and 0 <= config.seed < 2**32):
        raise ValueError(
            f"`seed` must be a whole number from 0 to 2^32 - 1. Received: seed={config.seed!r}"
        )
    if config.differentiation not in ("auto", "forward", "reverse", "adjoint"):
        raise ValueError(
            "`differentiation` must be 'auto', 'forward' or 'reverse'. "
            f"Received: {config.differentiation!r}"
        )
    if config.tangent_clipvalue is not None and config.differentiation not in ("auto", "forward"):
        raise ValueError(
            "`tangent_clipvalue` clips tangents, which exist in forward mode only. "
            f"Received: differentiation={config.differentiation!r}"
        )
    if option(config, "normalisation") not in ("channel", "none"):
        raise ValueError(
            "`normalisation` must be 'channel' or 'none'. "
            f"Received: normalisation={option(config, 'normalisation')!r}"
        )
    for name, known in (
        ("method", METHODS),
        ("space", SPACES),
        ("dtype_policy", DTYPE_POLICIES),
    ):
        if option(config, name) not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, known))}. "
                f"Received: {name}={config[name]!r}"
            )
    if is_online(config) and config.validation_training:
        raise ValueError(
            "`validation_training` is for method='search'. Leave it out. "
            f"Received: method={config.method!r}"
        )
    if option(config, "task"):
        from trainers import task

        task.load(config.task)
        for name in ("augmentation", "initializer"):
            if option(config, name) != workdirs.OPTIONAL_FIELDS[name]:
                raise ValueError(
                    f"`{name}` is for the networks here. Put it into make_model() of the task. "
                    f"Received: {name}={option(config, name)!r}"
                )
    elif option(config, "augmentation") != "none":
        from trainers import augmentation

        augmentation.check(config.augmentation)


def option(config, name):
    """The value of one of `workdirs.OPTIONAL_FIELDS`."""
    value = config.get(name, workdirs.OPTIONAL_FIELDS[name])
    return value.to_dict() if hasattr(value, "to_dict") else value


def task_name(config):
    """The name of a config's task, or of its data set."""
    task = option(config, "task")
    return (
        pathlib.PurePath(task.removesuffix(".py")).name.split(".")[-1] if task else config.dataset
    )


def described(config):
    """What is trained, for titles."""
    if option(config, "task"):
        return task_name(config)
    return f"{config.network} on {config.dataset}"


def is_online(config):
    """Whether hyperparameters move within one training, see `trainers.online`."""
    return option(config, "method") in _TANGENT_DECAYS


def is_black_box(config):
    """Whether Optuna chooses, see `trainers.black_box`."""
    return option(config, "method") in SAMPLERS


def _check_count(name, value):
    if not (isinstance(value, int) and value >= 1):
        raise ValueError(
            f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}"
        )


def lengths(config):
    """`epochs`, `budget` and `outer_steps` of `keras_fds.fit` as a config describes them.

    With `outer_steps` the last number of `config.epochs` is for all outer steps that follow.
    """
    epochs = config.epochs if isinstance(config.epochs, (tuple, list)) else [config.epochs]
    if not epochs or not all(isinstance(n, (int, float)) and n > 0 for n in epochs):
        raise ValueError(
            f"`epochs` must be one or more positive numbers. Received: epochs={config.epochs!r}"
        )
    if config.outer_steps is None:
        if len(epochs) > 1:
            raise ValueError(
                "Several `epochs` are those of `outer_steps`: give their number. "
                f"Received: epochs={config.epochs!r}, outer_steps=None"
            )
        return {"epochs": epochs[0], "budget": config.budget}
    each = [epochs[min(i, len(epochs) - 1)] for i in range(config.outer_steps)]
    return {"epochs": each, "outer_steps": config.outer_steps}


def online(config):
    """Arguments of `keras_fds.fit_online` as a config describes them."""
    epochs = lengths(config)["epochs"]
    decay = _TANGENT_DECAYS[config.method]
    return {
        "epochs": epochs[-1] if isinstance(epochs, list) else epochs,
        "tangent_decay": option(config, "tangent_decay") if decay is None else decay,
        "outer_optimizer": _make(
            "outer_optimizer", _optimizers(), option(config, "outer_optimizer")
        ),
    }


def validation_of(config):
    """Arguments of `fit` for validation: the task's own data, or the part that is held out."""
    found = load_arrays(config, "validation") if option(config, "task") else None
    if found is not None:
        return {"validation_data": (found.x, found.y)}
    return {
        "validation_split": config.validation_split,
        "resample_validation": config.resample_validation,
    }


def load_arrays(config, split):
    """The data of the config's task or dataset, `trainers.data.ArrayDataset`.

    All errors are ValueErrors.
    """
    from trainers import data, task

    if option(config, "task"):
        return task.load_arrays(config.task, split, config.data_dir)
    try:
        return data.load_arrays(
            config.dataset,
            split,
            config.data_dir,
            normalisation=option(config, "normalisation"),
            cache_dir=option(config, "cache_dir"),
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def make_optimizer(config, schedules=None):
    """A `keras_fds.HyperOptimizer` as a config describes it.

    Args:
        config: The fields `optimizer` and `outer` hold a `name` and arguments,
            `hyperparameters` is a list of arguments of `keras_fds.Hyperparameter`.
        schedules: `{name: BucketedSchedule}` to begin with; they also decide the number of
            buckets. Defaults to the config's start values.

    Returns:
        The `keras_fds.HyperOptimizer`.

    Raises:
        ValueError: A name or an argument is unknown or out of range, or `schedules` has other
            hyperparameters.

    Example:

    >>> make_optimizer(configs.digits.get_config()).names
    ['learning_rate', 'momentum', 'weight_decay']
    """
    import keras_fds
    from trainers import task
    from trainers.decay_grid import DecayGrid
    from trainers.in_time import InTime

    hyperparameters = [dict(each) for each in config.hyperparameters]
    groups = task.groups(config.task) if option(config, "task") else None
    if groups is not None:
        for each in hyperparameters:
            if each.get("name") == "sample_weight":
                each["groups"] = groups
    if schedules is not None:
        _begin_with(schedules, hyperparameters)
    elif is_online(config):
        for each in hyperparameters:
            each.update(num_buckets=1, interpolation="constant")
    optimizer = dict(config.optimizer)
    if option(config, "dtype_policy") == "mixed_float16":
        optimizer.setdefault("loss_scale_factor", _LOSS_SCALE)
    rules = keras_fds.outer.BayesianOptimization, keras_fds.outer.SignDescent, DecayGrid
    outer_rules = {rule.__name__: rule for rule in rules}
    outer, limit = _make("outer", outer_rules, config.outer), option(config, "seconds")
    is_searching = config.outer_steps is None and not isinstance(outer, DecayGrid)
    if limit and config.budget and is_searching:
        outer = InTime(outer, limit, limit / config.budget)
    return keras_fds.HyperOptimizer(
        _make("optimizer", _optimizers(), optimizer),
        [_call(keras_fds.Hyperparameter, arguments) for arguments in hyperparameters],
        outer=outer,
    )


def _optimizers():
    """All optimizers that a config can name."""
    import keras

    import keras_fds

    return {
        f"{package.__name__}.optimizers.{name}": value
        for package in (keras_fds, keras)
        for name, value in vars(package.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
        if name != "Optimizer"
    }


def differentiation(config):
    """`differentiation=` of `keras_fds.fit` as a config describes it."""
    import keras_fds

    if config.tangent_clipvalue is None:
        return config.differentiation
    return keras_fds.differentiation.Forward(tangent_clipvalue=config.tangent_clipvalue)


def _begin_with(schedules, hyperparameters):
    """Puts the values of schedules into the arguments of hyperparameters."""
    names = [arguments.get("name") for arguments in hyperparameters]
    if set(names) != set(schedules):
        raise ValueError(
            f"The schedules hold {', '.join(schedules) or 'nothing'}, but the config learns "
            f"{', '.join(names)}. Pass the schedules of a search with this config."
        )
    for arguments in hyperparameters:
        schedule = schedules[arguments["name"]]
        arguments["num_buckets"] = schedule.num_buckets
        arguments["interpolation"] = schedule.interpolation
        arguments["initial"] = schedule.values.tolist()
        if schedule.values.ndim > 1:
            arguments["shape"] = schedule.values.shape[1:]


def make_model(config, arrays, schedules=None):
    """The config's network for these data, compiled with its optimizer.

    Args:
        config: As for `make_optimizer`; `task` is the path of a task's file (`trainers.task`), or
            `network` a name of `trainers.networks` and `augmentation` of `trainers.augmentation`.
        arrays: A `trainers.data.ArrayDataset`.
        schedules: As for `make_optimizer`.

    Returns:
        A compiled `keras.Model`.

    Raises:
        ValueError: The network or the augmentation is unknown, or the images are too small for it;
            and all that `make_optimizer` does.
    """
    import keras

    from trainers import task

    optimizer = make_optimizer(config, schedules)
    model = make_network(config, arrays)
    loss = task.make_loss(config.task) if option(config, "task") else None
    model.compile(
        optimizer=optimizer,
        loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=config.get("jit_compile", "auto"),
        auto_scale_loss=False,  # The wrapped optimizer has a `loss_scale_factor`.
    )
    return model


def make_network(config, arrays):
    """The config's network with new weights, not compiled; see `make_model`."""
    from trainers import augmentation, networks, task

    with _dtype_policy(option(config, "dtype_policy")):
        if option(config, "task"):
            return task.make_model(config.task)
        # A border is black, as if it had been drawn before the normalisation.
        border = getattr(arrays, "black", None)
        return networks.build(
            config.network,
            arrays.input_shape,
            arrays.num_classes,
            augmentation=augmentation.make(
                option(config, "augmentation"), arrays.input_shape, border
            ),
            initializer=option(config, "initializer"),
        )


@contextlib.contextmanager
def _dtype_policy(name):
    """While open, new layers have a dtype policy."""
    import keras

    stock = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name if name != "float32" else stock)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(stock)


def example_weights(config, learned, examples):
    """Learned weights of the training examples, as `model.fit` takes them, or `None`.

    Args:
        config: Its task may have groups, see `trainers.task`.
        learned: `{name: BucketedSchedule}`.
        examples: How many there are.
    """
    from trainers import task

    if "sample_weight" not in learned:
        return None
    weights = learned["sample_weight"].values[-1]
    groups = task.groups(config.task) if option(config, "task") else None
    if groups is not None:
        weights = weights[groups]
    if len(weights) != examples:
        raise ValueError(
            f"The schedules hold weights of {len(weights)} examples, and there are {examples}. "
            "Learn them with validation data of the task's own."
        )
    return weights


def check_hypergradients(config, arrays):
    """Compares the config's hypergradients with finite differences and prints the table.

    It uses a few small batches and values one step away from the start values: at a learning rate
    of zero, where many searches start, most hypergradients vanish.

    Args:
        config, arrays: As for `make_model`.

    Returns:
        A `keras_fds.HypergradientCheck`.

    Raises:
        ValueError: Some hypergradients are wrong.
    """
    import numpy as np
    import tensorflow as tf

    import keras_fds

    model = make_model(config, arrays)
    optimizer = model.optimizer
    buckets, ranges = optimizer.buckets, optimizer.buckets.ranges
    moved = optimizer.coordinates + buckets.first_steps()
    optimizer.coordinates = np.clip(moved, ranges.minimum, ranges.maximum)
    horizon = max(4, *(each.num_buckets for each in optimizer.hyperparameters))
    data = tf.data.Dataset.from_tensor_slices((arrays.x, arrays.y))
    batches = data.batch(min(config.batch_size, 16)).take(horizon + 2)
    check = keras_fds.check_hypergradients(model, batches.take(horizon), batches.skip(horizon))
    if any("WRONG" in verdicts for verdicts in check.verdicts.values()):
        raise ValueError(
            "The hypergradients are wrong, so the search does not begin. The table above names the "
            "layer at fault."
        )
    return check


def _make(field, known, arguments):
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if name not in known:
        raise ValueError(
            f"`{field}` of the config must name one of {', '.join(sorted(known))}. "
            f"Received: name={name!r}"
        )
    return _call(known[name], arguments)


def _call(constructor, arguments):
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise ValueError(f"{constructor.__name__} cannot be made: {error}") from error


def summarise(results):
    """The means of test metrics over seeds, and a confidence interval of the mean accuracy.

    Args:
        results: `[{"seed": …, "loss": …, "accuracy": …}, …]`, one per seed.

    Returns:
        `{"loss", "accuracy", "accuracy_interval", "seeds"}`: two means; the 95% confidence interval
        of the mean accuracy by Student's t, `[low, high]` within 0 to 1, or `None` for one seed;
        and `results`.
    """
    import numpy as np
    from scipy import stats

    accuracies = [each["accuracy"] for each in results]
    mean = float(np.mean(accuracies))
    interval = None
    if len(results) > 1:
        half = stats.sem(accuracies) * stats.t.ppf(0.975, len(results) - 1)
        interval = np.clip([mean - half, mean + half], 0.0, 1.0).tolist()
    return {
        "loss": float(np.mean([each["loss"] for each in results])),
        "accuracy": mean,
        "accuracy_interval": interval,
        "seeds": results,
    }


def table(schedules):
    """A text table of schedules: one row per hyperparameter, one column per bucket, in tens.

    Of vectors it has the least, the median and the greatest element.
    """
    from trainers import curves

    schedules = curves.spread(schedules)
    num_buckets = max(schedule.num_buckets for schedule in schedules.values())
    rows = {"bucket": [str(bucket) for bucket in range(num_buckets)]}
    for name, schedule in schedules.items():
        rows[name] = [f"{value:.3g}" for value in schedule.values]
    width = max(len(name) for name in rows)
    blocks = []
    for first in range(0, num_buckets, 10):
        lines = [
            name.ljust(width) + "".join(cell.rjust(10) for cell in cells[first : first + 10])
            for name, cells in rows.items()
            if len(cells) > first
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def command(program, *arguments):
    """The command line that runs a program of this Python's environment."""
    path = pathlib.Path(sys.executable).with_name(program)
    if shutil.which(program) == str(path):
        shown = program
    else:
        shown = os.path.relpath(path) if path.is_relative_to(pathlib.Path.cwd()) else str(path)
    return shlex.join([shown, *arguments])


def trainer_command(module, *arguments):
    """The command line that runs one of these programs with the present config."""
    flag = flags.FLAGS["config"]
    config = f"--config={config_flags.get_config_filename(flag)}"
    overrides = [
        f"--config.{field}={value}"
        for field, value in config_flags.get_override_values(flag).items()
    ]
    for each in (devices.DEVICE, devices.JIT_COMPILE):
        if each.present:
            arguments = *arguments, f"--{each.name}={each.value}"
    return command("python", "-m", module, config, *overrides, *arguments)


def run(main, required=REQUIRED):
    """Runs a program and ends the process.

    Wrong input ends with a message and exit code 1; an interrupt with a message about what the
    workdir holds and exit code 130.

    Args:
        main: A function without arguments that returns an exit code or `None`.
        required: Names of the flags that must be given. Defaults to `("config", "workdir")`.
    """
    flags.mark_flags_as_required(required)

    def tell_errors(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        sys.unraisablehook = _interrupt_again
        try:
            quiet_tensorflow.import_tensorflow_quietly()
            _use_device(CONFIG.value)
            return main()
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        except OSError as error:
            print(f"The program ends: {error}. Finished results are kept.", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\n{workdirs.what_is_there(pathlib.Path(WORKDIR.value))}")
            return 130

    app.run(tell_errors, flags_parser=_parse_flags)


def _use_device(config):
    """Chooses the device that is asked for, and lets the config say what compiles."""
    device = devices.choose(devices.DEVICE.value)
    if config is not None:
        with contextlib.suppress(OSError), config.unlocked():  # `check_config` reports the error.
            config.jit_compile = devices.jit_compile(devices.JIT_COMPILE.value, device)


def _interrupt_again(unraisable):
    """Raises an interrupt again that Python would print and forget.

    Python does so while it cleans up an object, as a long call of TensorFlow often does at its end.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        main_thread = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, [main_thread, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)


def _find_config(argument):
    """The argument; `configs/…` that is not in this folder becomes the file that was installed."""
    flag, separator, path = argument.rpartition("=")
    installed = pathlib.Path(__file__).parents[1] / path
    if path.startswith("configs/") and not os.path.exists(path) and installed.is_file():
        return f"{flag}{separator}{installed}"
    return argument


def _parse_flags(argv):
    try:
        return app.parse_flags_with_usage([_find_config(argument) for argument in argv])
    except (AttributeError, KeyError, IndexError) as error:
        raise SystemExit(
            f"FATAL Flags parsing error: the config has no such field: {error}"
        ) from None
