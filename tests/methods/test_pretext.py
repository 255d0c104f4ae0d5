"""Pretext tasks: the loss against a loop, that labels are what was applied, and what is made of a run of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow
import pytest
import tiny
import torch
import zoo
from pyarrow import parquet
from safetensors.torch import load_file
from torch import Tensor, nn

from semisynth import noise, report
from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.generators import load
from semisynth.method import Batch
from semisynth.methods import Pretext
from semisynth.methods.pretext import ENHANCEMENTS, TASKS, around, bits, thresholds
from semisynth.models import Classifier, small_cnn
from semisynth.recipes import dpt, restore, single
from semisynth.recipes.config import Config
from semisynth.recipes.materials import Materials

COLOR = (3, 8, 8)
CPU = torch.device("cpu")


def method(shape: tuple[int, int, int] = COLOR, **options: Any) -> Pretext:
    return Pretext(small_cnn(shape[0], 2, width=8), shape, **options).double()


def images(n: int, shape: tuple[int, int, int] = COLOR, seed: int = 0) -> Tensor:
    """Of random 8-bit levels."""
    levels = torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return levels.double() / 255


def batch(u: Tensor) -> Batch:
    none = torch.arange(0)
    return Batch(u[:0], none, u, torch.arange(len(u)))


# ---- views and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", range(2, 7))
def test_magnitudes_are_different_and_one_of_them_is_the_identity(levels: int) -> None:
    for change, grid in ENHANCEMENTS.values():
        found = grid(levels)
        assert len(set(found)) == levels and sorted(found) == found and found.count(0.0) == 1
        x = images(1)
        assert change(x, torch.zeros(1, dtype=x.dtype)).allclose(x, atol=1e-14)


def test_magnitudes_are_these() -> None:
    assert around(0.6, 5) == pytest.approx([-0.6, -0.3, 0.0, 0.3, 0.6])
    assert around(0.6, 4) == pytest.approx([-0.6, 0.0, 0.3, 0.6]) and around(0.6, 2) == [0.0, 0.6]
    assert bits(5) == [0.0, 2.0, 3.0, 4.0, 5.0] and bits(2) == [0.0, 5.0]
    # A pixel of level t is inverted, and one of t - 1 is not.
    for magnitude, t in zip(thresholds(5), (256, 208, 160, 112, 64), strict=True):
        found = ENHANCEMENTS["solarize"][0](torch.arange(256.0).view(1, 1, 16, 16) / 255, torch.tensor([magnitude]))
        assert ((255 * found).round().flatten() == torch.arange(256)).tolist() == [i < t for i in range(256)]


def one_by_one(image: Tensor, labels: dict[str, int], levels: int) -> Tensor:
    """The view of one image: each enhancement by itself, then as many turns."""
    x = image[None]
    for name in ("solarize", "color", "contrast", "brightness", "sharpness", "posterize"):
        if name in labels:
            change, grid = ENHANCEMENTS[name]
            x = change(x, torch.tensor([grid(levels)[labels[name]]], dtype=torch.float32).double())
    for _ in range(labels.get("rotation", 0)):
        x = x.transpose(2, 3).flip(2)
    return x[0]


@pytest.mark.parametrize("tasks", ["all", "rotation", "posterize,rotation,color", "sharpness,brightness"])
def test_a_view_is_made_of_the_magnitudes_that_its_labels_name(tasks: str) -> None:
    pretext, u = method(tasks=tasks), images(30)
    with noise.seeded(0):
        labels = pretext.drawn(u)
    assert list(labels) == (list(TASKS) if tasks == "all" else tasks.split(","))
    for i, view in enumerate(pretext.view(u, labels)):
        own = {name: int(y[i]) for name, y in labels.items()}
        torch.testing.assert_close(view, one_by_one(u[i], own, 5), atol=1e-12, rtol=0)


def test_turns_and_enhancements_commute() -> None:
    pretext, u = method(), images(40)
    with noise.seeded(0):
        labels = pretext.drawn(u)
    turns = {"rotation": labels.pop("rotation")}
    torch.testing.assert_close(pretext.view(pretext.view(u, turns), labels), pretext.view(u, {**labels, **turns}))


@pytest.mark.parametrize("levels", [3, 5])
def test_every_label_is_drawn_as_often_and_independently_of_the_others(levels: int) -> None:
    pretext, n = method(levels=levels), 8000
    with noise.seeded(1):
        labels = pretext.drawn(torch.empty(n, 0))
    for (name, y), (other, z) in itertools.product(labels.items(), repeat=2):
        sizes = [4 if task == "rotation" else levels for task in (name, other)]
        if name == other:
            count = y.bincount(minlength=sizes[0])
        else:
            count = (y * sizes[1] + z).bincount(minlength=math.prod(sizes))
        expected = n / len(count)
        squares = ((count - expected).square() / expected).sum().item()  # chi-squared of len - 1 degrees of freedom
        assert len(count) in (sizes[0], math.prod(sizes)) and squares < len(count) - 1 + 5 * math.sqrt(2 * len(count))


class Oracle(nn.Module):
    """Features that know the images: those of a view are the place of the labels that make it from one of them."""

    def __init__(self, u: Tensor, name: str, levels: int) -> None:
        super().__init__()
        self.size = 4 if name == "rotation" else levels
        known = [[one_by_one(image, {name: label}, levels) for label in range(self.size)] for image in u]
        self.known = torch.stack([torch.stack(views) for views in known])

    def forward(self, x: Tensor) -> Tensor:
        distances = (x[:, None, None] - self.known).abs().amax((3, 4, 5)).amin(1)
        assert (distances.sort(1)[0][:, 1] > 1e-3).all() and (distances.amin(1) < 1e-9).all()
        return nn.functional.one_hot(distances.argmin(1), self.size).double()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_labels_equal_the_applied_magnitude(name: str, shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that reads which magnitude was applied is always right, and hardly ever if the labels are shuffled."""
    u = images(24)
    oracle = Oracle(u, name, 5)
    pretext = Pretext(Classifier(oracle, oracle.size, 2), COLOR, tasks=name).double()
    head = pretext.heads[name]
    assert isinstance(head, nn.Linear)
    head.weight.data, head.bias.data = 40 * torch.eye(oracle.size).double(), torch.zeros(oracle.size).double()
    if shuffled:
        view = pretext.view
        monkeypatch.setattr(pretext, "view", lambda u, labels: view(u, {name: labels[name].roll(1)}))
    with noise.seeded(0):
        losses = pretext.loss(batch(u))
    if shuffled:
        assert losses.terms[name] > 10 and losses.metrics[f"accuracy/{name}"] < 0.6
    else:
        assert losses.terms[name] < 1e-12 and losses.metrics[f"accuracy/{name}"] == 1


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["equal", "1,0.5,2"])
def test_the_loss_is_a_loop_over_images_and_tasks(weights: str) -> None:
    tasks = ("rotation", "contrast", "color")
    pretext, u = method(tasks=",".join(tasks), weights=weights, levels=4), images(12)
    with noise.seeded(0):
        losses = pretext.loss(batch(u))
    with noise.seeded(0):
        labels = pretext.drawn(u)
    assert losses.shared is not None and list(losses.terms) == list(tasks)
    for name, weight in zip(tasks, [1, 1, 1] if weights == "equal" else [1, 0.5, 2], strict=True):
        head, loss, right = pretext.heads[name], 0.0, 0
        for i, image in enumerate(u):
            own = {task: int(y[i]) for task, y in labels.items()}
            features = pretext.model(one_by_one(image, own, 4)[None])
            torch.testing.assert_close(losses.shared[i : i + 1], features)
            logits = head(features)[0].tolist()
            loss += weight * zoo.cross_entropy(logits, own[name]) / len(u)
            right += logits.index(max(logits)) == own[name]
        assert losses.terms[name].item() == pytest.approx(loss, rel=1e-10)
        assert losses.metrics[f"accuracy/{name}"].item() == pytest.approx(right / len(u))


