"""The command line: each command's options are derived from the signatures of what it calls."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from semisynth.errors import UserError, choose

USAGE = """usage: semisynth COMMAND [OPTIONS]

Trains image classifiers from a handful of labels and a generative model.

commands:
{commands}

semisynth COMMAND --help lists the options of a command.

exit codes:
  0         done
  1         done, and data check or doctor found something to mend
  2         a mistake that you can mend, told on stderr; nothing is half written
  130       interrupted (Ctrl-C); nothing is half written, and the same command goes on"""


FULL = ("out of memory", "can't allocate memory", "not enough memory")  # torch has no error of its own on the CPU


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0; 1 for findings to mend; 2 for a mistake of the user's, told in one
    sentence; 130 if interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on disk may be no text
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # that its reader is gone is noticed here, not after the end
    except UserError as error:
        print(f"semisynth: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        left = str(stop) or "the same command goes on from what is done"
        print(f"semisynth: interrupted; {left}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would be written at the end
        return 0
    except OSError as error:
        print(f"semisynth: error: {error.filename or 'output'}: {error.strerror}. Give another place.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(told in str(error) for told in FULL)):
            raise
        less = "ask for less of batch, unlabeled-batch, size or model"
        way = "through a generator from elsewhere for a smaller --generator-options.chunk, precision or sampler_steps"
        print(f"semisynth: error: there is not enough memory: {less}, or {way}.", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)))
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("semisynth"))
        return 0
    return COMMANDS[choose(arguments[0], COMMANDS, "command")](arguments[1:]) or 0


@contextlib.contextmanager
def _interrupted(left: str) -> Iterator[None]:
    """What Ctrl-C leaves of a command that does not go on where it stopped."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or left) from stop


def _first_rank() -> bool:
    """Of torchrun's processes one is enough to tell."""
    return os.environ.get("RANK", "0") == "0"


