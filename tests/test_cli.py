"""The command line: what help costs, what fit writes, and that a mistake is a sentence, code 2 and nothing written."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from semisynth import cli
from semisynth.cli import COMMANDS, main
from semisynth.recipes import single
from semisynth.recipes.config import Config, method_options

SMALL = ("--labels-per-class", "2", "--steps", "2", "--batch", "8", "--unlabeled-batch", "8", "--log-every", "1")
SUPERVISED = ("fit", "--method", "supervised", *SMALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main([*SUPERVISED, "--out", str(out)]) == 0
    return out


def imported(*arguments: str) -> tuple[set[str], str]:
    """The packages that a command loads in a process of its own, and what it prints."""
    command = [sys.executable, "-X", "importtime", "-m", "semisynth", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in re.findall(r"\| +(\w[\w.]*)$", done.stderr, re.M)}, done.stdout


FOREIGN = {"diffusers", "transformers", "peft", "timm", "accelerate", "tokenizers"}
HEAVY = {"torch", "numpy", "scipy", "sklearn", "matplotlib", "datasets", "rich", "jsonargparse"} | FOREIGN


def test_help_loads_nothing_heavy_and_lists_the_commands():
    packages, text = imported("--help")
    assert "semisynth" in packages and not packages & HEAVY
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.__doc__.splitlines()[0])}$", text, re.M)


def test_help_of_fit_loads_only_what_options_need():
    packages, text = imported("fit", "--help")
    assert "jsonargparse" in packages
    assert not packages & ({"scipy", "sklearn", "matplotlib", "datasets"} | FOREIGN)
    assert "--labels-per-class" in text and "_" not in "".join(re.findall(r"--[\w-]+", text))
    assert "Unvalidated" not in text


def test_help_of_fit_has_the_options_of_the_method_that_is_named(capsys):
    own = {
        "fixmatch": ["--method.threshold"],
        "mpssl": ["--method.mapper-lr", "--method.shared"],
        "pssl": ["--method.loss {scr,fixmatch,uda,entropy}", "--method.weight"],
        "gda": ["--method.weight", "--method.view"],
        "transport": ["--method.refine", "--method.supervise", "--method.gap"],
    }
    for method, names in own.items():
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--method", method, "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and all(f"  {name}" in text for name in names)


@pytest.mark.parametrize("command", ["fit", "tune", "bench"])
def test_help_says_what_a_source_is_and_how_to_make_one(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--source SOURCE what reads labeled images as the generator's classes" in text
    assert "a fit on --data generator:NAME; for a shipped generator it ships too" in text
    assert "; generator:NAME for the labeled samples of a generator; or one's own images" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith(f"usage: semisynth {command} ")
    assert " ".join(COMMANDS[command].__doc__.split()) in " ".join(text.split())


def test_no_arguments_mean_help(capsys):
    assert main([]) == 0 and capsys.readouterr().out.startswith("usage: semisynth COMMAND")


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+.*\n", capsys.readouterr().out)


# ---- fit -------------------------------------------------------------------------------------------------------------


def test_options_reach_the_run(tmp_path, capsys):
    typed = ["--method=fixmatch", "--method.threshold", "0.5", "--lr=0.125", "--precision", "bf16", "--seed=3"]
    assert main(["fit", *typed, *SMALL, "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found["method"] == {**Config.of({"method": {"name": "fixmatch"}}).flat()["method"], "threshold": 0.5}
    assert (found["labels_per_class"], found["lr"], found["precision"], found["seed"]) == (2, 0.125, "bf16", 3)
    told = capsys.readouterr()
    assert re.fullmatch(r"\S+/run is finished\.\ntest accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]\n", told.out)
    assert "fit fixmatch: step 2/2" in told.err


def test_the_long_name_of_method_is_the_same_option(run, capsys):
    assert main(["fit", "--method.name=supervised", *SMALL, "--out", str(run)]) == 0
    assert "is finished already" in capsys.readouterr().out


def test_a_config_json_runs_as_it_is_and_options_override_it(run, tmp_path):
    config = str(run / "config.json")
    assert main(["fit", "--config", config, "--out", str(tmp_path / "same")]) == 0
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert main(["fit", "--config", config, "--steps", "1", "--out", str(tmp_path / "one")]) == 0
    old, new = (json.loads((path / "config.json").read_text()) for path in (run, tmp_path / "one"))
    assert new == {**old, "steps": 1}
    assert main(["fit", "--config", config, "--method", "fixmatch", "--out", str(tmp_path / "other")]) == 0
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    assert other == {**old, "method": {"name": "fixmatch", **method_options("fixmatch")}}


def test_the_options_of_a_config_json_stay_with_its_method(tmp_path):
    content = tiny.content("fixmatch", options={"threshold": 0.25}, steps=1)
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["fit", "--config", str(tmp_path / "a.json"), "--lr", "0.5", "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (found["method"]["threshold"], found["lr"]) == (0.25, 0.5)


def test_only_the_first_rank_tells(run, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(single.distributed, "start", lambda device: False)
    assert main([*SUPERVISED, "--out", str(run)]) == 0
    assert capsys.readouterr().out == ""


# ---- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "command": (["fti"], "unknown command 'fti': did you mean 'fit'? Choose from: fit, evaluate,"),
    "no method": (["fit", "--out", "{out}"], "--method is missing: give one of edm, entropy, fixmatch, flexmatch,"),
    "empty method": (["fit", "--out", "{out}", "--method"], "--method is missing"),
    "method": (
        ["fit", "--method", "supervsed", "--out", "{out}"],
        "unknown method 'supervsed': did you mean 'supervised'?",
    ),
    "no out": ([*SUPERVISED], "required: out. See semisynth fit --help"),
    "option": ([*SUPERVISED, "--stepz", "3", "--out", "{out}"], "'--stepz': did you mean '--steps'?"),
    "option of the method": (
        ["fit", "--method", "fixmatch", "--method.treshold", "0.5", "--out", "{out}"],
        "unknown option of semisynth fit: '--method.treshold': did you mean '--method.threshold'?",
    ),
    "option of another method": (
        ["fit", "--method", "supervised", "--method.threshold=0.5", "--out", "{out}"],
        "unknown option of semisynth fit: '--method.threshold'",
    ),
    "argument": ([*SUPERVISED, "more", "--out", "{out}"], "unrecognized arguments: more"),
    "whole number": (
        [*SUPERVISED, "--steps", "x", "--out", "{out}"],
        "\"steps\": Expected a <class 'int'>. Got value: x",
    ),
    "number": ([*SUPERVISED, "--lr", "x", "--out", "{out}"], "\"lr\": Expected a <class 'float'>. Got value: x"),
    "choice": ([*SUPERVISED, "--schedule", "linear", "--out", "{out}"], "Got value: linear"),
    "choice of the method": ([*SUPERVISED, "--method.view", "medium", "--out", "{out}"], "Got value: medium"),
    "no steps": ([*SUPERVISED, "--steps", "0", "--out", "{out}"], "steps is 0: give at least 1"),
    "rate": ([*SUPERVISED, "--lr", "-1", "--out", "{out}"], "lr is -1.0: give a number from 0"),
    "data": (
        [*SUPERVISED, "--data", "digit", "--out", "{out}"],
        "unknown data set (and there is no such path) 'digit': did you mean 'digits'?",
    ),
    "labels": (
        [*SUPERVISED, "--labels-per-class", "98", "--out", "{out}"],
        "class '8' has only 97 images to train on (29 are for validation, 48 for test): give at most 97",
    ),
    "model": (
        [*SUPERVISED, "--model", "small-cn", "--out", "{out}"],
        "unknown model 'small-cn': did you mean 'small-cnn'?",
    ),
    "device": ([*SUPERVISED, "--device", "cuda:77", "--out", "{out}"], "--device cuda:77 cannot be used here"),
    "init": (
        [*SUPERVISED, "--init", "nowhere", "--out", "{out}"],
        "unknown init (or run directory) 'nowhere': did you mean 'none'?",
    ),
    "no generator": (
        ["fit", "--method", "mpssl", *SMALL, "--out", "{out}"],
        "method 'mpssl' needs --generator: glyphs,",
    ),
    "generator": (
        ["fit", "--method", "mpssl", "--generator", "glyps", *SMALL, "--out", "{out}"],
        "unknown generator (or run directory) 'glyps': did you mean 'glyphs'?",
    ),
    "a classifier as generator": (
        ["fit", "--method", "mpssl", "--generator", "{run}", *SMALL, "--out", "{out}"],
        "is not a run of --method gan, vae or edm: a generator is one of glyphs, letters",
    ),
    "below a file": ([*SUPERVISED, "--out", "{run}/config.json/deep/run"], "cannot be written: Not a directory"),
    "a file": ([*SUPERVISED, "--out", "{run}/config.json"], "exists and is not a run directory: give another one"),
    "a foreign directory": ([*SUPERVISED, "--out", "{foreign}"], "exists and is not a run directory: give another one"),
    "another run": (
        [*SUPERVISED, "--lr", "0.5", "--out", "{run}"],
        "holds a run of another configuration: lr (0.03 there, 0.5 asked). Give another --out.",
    ),
    "no config": (["fit", "--config", "{out}", "--out", "{out}"], "run does not exist: give the path"),
    "config": (["fit", "--config", "{foreign}/half.json", "--out", "{out}"], "half.json, line 3: "),
    "field of a config": (
        ["fit", "--config", "{foreign}/field.json", "--out", "{out}"],
        "'stepz': did you mean 'steps'?",
    ),
    "type in a config": (
        ["fit", "--config", "{foreign}/type.json", "--out", "{out}"],
        "'steps' in {foreign}/type.json is",
    ),
    "no run": (["evaluate", "{out}"], "config.json does not exist: give the path of a run directory"),
    "no run to predict with": (["predict", "{out}", "{foreign}/half.json", "--out", "{out}/p.csv"], "does not exist"),
    "no image": (["predict", "{run}", "{foreign}", "--out", "{out}"], "holds no image: they are told by their names"),
    "no image that can be read": (
        ["predict", "{run}", "{foreign}/half.json", "--out", "{out}", "--json"],
        "none of 1 images can be read. {foreign}/half.json is no image",
    ),
    "an image that is not there": (
        ["predict", "{run}", "{out}", "--out", "{out}/p.csv"],
        "run does not exist: give images",
    ),
    "a share": (
        ["predict", "{run}", "{foreign}", "--out", "{out}", "--reject", "2"],
        "reject is 2.0: give a number from 0 to 1",
    ),
    "no other images": (["evaluate", "{run}", "--data", "{out}"], "run does not exist: give a folder, a file"),
    "a share of a mix": (
        ["mix", "--real", "digits-pool", "--synthetic", "glyphs", "--share", "1", "--out", "{out}"],
        "share is 1.0: give a number from 0 to below 1",
    ),
    "no generator of a mix": (
        ["mix", "--real", "digits-pool", "--synthetic", "digits-gn", "--out", "{out}"],
        "unknown generator (or run directory) 'digits-gn': did you mean 'digits-gan'?",
    ),
    "no pool to audit": (
        ["audit", "digits-pol", "--labeled", "digits-others", "--out", "{out}"],
        "unknown data set (and there is no such path) 'digits-pol': did you mean 'digits-pool'?",
    ),
    "an audit of itself": (
        ["audit", "digits-pool", "--labeled", "digits-pool", "--out", "{out}"],
        "every image of the pool is one of the labeled ones: give a pool that has others",
    ),
    "an audit of a pool that cannot be cleaned": (
        ["audit", "digits-pool", "--labeled", "digits-others", "--out", "{out}", "--apply"],
        "--apply cannot clean digits-pool, which is built in",
    ),
    "an audit that would reject all": (
        ["audit", "{run}", "--labeled", "digits-others", "--out", "{out}", "--apply", "--reject", "0"],
        "reject is 0.0: give a number from 0.01 to 1",
    ),
    "an audit in a run": (
        ["audit", "digits-pool", "--labeled", "digits-others", "--out", "{run}"],
        "run exists and is not an audit: give another one",
    ),
    "no run to report": (["report", "{out}", "--out", "{out}/a.html"], "no run in '{out}'"),
    "report below a file": (
        ["report", "{run}", "--out", "{run}/config.json/deep/a.html"],
        "Not a directory. Give another place.",
    ),
}


def files(*paths: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for path in paths for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("arguments, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_code_2_and_nothing_written(arguments, message, run, tmp_path, capsys):
    places = {"out": tmp_path / "run", "run": run, "foreign": tmp_path / "foreign"}
    places["foreign"].mkdir()
    content = {"method": {"name": "supervised"}, "steps": 2}
    (places["foreign"] / "half.json").write_text(json.dumps(content, indent=2)[:30])
    (places["foreign"] / "field.json").write_text(json.dumps({**content, "stepz": 2}))
    (places["foreign"] / "type.json").write_text(json.dumps({**content, "steps": "2"}))
    before = files(tmp_path, run)
    assert main([argument.format_map(places) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and re.fullmatch(r"semisynth: error: [^\n]+\n", told.err)
    assert message.format_map(places) in told.err and "Traceback" not in told.err
    assert files(tmp_path, run) == before and not places["out"].exists()


def test_a_mistake_ends_the_process_with_code_2(tmp_path):
    done = subprocess.run([sys.executable, "-m", "semisynth", "fti"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("semisynth: error: unknown command 'fti'")


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_damaged_run_is_told_by_its_file(name, run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    (copy / name).write_bytes((copy / name).read_bytes()[:99])
    before = files(tmp_path)
    assert main([*SUPERVISED, "--out", str(copy)]) == 2
    assert f"{copy / name}" in capsys.readouterr().err and files(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_generator_is_told_by_its_file(name, generator, tmp_path, capsys):
    copy = tmp_path / "generator"
    shutil.copytree(generator, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:99])
    arguments = ["fit", "--method", "mpssl", "--generator", str(copy), *SMALL, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert f"{copy / name}" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_another_generator_under_the_same_name_is_refused(generator, tmp_path, capsys):
    copy = tmp_path / "generator"
    shutil.copytree(generator, copy)
    arguments = ["fit", "--method", "mpssl", "--generator", str(copy), *SMALL, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    (tmp_path / "run" / "result.json").unlink()
    single.fit(tiny.config("gan", steps=1, labels_per_class=0), tmp_path / "new", show=False)
    shutil.copytree(tmp_path / "new", copy, dirs_exist_ok=True)
    assert main(arguments) == 2
    assert "checkpoint.pt was made with another generator, teacher or autoencoder" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_told_with_its_term_and_step(tmp_path, capsys):
    out, fields = tmp_path / "run", {"steps": 6, "checkpoint_every": 1, "schedule": "constant", "ema": 1.0}
    assert main(["fit", *tiny.options(tiny.content("fixmatch", lr=1e16, **fields)), "--out", str(out)]) == 2
    found = re.search(
        r"the loss term 'classifier/\w+' was not finite at step (\d)\. The last checkpoint is as it was; ",
        (capsys.readouterr().err),
    )
    assert found and int(found[1]) >= 1 and not (out / "result.json").exists()
    kept = tiny.checkpoint(out)
    assert kept["step"] == int(found[1]) and all(value.isfinite().all() for value in kept["method"].values())


# ---- evaluate and the rest -------------------------------------------------------------------------------------------


def test_evaluate_measures_the_run_again(run, capsys):
    result = json.loads((run / "result.json").read_text())
    for split in ("test", "validation"):
        assert main(["evaluate", str(run), "--split", split, "--json"]) == 0
        found, temperature = json.loads(capsys.readouterr().out), result["calibration"]["temperature"]
        calibrated = {"temperature": temperature, **result["calibration"][split]["after"]}
        assert found == {**result[split], "calibrated": calibrated}
    assert main(["evaluate", str(run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"test accuracy {result['test']['accuracy']:.3f} [") and "500 images\n" in text
    assert f"with the run's temperature {temperature:.3f}: cross-entropy" in text
    assert re.search(r"^  3: recall \d\.\d{3}, precision (\d\.\d{3}|none), \d+ images$", text, re.M)


def test_evaluate_measures_other_images(run, pictures, capsys):
    assert main(["evaluate", str(run), "--data", str(pictures), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["images"], len(found["unreadable"]), told.err) == (4, 1, "")
    assert [len(row) for row in found["confusion"]] == [10] * 10 and found["per_class"]["7"]["images"] == 2
    assert main(["evaluate", str(run), "--data", str(pictures), "--split", "train"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"train accuracy {found['accuracy']:.3f} [") and "left out: 7/broken.png" in told.err
    mended = found["calibrated"]
    assert f"temperature {mended['temperature']:.3f}: cross-entropy {mended['loss']:.3f}, calibration" in told.out


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two images each of the digits 3 and 7, and a file that is none."""
    for name in ("3", "7"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (20 + i, 30), (50 * i, 0, 9)).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "7" / "broken.png").write_text("broken")
    return tmp_path / "pictures"