def test_the_gradient_at_the_features_is_that_of_each_term() -> None:
    """What a combination at the shared representation needs: features that every term depends on, with a graph."""
    pretext = method()
    with noise.seeded(0):
        losses = pretext.loss(batch(images(6)))
    for name, term in losses.terms.items():
        assert losses.shared is not None
        (gradient,) = torch.autograd.grad(term, losses.shared, retain_graph=True)
        assert gradient.shape == losses.shared.shape and gradient.any(), name


@pytest.mark.parametrize("scaled", [False, True])
def test_frank_wolfe_sends_no_task_uphill_at_the_features(scaled: bool) -> None:
    """And the heads, unless they are scaled, down the gradients of their own tasks."""
    pretext = method(combine="frank-wolfe", scaled=scaled)
    (update,) = pretext.updates().values()
    with noise.seeded(0):
        losses = pretext.loss(batch(images(6)))
    assert losses.shared is not None
    slopes = torch.stack(
        [torch.autograd.grad(term, losses.shared, retain_graph=True)[0].flatten() for term in losses.terms.values()]
    )
    heads = [
        torch.autograd.grad(t, [*h.parameters()], retain_graph=True)
        for t, h in zip(losses.terms.values(), pretext.heads.values(), strict=True)
    ]
    found = update.combine(losses, [*update.module.parameters()])
    weights = torch.stack([found.metrics[f"weight/{name}"] for name in losses.terms])
    assert weights.sum().item() == pytest.approx(1) and weights.std() > 0.01 and found.metrics["gap"] < 1e-9
    mixed = weights @ slopes
    assert (slopes @ mixed).min() >= mixed.square().sum() * (1 - 1e-6) > 0
    own = dict(zip([name for name, _ in update.module.named_parameters()], found.gradients, strict=True))
    for (name, slope), weight in zip(zip(pretext.heads, heads, strict=True), weights, strict=True):
        torch.testing.assert_close(own[f"1.{name}.weight"], slope[0] * (weight if scaled else 1))


