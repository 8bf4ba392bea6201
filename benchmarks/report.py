"""Writes `results.md` and pictures from the results of `benchmarks.run`."""

import pathlib
import platform

from matplotlib.figure import Figure

STEPS = (
    "peers_lenet",
    "peers_wide_resnet",
    "tangents",
    "batches",
    "networks",
    "horizons",
    "compilers",
    "strategies",
    "states",
    "trials",
    "vectors",
)
TITLES = {
    "equality": "Greatest relative difference to forward mode's hypergradients, float64",
    "peers_lenet": "Every engine: LeNet, batch 128, nine tangents",
    "peers_wide_resnet": "Every engine: WRN-16-1, batch 64, nine tangents",
    "tangents": "Against the number of tangents: LeNet, batch 128",
    "batches": "Against the batch size: LeNet, nine tangents",
    "networks": "Against the network: nine tangents",
    "horizons": "Against the horizon: LeNet, batch 32, nine tangents",
    "start": "Seconds from the call of `fit` to the end of its first compiled call",
    "memory_horizons": "Peak megabytes against the horizon: LeNet, batch 32, nine tangents",
    "memory_tangents": "Peak megabytes against the number of tangents: LeNet, batch 128",
    "states": "Reverse mode against the states it keeps: LeNet, batch 32, nine tangents",
    "compilers": "With XLA and without, in float32 and in bfloat16: nine tangents",
    "strategies": "Under a strategy of one device, beside steps without: LeNet, batch 128",
    "trials": "A black box's trial: whole trainings, batch 128",
    "vectors": "Against the number of learned weights of examples: LeNet, batch 128",
}
# The sections with a picture, and what their rows are drawn against.
CURVES = {
    "tangents": "number of tangents",
    "batches": "batch size",
    "horizons": "horizon",
    "memory_horizons": "horizon",
    "memory_tangents": "number of tangents",
    "vectors": "number of weights",
}


def write(results, folder):
    """Writes `results.md` and a picture of each section that has a curve."""
    lines = ["# Results", "", _machine(results["machine"]), ""]
    for section, title in TITLES.items():
        if section in results:
            lines += [f"## {title}", "", *_table(section, results[section]), ""]
    (folder / "results.md").write_text("\n".join(lines), encoding="utf-8")
    for section in CURVES:
        if section in results:
            _draw(section, results[section]).savefig(folder / f"{section}.png", dpi=110)


def machine():
    """The machine and the versions of the measurement."""
    import keras
    import tensorflow as tf

    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line for line in lines if line.startswith("model name")]
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    return {
        **({"gpus": names} if gpus else {}),
        "processor": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": len(cpu),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _machine(machine):
    gpus = "".join(f"{name}, " for name in machine.get("gpus", ()))
    return (
        f"{gpus}{machine['cores']} cores of {machine['processor']}, "
        f"TensorFlow {machine['tensorflow']}, Keras {machine['keras']}. "
        "Medians; ratios are to plain steps of the same round."
    )


def _table(section, rows):
    if section == "equality":
        lines = [f"| {name} | {value:.1e} |" for name, value in rows.items()]
        return ["| | |", "|---|---|", *lines]
    if section == "states":
        lines = [
            f"| {name} | {_cell(section, row)} | {row['megabytes']:.0f} |"
            for name, row in rows.items()
        ]
        return ["| | plain steps | peak megabytes |", "|---|---|---|", *lines]
    if section.startswith("peers"):
        rows = {"plain steps": rows}
    engines = list(dict.fromkeys(engine for row in rows.values() for engine in row))
    lines = ["| | " + " | ".join(engines) + " |", "|---" * (len(engines) + 1) + "|"]
    for name, row in rows.items():
        cells = [_cell(section, row[engine]) if engine in row else "" for engine in engines]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(section, value):
    if section in STEPS:
        return f"{value['ratio']:.2f} ({value['milliseconds']:.1f} ms)"
    digits = {"start": 1}.get(section, 0)
    return f"{value:.{digits}f}"


def _draw(section, rows):
    """A curve for each engine, against the number that names the row."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    in_steps = section in STEPS
    for engine in dict.fromkeys(engine for row in rows.values() for engine in row):
        points = [(float(name), row[engine]) for name, row in rows.items() if engine in row]
        values = [value["ratio"] if in_steps else value for _, value in points]
        axes.plot([x for x, _ in points], values, marker="o", label=engine)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(CURVES[section])
    axes.set_ylabel("plain steps" if in_steps else "peak memory, MB")
    axes.set_title(TITLES[section].split(": ")[-1], fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure
