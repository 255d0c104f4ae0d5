"""A scikit-learn classifier: the same run as on the command line, from arrays and in a temporary directory."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from semisynth import weights
from semisynth.data import arrays
from semisynth.data.arrays import Array
from semisynth.data.datasets import ARRAYS, Dataset, Images, Reading
from semisynth.data.decode import Preparation
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError, choose
from semisynth.evaluate import logits
from semisynth.models import foreign
from semisynth.recipes import restore, single
from semisynth.recipes.config import Config, Setting, method_class, method_parts

FILE = "estimator.json"
# What scikit-learn's `check_estimator` asks for and does not get, by the name of the check, with the reason.
EXPECTED_FAILED_CHECKS = {
    "check_classifiers_classes": "asks for the classes -1 and 1, and -1 is no label, as in sklearn.semi_supervised, "
    "whose classifiers the check leaves out by name",
}


class SemiSynthClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learns to classify images from few labels, and from a generator or from images without labels.

    Images are X (n, h, w), (n, h, w, c) with 1 or 3 channels c, or rows of pixels (n, h * w) as scikit-learn has them:
    a square of one channel, unless `image_shape` says (h, w) or (h, w, c). Rows of another length are followed by black
    up to a square, of at least 8x8. uint8 is 0 to 255, and numbers in [0, 1] are what they are; of others the smallest
    and the largest of `fit` become black and white (`range_`). As on the command line there are then 256 levels.

    y holds a class for each image, of any kind that can be sorted, or none: -1 where classes are numbers, and None,
    nan or blank text. Images without a label are learned from by the methods that read unlabeled images (fixmatch, uda,
    scr, entropy, meanteacher), together with the labeled ones; the others learn from `generator`.

    Args:
        method: as `semisynth fit --method`
        generator: as `--generator`; its images are resized to those of X. Only methods that ask for one read it, and
            any that reads unlabeled images if `unlabeled` is "generator" or "both"
        model: as `--model`
        init: as `--init`; "foundation" starts from features of characters
        source: as `--source`
        unlabeled: as `--unlabeled`; auto: the images of X, for methods that read any
        steps: length of the training
        batch: labeled images of a step
        unlabeled_batch: unlabeled or synthetic images of a step
        lr: learning rate
        mirror: whether a mirror image keeps its class
        method_options: options of the method, as {"threshold": 0.9} for `--method.threshold 0.9`
        engine_options: any other options of the engine, as {"precision": "bf16"} for `--precision bf16`
        image_shape: of a row of pixels
        random_state: the seed; a generator of numpy, or None, draws one
        device: as `--device`
        verbose: whether progress is shown
        tune_features: as `--tune-features`
        lora_rank: as `--lora-rank`

    `fit` sets classes_, n_features_in_ (pixels times channels), image_shape_ (h, w, c), range_, config_ (`config.json`,
    whose run on the same images has the same bytes), result_ (`result.json`) and model_ (a torch module, on the CPU).

    scikit-learn's `check_estimator` passes, but for `EXPECTED_FAILED_CHECKS`; by its tag `poor_score` it does not ask
    for a score, as its rows are points in a plane, which are no images.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> y[100:] = -1
    >>> classifier = SemiSynthClassifier("fixmatch", steps=2).fit(X[:500], y[:500])
    >>> classifier.predict_proba(X[500:]).shape
    (1297, 10)
    >>> classifier.image_shape_, classifier.range_
    ((8, 8, 1), (0.0, 16.0))
    """

    def __init__(
        self,
        method: str = "mpssl",
        generator: str | None = "glyphs",
        model: str = Setting.model,
        init: str = Setting.init,
        source: str | None = Setting.source,
        unlabeled: str = Setting.unlabeled,
        steps: int = Setting.steps,
        batch: int = Setting.batch,
        unlabeled_batch: int = Setting.unlabeled_batch,
        lr: float = Engine.lr,
        mirror: bool = False,
        method_options: Mapping[str, Any] | None = None,
        engine_options: Mapping[str, Any] | None = None,
        image_shape: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = Engine.device,
        verbose: bool = False,
        tune_features: str = Setting.tune_features,
        lora_rank: int = Setting.lora_rank,
    ) -> None:
        self.method = method
        self.generator = generator
        self.model = model
        self.init = init
        self.source = source
        self.unlabeled = unlabeled
        self.steps = steps
        self.batch = batch
        self.unlabeled_batch = unlabeled_batch
        self.lr = lr
        self.mirror = mirror
        self.method_options = method_options
        self.engine_options = engine_options
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.tune_features = tune_features
        self.lora_rank = lora_rank

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks; poor_score: the checks classify points in a plane, which are no images."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> SemiSynthClassifier:
        """Train on images X and labels y, of which some may be missing; `UserError`, a ValueError, for what is wrong.

        The global random numbers of torch are left as they were.
        """
        flat = self._rows(X, reset=True)
        labels, self.classes_ = arrays.numbered(y, len(flat))
        self.range_ = arrays.scale(flat)
        data = self._data(flat, labels)
        config = self._config(len(flat) - len(data.pool))
        device = resolve(self.device)
        forked = torch.random.fork_rng([] if device.type == "cpu" else [device])
        with forked, tempfile.TemporaryDirectory(prefix="semisynth-") as folder:
            run = Path(folder) / "run"
            self.result_ = single.fit(config, run, show=self.verbose, data=data, study=False)
            self.config_ = config.flat()
            self.model_ = restore.classifier(run, torch.device("cpu"))[1]
        return self

    def predict(self, X: Any) -> Array:
        """The most probable class of each image (n,)."""
        p = self.predict_proba(X)
        found: Array = self.classes_[p.argmax(1)]
        return found

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class (n, classes), in the order of `classes_`."""
        check_is_fitted(self)
        x = self._images(self._rows(X, reset=False))
        device = resolve(self.device)
        model = self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)
        z = logits(model, Images(x, torch.empty(len(x))), self.result_["class_names"], device=device)
        found: Array = z.softmax(-1).float().numpy()
        return found

    def save(self, path: str | Path) -> None:
        """Write a directory, which is new, with the weights as safetensors and all else as JSON.

        `semisynth predict` takes it as it takes a run. `UserError` if something is there.
        """
        check_is_fitted(self)
        path = Path(path)
        time = self.classes_.dtype.kind in "mM"  # which JSON has not: as numbers
        content = {
            "parameters": self.get_params() | {"random_state": self.config_["seed"]},
            "classes": {
                "type": self.classes_.dtype.str,
                "names": (self.classes_.astype(np.int64) if time else self.classes_).tolist(),
            },
            "image_shape": self.image_shape_,
            "range": self.range_,
            "features": self.n_features_in_,
            "feature_names": getattr(self, "feature_names_in_", np.empty(0, object)).tolist(),
        }
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): give a directory that is not there."
            ) from error
        weights.write_tensors(path / "model.safetensors", self.model_.state_dict())
        weights.write_json(path / "config.json", self.config_)
        foreign.write(self.model_, path)
        weights.write_json(path / FILE, arrays.plain(content))
        weights.write_json(path / "result.json", self.result_)

    @classmethod
    def load(cls, path: str | Path) -> SemiSynthClassifier:
        """What `save` wrote; `UserError` if it is not all there."""
        path = Path(path)
        content = weights.read_json(path / FILE)
        try:
            found = cls(**content["parameters"])
            found.classes_ = np.array(content["classes"]["names"], np.dtype(content["classes"]["type"]))
            found.image_shape_, found.range_ = tuple(content["image_shape"]), tuple(content["range"])
            found.n_features_in_ = content["features"]
            if content["feature_names"]:
                found.feature_names_in_ = np.array(content["feature_names"], object)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / FILE} is not as save wrote it ({error!r}): restore it.") from error
        found.config_, found.result_ = (weights.read_json(path / f"{name}.json") for name in ("config", "result"))
        found.model_ = restore.classifier(path, torch.device("cpu"))[1]
        return found

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: one's own network as its record and weights, as its code is not importable by name."""
        state: dict[str, Any] = dict(super().__getstate__())
        if record := foreign.code(state.get("model_")):
            state["model_"] = (record, self.model_.state_dict())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From what was pickled; `UserError` if the code of one's own network is not as it was."""
        super().__setstate__(state)
        if isinstance(found := state.get("model_"), tuple):
            setting, (h, w, c) = Config.of(self.config_).setting, self.image_shape_
            args = ("the pickle", setting.model, (c, h, w), len(self.classes_))
            self.model_ = foreign.restored(found[0], *args)
            setting.tuning.apply(self.model_, (c, h, w))
            self.model_.load_state_dict(found[1])
            self.model_.eval()

    def _rows(self, X: Any, reset: bool) -> Array:
        """X as rows of pixels (n, h * w * c), checked; sets or compares what is known of them."""
        array = np.asarray(X)
        given = (*array.shape[1:], 1)[:3] if array.ndim in (3, 4) else None
        # What is no image goes on as it came: a table may have names of features.
        rows: Array = validate_data(self, array.reshape(len(array), math.prod(given)) if given else X, reset=reset)
        if reset:
            self.image_shape_ = arrays.shape(given or self.image_shape, rows.shape[1])
        elif given and given != self.image_shape_:
            raise UserError(f"X has images of shape {given}, those of fit had {self.image_shape_}: (h, w, channels).")
        return rows

    def _images(self, rows: Array) -> torch.Tensor:
        """Rows of pixels as images (n, c, h, w) uint8."""
        return torch.from_numpy(arrays.laid_out(arrays.levels(rows, self.range_), self.image_shape_))

    def _data(self, rows: Array, labels: Array) -> Dataset:
        x, y = self._images(rows), torch.from_numpy(labels)
        known, none = y >= 0, Images(x[:0], torch.empty(0, dtype=torch.int64))
        others = Images(x[~known], y[~known])
        return Dataset(
            ARRAYS,
            tuple(map(str, self.classes_)),
            Images(x[known], y[known]),
            validation=none,
            test=none,
            flip=self.mirror,
            unlabeled=others if len(others) else None,
            preparation=Preparation((x.shape[2], x.shape[3]), x.shape[1], Reading.fit),
        )

    def _config(self, unlabeled: int) -> Config:
        """The configuration of this fit, which has so many images without a label."""
        parameters = {name: arrays.plain(value) for name, value in self.get_params().items()}
        names = ["model", "init", "tune_features", "lora_rank", "source", "unlabeled"]
        names += ["steps", "batch", "unlabeled_batch", "lr", "device"]
        options = parameters["engine_options"] or {}
        for name in options:
            choose(name, [f for f in Engine.__dataclass_fields__ if f not in (*names, "seed")], "engine option")
        h, w, c = self.image_shape_
        fields = {name: parameters[name] for name in names} | options
        fields |= {"size": h if h == w else 0, "channels": "gray" if c == 1 else "rgb", "holdout": 0.0}
        fields |= {"data": ARRAYS, "seed": self._seed(), "mirror": "yes" if self.mirror else "no"}
        fields |= {"method": {"name": self.method, **(parameters["method_options"] or {})}}
        asks = self.unlabeled in ("generator", "both") or "generator" in method_parts(self.method)
        config = Config.of(fields | {"generator": self.generator if asks else None}, "the parameters")
        _check_used(config, unlabeled)
        return config

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def _check_used(config: Config, unlabeled: int) -> None:
    method = method_class(config.method)
    if method.task != "classify":
        makes = "a generator" if method.task == "generate" else "features"
        raise UserError(f"method '{config.method}' makes {makes}, not a classifier.")
    if unlabeled and (not method.reads_u or config.setting.unlabeled == "generator"):
        told = f"method '{config.method}' learns from its generator or from labels alone"
        warnings.warn(f"{told}: the {unlabeled} images without a label are not used.", UserWarning, stacklevel=4)