@pytest.mark.parametrize(
    "shape, options, told",
    [
        ((1, 8, 8), {"tasks": "rotation,color"}, "gray images have no color: leave color out of --method.tasks"),
        (COLOR, {"tasks": "rotation,sharpen"}, "unknown pretext task 'sharpen': did you mean 'sharpness'"),
        (COLOR, {"tasks": ""}, "unknown pretext task ''"),
        (COLOR, {"tasks": "color,color"}, "name each task once"),
        ((3, 8, 9), {}, "images of 9x8 pixels cannot be turned by a quarter: make them squares with --size"),
        (COLOR, {"levels": 1}, "levels is 1: give a number from 2 to 6"),
        (COLOR, {"levels": 7}, "levels is 7: give a number from 2 to 6"),
        (COLOR, {"weights": "1,2"}, "give equal, or 7 numbers of at least 0, for rotation, solarize"),
        (COLOR, {"tasks": "rotation", "weights": "-1"}, "give equal, or 1 numbers of at least 0"),
        (COLOR, {"tasks": "rotation", "weights": "nan"}, "weights is 'nan'"),
        (COLOR, {"tasks": "rotation,color", "weights": "0,0"}, "weights is '0,0'"),
        (COLOR, {"tasks": "rotation", "weights": "much"}, "weights is 'much'"),
        (COLOR, {"combine": "frank-wolfe", "weights": "1,1,1,1,1,1,1"}, "Frank-Wolfe finds the weights of the tasks"),
        (COLOR, {"scaled": True}, "scaled is of Frank-Wolfe"),
    ],
)
def test_what_cannot_be_is_refused(shape: tuple[int, int, int], options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        method(shape, **options)


def test_gray_images_drop_color_and_say_so() -> None:
    gray = method((1, 8, 8))
    assert gray.tasks == tuple(name for name in TASKS if name != "color") == tuple(gray.heads)
    assert gray.told == ("gray images have no color: that pretext task is left out",)
    assert method().told == method((1, 8, 8), tasks="rotation").told == ()
    assert Materials(tiny.config("pretext")).told == gray.told
    assert method((3, 8, 9), tasks="sharpness, color").tasks == ("sharpness", "color")


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretext") / "run"
    single.fit(tiny.config("pretext", steps=4, evaluate_every=2, ema=0.5), out, show=False)
    return out


def test_a_run_holds_features_alone_and_its_log_what_is_solved(run: Path) -> None:
    kept = load_file(run / "model.safetensors")
    assert kept and all(name.startswith("features.") for name in kept)
    heads = {name for name in tiny.checkpoint(run)["method"] if name.startswith("heads.")}
    assert len(heads) == 2 * (len(TASKS) - 1)
    first, second = (line for line in tiny.log(run) if "validation/loss" in line)
    for name in TASKS:
        assert (f"encoder/accuracy/{name}" in first) == (f"validation/accuracy/{name}" in second) == (name != "color")
        assert 0 <= second.get(f"validation/accuracy/{name}", 0) <= 1
    result = single.fit(tiny.config("pretext", steps=4, evaluate_every=2, ema=0.5), run, show=False)
    assert result["task"] == "represent" and "test" not in result and not (run / "model-card.md").exists()
    assert result["data"]["notes"] == ["gray images have no color: that pretext task is left out"]


def test_trying_it_on_the_validation_images_changes_nothing(run: Path, tmp_path: Path) -> None:
    single.fit(tiny.config("pretext", steps=4, ema=0.5, model="small-cnn-bn", evaluate_every=1), tmp_path / "one")
    single.fit(tiny.config("pretext", steps=4, ema=0.5, model="small-cnn-bn"), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert tiny.same(one, two)


def test_what_is_tried_on_the_validation_images_is_the_loss_in_eval_mode() -> None:
    materials = Materials(tiny.config("pretext", model="small-cnn-bn", seed=3))
    found, pretext = single._tried(materials), materials.method
    assert pretext.training and isinstance(pretext, Pretext)
    with noise.seeded(3, "validation"):
        losses = pretext.eval().loss(batch(materials.data.validation.x[:].float() / 255))
    expected = {"loss": torch.stack([*losses.terms.values()]).sum(), **losses.metrics}
    assert found == pytest.approx({f"validation/{name}": value.item() for name, value in expected.items()}, rel=1e-5)


def refused(run: Path, tmp_path: Path) -> dict[str, Callable[[], Any]]:
    image = pictures.save(tmp_path / "a.png")
    return {
        "no classifier: train one on them, such as with semisynth fit --method linear-probe": lambda: (
            restore.classifier(run, CPU)
        ),
        "a generator is one of": lambda: load(str(run)),
        "unknown row or method 'pretext'": lambda: main(
            ["tune", "--method", "pretext", "--out", str(tmp_path / "tune")]
        ),
        "features and no classifier": lambda: main(["evaluate", str(run)]),
        "holds features and no": lambda: main(["predict", str(run), str(image), "--out", str(tmp_path / "p.csv")]),
        "'pretext'": lambda: main(
            ["bench", "--methods", "pretext", "--labels-per-class", "1", "--out", str(tmp_path / "bench")]
        ),
        "trains no classifier": lambda: dpt.DPT("digits", labels_per_class=1, stage1="pretext"),
    }


def test_what_asks_for_a_classifier_is_told_that_there_is_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for told, ask in refused(run, tmp_path).items():
        try:
            assert ask() == 2
            assert told in capsys.readouterr().err
        except UserError as error:
            assert told in str(error)
    report.write([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "none with a test accuracy: features and no classifier" in page and "validation/accuracy/rotation" in page


def test_fit_says_what_it_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(run / "config.json"), "--out", str(run)]) == 0
    assert f"it holds features and no classifier: a fit with --init {run}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fixmatch", "mpssl", "linear-probe", "pretext"])
