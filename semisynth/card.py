"""`model-card.md`: what a classifier is, what it was made from, what was measured of it, and what was not."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semisynth.evaluate import wilson
from semisynth.recipes.config import Config, method_class
from semisynth.weights import write_text

FEW = 10  # test images of a class: with fewer, its figures say next to nothing
SHOWN = 50  # class names that are listed
COLUMNS = (("accuracy", "interval"), ("precision", "precision_interval"))  # recall and precision, and their ends
SURE = 12, 0.8  # the bin from which confidences are above 0.8


def write(config: Config, result: Mapping[str, Any], run: Path) -> None:
    """Write the card of a classifier into its run directory, which has its weights; `result` is `result.json`."""
    write_text(run / "model-card.md", text(config, result, _hash(run / "model.safetensors")))


def text(config: Config, result: Mapping[str, Any], weights: str) -> str:
    """The card as Markdown; `weights` is the hash of the weights. It names no path but those of the configuration."""
    sections = {
        "Data": _data(config, result),
        "Measured": _measured(result.get("test"), result["calibration"]),
        "Limits": _listed(_limits(config, result)),
        "Reproduce": _reproduce(config, result, weights),
    }
    body = "".join(f"\n## {title}\n\n{content}\n" for title, content in sections.items())
    return f"# {_plain(config.method)} on {_plain(config.setting.data)}\n\n{_what(config, result)}\n{body}"


def command(config: Config) -> str:
    """The command of this configuration, with the options that are not at their defaults."""
    default, found = (_flat(c) for c in (Config.of({"method": {"name": config.method}}), config))
    given = {key: value for key, value in found.items() if value != default.get(key) or key == "data"}
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in written.items()]
    return shlex.join(["semisynth", "fit", "--method", config.method, *options, "--out", "AGAIN"])


def _flat(config: Config) -> dict[str, Any]:
    flat = config.flat()
    return {**{k: v for k, v in flat.items() if k != "method"}, **{f"method.{k}": v for k, v in config.options.items()}}


def _what(config: Config, result: Mapping[str, Any]) -> str:
    names = result["class_names"]
    _, height, width = result["shape"]
    told = ", ".join(map(_plain, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    method = (inspect.getdoc(method_class(config.method)) or "").splitlines()[0]
    return (
        f"A classifier of images of {height}x{width} pixels in {_colour(result)}, "
        f"{_plain(config.setting.model)}, into {len(names)} classes: {told}.\n\n"
        f"Method `{config.method}`: {_plain(method)} {config.setting.steps} steps, {result['seconds']:.0f} seconds.\n\n"
        "    semisynth predict RUN IMAGES --out predictions.csv\n\n"
        "with this directory as RUN labels images with it."
    )


def _data(config: Config, result: Mapping[str, Any]) -> str:
    setting, data = config.setting, result["data"]
    _, height, width = result["shape"]
    fit = f", proportions by {data['fit']}" if data["fit"] else ""
    per_class = setting.labels_per_class
    rows = {
        "source": data["source"],
        "hash": data["hash"],
        "images": ", ".join(f"{split} {count}" for split, count in data["images"].items()),
        "labels used": f"{per_class} of each class, drawn by seed {config.engine.seed}" if per_class else "all",
        "prepared as": f"{height}x{width}, {_colour(result)}{fit}",
        "generator": setting.generator,
        "first features": None if setting.init == "none" else setting.init,
        "features trained": None if setting.tune_features == "full" else setting.tune_features,
    }
    notes = _listed(map(_plain, data["notes"]))
    return _facts(rows) + (f"\n\n{notes}" if notes else "")


def _measured(test: Mapping[str, Any] | None, calibration: Mapping[str, Any]) -> str:
    if test is None:
        return "Nothing: there was no test split."
    before, after = (calibration["test"][when] for when in ("before", "after"))
    rows = (
        (_plain(name), str(row["images"]), *(_share(row[key], row[of]) for key, of in COLUMNS))
        for name, row in test["per_class"].items()
    )
    return (
        f"Accuracy {_share(test['accuracy'], test['interval'])} on {test['images']} test images; here and below with "
        "its 95 % interval by Wilson's score, which covers the choice of the test images, not the draw of labels or "
        f"training.\n\n{_table(('class', 'test images', 'recall', 'precision'), rows)}\n\n"
        f"Confidence is calibrated by one temperature, {calibration['temperature']:.3g}, fitted to "
        f"{calibration['images']} validation images. On the test images it changes the expected calibration error from "
        f"{before['error']:.3f} to {after['error']:.3f} and the cross-entropy from {before['loss']:.3f} to "
        f"{after['loss']:.3f}. {_sure(after)}"
    )


def _sure(after: Mapping[str, Any]) -> str:
    """How often predictions of a high confidence are right, out of the bins of a reliability diagram."""
    first, level = SURE
    pairs = list(zip(after["count"], after["accuracy"], strict=True))
    sure = sum(count for count, _ in pairs[first:])
    if not sure:
        return f"No test image has a confidence above {level}."
    right = round(sum(count * share for count, share in pairs[first:] if count))
    part = sure / sum(count for count, _ in pairs)
    return (
        f"{100 * part:.0f} % of the test images have a confidence above {level}; of these "
        f"{_share(right / sure, wilson(right, sure))} are right."
    )


def _limits(config: Config, result: Mapping[str, Any]) -> Iterable[str]:
    """What the figures do not say, as far as the run itself knows."""
    test, calibration = result.get("test"), result["calibration"]
    yield "It answers one of its classes for any image, also for one that shows none of them: that was not measured."
    if test is not None:
        yield (
            "The test images come from the same source as the training images. How it does on images from elsewhere "
            "(another camera, time, place or group of people), or on damaged ones, was not measured."
        )
        rare = [name for name, row in test["per_class"].items() if row["images"] < FEW]
        if rare:
            yield f"Fewer than {FEW} test images: {_some(rare)}. The figures of these classes say next to nothing."
    if calibration["images"] < 100:
        yield f"The temperature rests on {calibration['images']} validation images, which is few: confidence is rough."
    if calibration["bounded"]:
        yield "The validation images were too few, or too well or badly classified, to settle the temperature."
    if config.setting.generator is not None:
        yield (
            "It learned from synthetic images too, of the generator named above. Whether they show the classes that "
            "they were taken for was not measured, and what is wrong with them may be wrong with the classifier."
        )
    yield "This is one training with one seed. How much another one would differ was not measured."


def _reproduce(config: Config, result: Mapping[str, Any], weights: str) -> str:
    facts = {"weights": f"model.safetensors, sha256 {weights}", **result["environment"]}
    return (
        "In the directory from which paths are meant, either of:\n\n"
        + textwrap.indent(f"{command(config)}\nsemisynth fit --config RUN/config.json --out AGAIN", "    ")
        + f"\n\n{_facts(facts)}"
    )


def _colour(result: Mapping[str, Any]) -> str:
    return "gray" if result["shape"][0] == 1 else "colour"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(map(_plain, names[:FEW])) + more


def _share(value: float | None, interval: Sequence[float]) -> str:
    return "none" if value is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _facts(facts: Mapping[str, Any]) -> str:
    """A table of what is known."""
    return _table(("", ""), ((name, _plain(str(value))) for name, value in facts.items() if value is not None))


def _listed(points: Iterable[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


def _plain(value: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", " ".join(value.split()))


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