def test_predict_writes_a_table_and_tells_what_is_not_in_it(run, pictures, tmp_path, capsys):
    out = tmp_path / "p.csv"
    assert main(["predict", str(run), str(pictures), "--out", str(out), "--reject", "1", "--batch=3"]) == 0
    told = capsys.readouterr()
    assert told.out == (
        f"wrote {out}: 4 images, 4 of them without a label (--reject 1)\n"
        f"1 could not be read: {tmp_path / 'p.unreadable.csv'}\n"
    )
    assert told.err.startswith("left out: ") and "broken.png" in told.err
    assert main(["predict", str(run), str(pictures / "3" / "0.png"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 1 images\n"


def test_predict_tells_machines_in_json(run, pictures, tmp_path, capsys):
    out = tmp_path / "p.csv"
    assert main(["predict", str(run), str(pictures), "--out", str(out), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err == "" and found["out"] == str(out) and found["listing"] == str(tmp_path / "p.unreadable.csv")
    assert (found["images"], found["rejected"], sum(found["labels"].values())) == (4, 0, 4)
    assert [row["file"] for row in found["unreadable"]] == [f"{pictures}/7/broken.png"]


def test_report_is_one_file(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "deep" / "a.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'deep' / 'a.html'}\n"
    assert (tmp_path / "deep" / "a.html").read_text().startswith("<!DOCTYPE html>")


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "fit", interrupted)
    assert main(["fit"]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_an_interrupt_says_what_is_left(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt("half of it is there")

    monkeypatch.setitem(cli.COMMANDS, "fit", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "semisynth: interrupted; half of it is there.\n"


@pytest.mark.parametrize(
    "error, code, told",
    [
        (BrokenPipeError(), 0, ""),
        (OSError(28, "No space left"), 2, "output: No"),
        (MemoryError(), 2, "there is not enough memory: ask for less of batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "there is not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
            2,
            "there is not enough memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 2, "there is not enough memory"),
    ],
)
def test_a_pipe_disk_or_memory_that_ends_is_no_traceback(error, code, told, monkeypatch, capsys):
    def failing(arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "fit", failing)
    assert main(["fit"]) == code and told in capsys.readouterr().err


def test_an_error_that_speaks_of_memory_is_none_of_the_user_s(monkeypatch):
    def failing(arguments):
        raise RuntimeError("unsupported memory format option Preserve")

    monkeypatch.setitem(cli.COMMANDS, "fit", failing)
    with pytest.raises(RuntimeError, match="memory format"):
        main(["fit"])


def test_names_that_are_no_text_can_be_printed(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setitem(cli.COMMANDS, "fit", lambda arguments: print("caf\udce9"))
    assert main(["fit"]) == 0 and out.buffer.getvalue() == b"caf\\udce9\n"


def test_the_exported_weights_are_those_of_the_checkpoints_average(run):
    assert tiny.same(load_file(run / "model.safetensors"), dict(sorted(tiny.checkpoint(run)["ema"].items())))