def fit(arguments: list[str]) -> None:
    """Train a classifier, features or a generator into a run directory, or resume it."""
    from semisynth import options
    from semisynth.recipes import single
    from semisynth.recipes.config import Config

    parser = options.config_parser("fit", fit.__doc__, arguments)
    parser.add_argument("--out", type=str, required=True, help="the run directory")
    given = options.parse(parser, arguments)
    out = Path(given.pop("out"))
    config = Config.of(given, "the options")
    done = single.finished(config, out) is not None
    result = single.fit(config, out)
    if not _first_rank():
        return
    print(f"{out} is finished{' already' if done else ''}.")
    if "test" in result:
        low, high = result["test"]["interval"]
        print(f"test accuracy {result['test']['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
    if result.get("task") == "represent":
        print(f"it holds features and no classifier: a fit with --init {out} starts from them")


def evaluate(arguments: list[str]) -> None:
    """Measure the classifier of a run on the test split, or on other labeled images."""
    from semisynth import options
    from semisynth.predictor import measure, measure_again

    parser = options.new_parser("evaluate", evaluate.__doc__)
    parser.add_argument("run", type=str, help="a finished run directory")
    parser.add_argument("--data", type=str, help="other labeled images, of classes of the same names: see fit --data")
    parser.add_argument(
        "--split", type=Literal["test", "validation", "train"], help="left out: test, or all that --data has"
    )
    told = "score the detector of rsmatch instead, against the hidden.parquet of the mix that it was trained on"
    parser.add_argument("--hidden", type=str, help=told)
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    run, split = Path(given["run"]), given["split"]
    if given["hidden"] is not None:
        if given["data"] is not None or split is not None:
            raise UserError("--hidden scores the pool of the run: leave --data and --split out.")
        _contamination(run, Path(given["hidden"]), given["device"], given["json"])
        return
    if given["data"] is not None:
        measured = measure(run, given["data"], split=split, device=given["device"], show=not given["json"])
    else:
        split = split or "test"
        measured = measure_again(run, split, given["device"])
    if given["json"]:
        print(json.dumps(measured))
        return
    low, high = measured["interval"]
    what = split or given["data"]
    print(f"{what} accuracy {measured['accuracy']:.3f} [{low:.3f}, {high:.3f}], {measured['images']} images")
    print(f"cross-entropy {measured['loss']:.3f}, calibration error {measured['calibration_error']:.3f}")
    mended = measured["calibrated"]
    told = f"cross-entropy {mended['loss']:.3f}, calibration error {mended['error']:.3f}"
    print(f"with the run's temperature {mended['temperature']:.3f}: {told}")
    for name, row in measured["per_class"].items():
        recall, precision = (f"{row[key]:.3f}" if row[key] is not None else "none" for key in ("accuracy", "precision"))
        print(f"  {name}: recall {recall}, precision {precision}, {row['images']} images")


def _contamination(run: Path, hidden: Path, device: str, as_json: bool) -> None:
    from semisynth import contamination
    from semisynth.engine import resolve

    found = contamination.score(run, hidden, resolve(device))
    if as_json:
        print(json.dumps(found))
        return
    auroc = "none" if found["auroc"] is None else f"{found['auroc']:.3f}"
    print(f"detector AUROC {auroc}, calibration error {found['calibration_error']:.3f}")
    estimated = found["share"]["estimated"]
    told = "not estimated, as the queue is empty" if estimated is None else f"estimated {estimated:.3f}"
    print(f"synthetic share {told}, true {found['share']['true']:.3f}")
    for name, row in found["sources"].items():
        taken = "none" if row["taken"] is None else f"{row['taken']:.3f}"
        print(f"  {name}: {row['images']} images, {taken} taken for synthetic, {row['queued']} ever queued")
    print(f"wrote {run / contamination.NAME}; semisynth report {run} shows it")


def predict(arguments: list[str]) -> None:
    """Label images with the classifier of a run: a table of labels, confidences and probabilities."""
    from dataclasses import asdict

    from semisynth import options
    from semisynth.predict import predict as label

    parser = options.new_parser("predict", predict.__doc__)
    parser.add_argument("run", type=str, help="a finished run directory")
    parser.add_argument(
        "images", type=str, nargs="+", help="images, folders of them (of any depth), manifests, or .npz files"
    )
    parser.add_argument(
        "--out", type=str, required=True, help="the table, as CSV; what cannot be read is listed beside"
    )
    parser.add_argument("--reject", type=float, default=0.0, help="confidence below which the label is left blank")
    parser.add_argument("--batch", type=int, default=64, help="images in memory at a time")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--json", action="store_true", help="print what became of the images as one JSON object")
    given = options.parse(parser, arguments)
    run, images, out, silent = (given.pop(name) for name in ("run", "images", "out", "json"))
    found = label(Path(run), images, Path(out), show=not silent, **given)
    if silent:
        print(json.dumps(asdict(found)))
        return
    rejected = f", {found.rejected} of them without a label (--reject {given['reject']:g})" * bool(found.rejected)
    print(f"wrote {out}: {found.images} images{rejected}")
    if found.unreadable:
        print(f"{len(found.unreadable)} could not be read: {found.listing}")


def report(arguments: list[str]) -> None:
    """Write one HTML file about one or more runs."""
    from semisynth import options
    from semisynth.report import write

    parser = options.new_parser("report", report.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run directories, or directories of them")
    parser.add_argument("--out", type=str, required=True, help="the HTML file")
    given = options.parse(parser, arguments)
    write([Path(run) for run in given["runs"]], Path(given["out"]))
    print(f"wrote {given['out']}")


def tune(arguments: list[str]) -> None:
    """Search a method's options with an equal budget, on tuning seeds and the validation split."""
    from semisynth import options
    from semisynth.recipes import cells
    from semisynth.recipes import tune as recipe
    from semisynth.recipes.config import Config

    row = options.as_row(arguments)
    parser = options.config_parser("tune", tune.__doc__, row)
    parser.add_argument("--configurations", type=int, default=16, help="to try; the first is the one given")
    parser.add_argument("--seeds", type=str, default="0-9", help="tuning seeds, as 0-9 or 0,3,7")
    options.add_pool(parser, "the directory of the search")
    given = options.parse(parser, row)
    if options.value(arguments, "--seed") is not None:
        raise UserError("tune takes --seeds, and each configuration runs with all of them: leave --seed out.")
    out, seeds = Path(given.pop("out")), cells.numbers(given.pop("seeds"), "--seeds")
    size, workers = given.pop("configurations"), options.pool(given)
    config = Config.of(given, "the options")
    command = shlex.join(["semisynth", "tune", *arguments])
    found = recipe.tune(config, out, size, seeds, workers, options.own_options(row), command)
    best = found["trials"][found["winner"]]
    print(f"{out} is finished: configuration {best['number']} of {size} has the best mean validation accuracy.")
    print(f"validation accuracy {best['accuracy']:.3f}, {', '.join(f'{k} {v}' for k, v in best['options'].items())}")
    print(f"train with it: semisynth fit --config {out / 'best.json'} --out DIR")


def bench(arguments: list[str]) -> None:
    """Compare methods over label counts and seeds, paired by seed."""
    from semisynth import options
    from semisynth.engine import Engine
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells, presets
    from semisynth.recipes.config import GENERATOR, Options, Reading, Setting

    rows = ", ".join(presets.rows())
    parser = options.new_parser("bench", bench.__doc__)
    parser.add_argument("--methods", type=str, required=True, help=f"separated by commas: {rows}, or any method's name")
    parser.add_argument("--labels_per_class", type=str, required=True, help="as 1,2,4")
    parser.add_argument("--seeds", type=str, default="100-109", help="as 100-109 or 100,105")
    parser.add_argument("--tuned", type=str, help="a directory that holds, for each method, a directory of tune")
    parser.add_argument("--against", type=str, help="one of the methods, to be contrasted with each other one")
    options.add_pool(parser, "the directory of the bench")
    parser.add_class_arguments(Setting, None, skip={"labels_per_class", "unlabeled"})
    parser.add_class_arguments(Reading, None)
    parser.add_class_arguments(Options, GENERATOR)
    parser.add_class_arguments(Engine, None, skip={"seed"})
    given = options.parse(parser, arguments)
    names, pivot = given.pop("methods").replace(" ", "").split(","), given.pop("against")
    if pivot is not None:
        choose(pivot, names, "method in --against:")
    labels, seeds = (cells.numbers(given.pop(key), f"--{key}") for key in ("labels_per_class", "seeds"))
    out, workers, tuned = Path(given.pop("out")), options.pool(given), given.pop("tuned")
    command = shlex.join(["semisynth", "bench", *arguments])
    tuned = Path(tuned) if tuned else None
    print(recipe.bench(given, names, labels, seeds, out, workers, tuned, pivot, command))


def generate(arguments: list[str]) -> None:
    """Write images of a generator, or those that a run's mapper asks for, as a data set; resume where it stopped."""
    from semisynth import options
    from semisynth.generators.options import Options
    from semisynth.recipes import generate as recipe

    parser = options.new_parser("generate", generate.__doc__)
    parser.add_class_arguments(recipe.Generate, None, skip={"classes", "generator_options"})
    parser.add_class_arguments(Options, "generator_options")
    told = "names, synonyms or numbers of the generator's classes, which are made in turn; all unless given"
    parser.add_argument("--classes", type=str, nargs="+", default=None, help=told)
    parser.add_argument("--out", type=str, required=True, help="the directory of the images")
    given = options.parse(parser, arguments)
    out, beside = Path(given.pop("out")), Options(**given.pop("generator_options"))
    asked = recipe.Generate(**given, generator_options=beside)
    recipe.generate(asked, out)
    print(f"{out}: {asked.count} images, to look at {out / recipe.SHEET}")


def mix(arguments: list[str]) -> None:
    """Mix synthetic images into a real pool, with the truth of which is which in a file apart."""
    from semisynth import mixed, options
    from semisynth.generators.options import Options
    from semisynth.recipes import mix as recipe
    from semisynth.recipes.config import Reading

    parser = options.new_parser("mix", mix.__doc__)
    parser.add_class_arguments(recipe.Mix, None, skip={"synthetic", "reading", "generator_options"})
    told = "generators, each as fit's --generator, of whose samples as many each"
    parser.add_argument("--synthetic", type=str, nargs="+", required=True, help=told)
    parser.add_class_arguments(Reading, "reading")
    parser.add_class_arguments(Options, "generator_options")
    parser.add_argument("--out", type=str, required=True, help="the directory of the mix")
    given = options.parse(parser, arguments)
    out, reading = Path(given.pop("out")), Reading(**given.pop("reading"))
    beside = Options(**given.pop("generator_options"))
    with _interrupted("images that were decoded are kept, and the mix begins anew"):
        record = recipe.mix(recipe.Mix(**given, reading=reading, generator_options=beside), out)
    counts = ", ".join(f"{count} {name}" for name, count in record["sources"].items())
    for note in record.get("notes", ()):
        print(f"{given['real']}: {note}")
    print(f"wrote {out / mixed.POOL}: unlabeled {counts}; share {record['share']:.3f}")
    found = {name: value for name, value in record["auroc"].items() if value is not None}
    if found:
        told = "; another generator, or --through, makes a harder mix" * (record["verdict"] == "too easy")
        values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"AUROC by histogram and spectrum alone: {values}: {record['verdict']}{told}.")


def audit(arguments: list[str]) -> None:
    """Tell how many images of a pool may be synthetic, and which, from labeled real images alone."""
    from dataclasses import fields

    from semisynth import audited, options
    from semisynth.recipes import audit as recipe
    from semisynth.recipes import clean
    from semisynth.recipes.config import Reading

    parser = options.new_parser("audit", audit.__doc__)
    parser.add_class_arguments(recipe.Audit, None, skip={"pool", "reading"})
    parser.add_argument(
        "pool", type=str, help="a data set whose unlabeled images are audited; without any, all of them"
    )
    parser.add_class_arguments(Reading, None, skip={"holdout", "mirror"})
    parser.add_argument("--out", type=str, required=True, help="the directory of the audit")
    parser.add_argument("--apply", action="store_true", help=f"write {clean.CLEANED} too, which fit takes as --data")
    parser.add_argument("--reject", type=float, default=0.5, help="suspicion from which --apply leaves an image out")
    given = options.parse(parser, arguments)
    out, apply, reject = Path(given.pop("out")), given.pop("apply"), given.pop("reject")
    reading = Reading(**{field.name: given.pop(field.name) for field in fields(Reading) if field.name in given})
    asked = recipe.Audit(**given, reading=reading)
    if apply:
        clean.check(asked, out, reject)
    there = {
        name: "was there already" if (out / name).exists() else "wrote" for name in (recipe.RECORD, clean.CLEANING)
    }
    with _interrupted("images that were decoded and an audit that is finished are kept, and all else begins anew"):
        record = recipe.run(asked, out)
        print("\n".join(audited.lines(record)))
        print(f"{there[recipe.RECORD]}: the ranking {out / recipe.RANKING}, to look at {out / recipe.PAGE}", flush=True)
        if apply:
            print(f"{there[clean.CLEANING]}: {clean.told(out, clean.clean(asked, out, reject))}")


def dpt(arguments: list[str]) -> None:
    """Classifier, pseudo-labels, diffusion model, its images, and a classifier again; what is finished is kept."""
    from semisynth import options
    from semisynth.generators.options import Options
    from semisynth.recipes import dpt as recipe
    from semisynth.recipes import teaching
    from semisynth.recipes.config import Reading

    parser = options.new_parser("dpt", dpt.__doc__)
    parser.add_class_arguments(recipe.DPT, None, skip={"reading", "generator_options", "classifier", "diffusion"})
    told = "options of the {} as JSON, such as '{}'"
    parser.add_argument("--classifier", type=dict, default={}, help=told.format("classifiers", '{"lr": 0.05}'))
    parser.add_argument("--diffusion", type=dict, default={}, help=told.format("diffusion model", '{"patch": 2}'))
    parser.add_class_arguments(Reading, "reading")
    parser.add_class_arguments(Options, "generator_options")
    options.add_pool(parser, "the directory of all stages", "shards of images")
    given = options.parse(parser, arguments)
    out, reading, workers = Path(given.pop("out")), Reading(**given.pop("reading")), options.pool(given)
    beside = Options(**given.pop("generator_options"))
    found = recipe.dpt(recipe.DPT(**given, reading=reading, generator_options=beside), out, workers)
    if not _first_rank():
        return
    print("\n".join(teaching.lines(found)))


def quality(arguments: list[str]) -> None:
    """Measure how near synthetic images come to real ones, beside real images that were held out."""
    from semisynth import options
    from semisynth.engine import resolve
    from semisynth.recipes import quality as recipe
    from semisynth.recipes.config import Reading

    parser = options.new_parser("quality", quality.__doc__)
    parser.add_argument("images", type=str, help="a data set of synthetic images; generator:NAME for samples of one")
    parser.add_argument("--reference", type=str, required=True, help="the data set of the real ones, as fit's --data")
    told = "whose features are compared: the run directory of a classifier, or foundation"
    parser.add_argument("--features", type=str, default="foundation", help=told)
    parser.add_class_arguments(Reading, None, skip={"holdout", "mirror", "unreadable"})
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    silent, device = given.pop("json"), resolve(given.pop("device"))
    images, reference, features = (given.pop(name) for name in ("images", "reference", "features"))
    found = recipe.measure(images, reference, features, Reading(**given), device)
    print(json.dumps(found) if silent else recipe.told(found))


def probe(arguments: list[str]) -> None:
    """Measure what the features of a run know: linear probes, nearest neighbours, fine-tuning with few labels."""
    from dataclasses import fields

    from semisynth import options, probed
    from semisynth.recipes import cells
    from semisynth.recipes import probe as recipe
    from semisynth.recipes.config import Reading

    parser = options.new_parser("probe", probe.__doc__)
    parser.add_class_arguments(recipe.Probe, None, skip={"run", "labels_per_class", "seeds", "reading"})
    told = "the run directory of a classifier or of features; foundation; or none, random features drawn by each seed"
    parser.add_argument("run", type=str, help=told)
    told = "drawn from the pool by each seed, as 0 1 4; with 0, all of them, nothing is fine-tuned"
    parser.add_argument("--labels_per_class", type=int, nargs="+", default=[0], help=told)
    parser.add_argument("--seeds", type=str, default="100-104", help="of label draws and fits, as 100-104 or 100,103")
    parser.add_class_arguments(Reading, None)
    parser.add_argument("--features", action="store_true", help=f"write {recipe.EXPORT} too, a row for each image")
    options.add_pool(parser, "the directory of the probe")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    out, workers, silent, export = Path(given.pop("out")), options.pool(given), given.pop("json"), given.pop("features")
    reading = Reading(**{field.name: given.pop(field.name) for field in fields(Reading)})
    seeds = cells.numbers(given.pop("seeds"), "--seeds")
    asked = recipe.Probe(**given, seeds=seeds, reading=reading)
    command = shlex.join(["semisynth", "probe", *arguments])
    found = recipe.probe(asked, out, workers, command, export, show=not silent)
    if silent:
        print(json.dumps(found))
        return
    probed.show(found)
    print(f"all of it: {out / recipe.RECORD}" + f"; the features of all images: {out / recipe.EXPORT}" * export)


def demo(arguments: list[str]) -> None:
    """The main job on real handwritten digits, two labels per class, in minutes."""
    from semisynth import options
    from semisynth.recipes import bench as recipe
    from semisynth.recipes import cells
    from semisynth.report import write
    from semisynth.weights import SHIPPED

    parser = options.new_parser("demo", demo.__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=str, default="100-102", help="of the label draws, as 100-102")
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, each a process on one thread")
    parser.add_argument("--out", type=str, default="runs/demo")
    given = options.parse(parser, arguments)
    base, out = {"init": "foundation", "steps": given["steps"]}, Path(given["out"])
    seeds = cells.numbers(given["seeds"], "--seeds")
    rows = ("supervised", "naive-fixmatch", "mpssl", "fixmatch-real")
    command = shlex.join(["semisynth", "demo", *arguments])
    # The options that the committed comparison found by tuning, on other seeds than these.
    tuned = SHIPPED / "tuned-digits"
    print(recipe.bench(base, rows, [2], seeds, out, given["workers"], tuned, command=command))
    write([out / "cells"], out / "report.html")
    print(f"The report, with curves and the images that the mapper asks for: {out / 'report.html'}")


def data(arguments: list[str]) -> int:
    """Look at one's own images: semisynth data check PATH tells what they are and what may be wrong with them."""
    from semisynth import options
    from semisynth.data import catalog, check
    from semisynth.log import watched
    from semisynth.weights import write_json

    parser = options.new_parser("data", data.__doc__)
    parser.add_argument("action", type=Literal["check"])
    parser.add_argument("path", type=str, help="a folder, a manifest (.csv, .tsv, .parquet), an .npz file or hub:NAME")
    parser.add_argument(
        "--out", type=str, default="data-check.json", help="where everything that was found is written, *.json"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    out = Path(given["out"])
    if out.suffix != ".json":
        raise UserError(f"--out is {out}: give the name of a file that ends in .json.")
    images = catalog.read(given["path"])
    found = check.check(images, watched(range(len(images.items)), "looking at images"))
    write_json(out, found)
    print(json.dumps(found) if given["json"] else f"{check.told(found)}\nall of it: {given['out']}")
    if found["looked_at"] < found["images"]:
        raise KeyboardInterrupt(f"what was found until then is in {given['out']}")
    return 1 if check.problems(found) else 0


def doctor(arguments: list[str]) -> int:
    """Tell what is here to work with, and try whether a small run works from end to end."""
    from semisynth import options
    from semisynth.doctor import examine, told

    parser = options.new_parser("doctor", doctor.__doc__)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    given = options.parse(parser, arguments)
    found = examine()
    print(json.dumps(found) if given["json"] else told(found))
    return 0 if found["passed"] else 1


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    command.__name__: command
    for command in (
        fit,
        evaluate,
        predict,
        report,
        tune,
        bench,
        data,
        generate,
        mix,
        audit,
        dpt,
        quality,
        probe,
        demo,
        doctor,
    )
}