def test_every_other_method_starts_from_the_features(name: str, run: Path, generator: str, tmp_path: Path) -> None:
    kept = load_file(run / "model.safetensors")
    found = Materials(tiny.config(name, generator, init=str(run))).method.model.state_dict()
    assert zoo.same(kept, {key: value for key, value in found.items() if key.startswith("features.")})
    single.fit(tiny.config(name, generator, init=str(run), steps=2), tmp_path / "run", show=False)


def test_dpts_classifier_starts_from_the_features(run: Path, tmp_path: Path) -> None:
    options = dpt.DPT("digits-pool", labels_per_class=3, steps=2, stage1="linear-probe", init=str(run))
    made = load_file(dpt.Work(options, tmp_path).classifier(None, 0).path / "model.safetensors")
    kept = load_file(run / "model.safetensors")
    assert tiny.same(kept, {name: made[name] for name in kept}) and "head.weight" in made


# ---- data without labels --------------------------------------------------------------------------------------------


def a_folder(path: Path) -> Path:
    for i in range(6):
        pictures.save(path / f"{i}.png", i, size=(8, 8))
    return path


def one_class(path: Path) -> Path:
    return pictures.folder(path, 6, classes=("cat",), splits=("train",), size=(8, 8))


def a_manifest(path: Path) -> Path:
    a_folder(path)
    return pictures.manifest(path / "set.csv", *(f"{i}.png,," for i in range(6)))


def a_list(path: Path) -> Path:
    a_folder(path)
    return pictures.manifest(path / "set.csv", *(f"{i}.png" for i in range(6)), head="path")


def a_list_in_parquet(path: Path) -> Path:
    a_folder(path)
    parquet.write_table(pyarrow.table({"path": [f"{i}.png" for i in range(6)]}), path / "set.parquet")
    return path / "set.parquet"


def in_parquet(path: Path) -> Path:
    a_folder(path)
    cells = [(path / f"{i}.png").read_bytes() for i in range(6)]
    parquet.write_table(pyarrow.table({"image": cells}), path / "set.parquet")
    return path / "set.parquet"


def arrays(path: Path) -> Path:
    path.mkdir()
    np.savez(path / "set.npz", images=(255 * images(6)).round().byte().permute(0, 2, 3, 1).numpy())
    return path / "set.npz"


@pytest.mark.parametrize("make", [a_folder, one_class, a_manifest, a_list, a_list_in_parquet, in_parquet, arrays])
def test_data_need_no_labels(make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = str(make(tmp_path / "set"))
    config = tiny.config("pretext", data=data, steps=2, evaluate_every=1)
    result = single.fit(config, tmp_path / "run", show=False)
    assert (result["classes"], result["class_names"], result["data"]["images"]) == (0, [], {"unlabeled": 6})
    assert single.fit(config, tmp_path / "run", show=False) == result
    report.write([tmp_path / "run"], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"two classes|'labels?' is missing"):
        Materials(tiny.config("fixmatch", data=data))
    labeled = pictures.folder(tmp_path / "labeled", 3, size=(8, 8))
    after = Config.of(
        {"method": {"name": "supervised"}, "data": str(labeled), "init": str(tmp_path / "run"), "steps": 1}
    )
    single.fit(after, tmp_path / "after", show=False)
