"""From the names in a configuration to the things they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisynth import distributed, generators, noise
from semisynth.augment.policies import Strong, Weak
from semisynth.data import splits
from semisynth.data.datasets import Dataset, Images
from semisynth.data.encoded import encoded
from semisynth.data.stream import Both, Pool, Source, Stream, Synthetic
from semisynth.difficulty import Judge
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError
from semisynth.generators import Generator, source
from semisynth.method import External, Update
from semisynth.models import Classifier, foreign
from semisynth.recipes import network, origin, restore
from semisynth.recipes.config import Config, Setting, method_class, method_parts
from semisynth.state import UNLABELED

MODEL, RATES = ("model", "init"), ("lr", "momentum", "weight_decay")
OWN, STILL = "; it has options of its own", ", as its features are not trained"
TUNED = ("tune_features", "lora_rank", "features_lr")

OF_FEATURES = ("scr", "pssl", "mgr", "mpssl")  # methods whose consistency is that of the features alone


class Materials:
    """What a configuration names, loaded and built: data (unless given), labels, generator, method, stream."""

    def __init__(self, config: Config, data: Dataset | None = None) -> None:
        self.config, setting, seed = config, config.setting, config.engine.seed
        self.device = resolve(config.engine.device)
        if setting.generator is None and config.asked != generators.DEFAULT:
            raise UserError("--generator-options are not read without --generator: leave them out.")
        loaded = generators.load(setting.generator, config.asked) if setting.generator else None
        self.made = generators.tried(loaded, str(setting.generator), self.device) if loaded is not None else None
        self.data = data or origin.load(config)
        self.told = self.data.told
        self.generator = self._adapted(loaded)
        self.labeled, self.rest = drawn(self.data, setting.labels_per_class, seed)
        if not method_class(config.method).reads_x:
            self.labeled = self.labeled.subset(torch.arange(0))
        parts = sorted(method_parts(config.method))  # a set has no order, and the weights are drawn in it
        if "generator" in parts and self.generator is None:
            raise UserError(
                f"method '{config.method}' needs --generator: {', '.join(generators.NAMES)}, {generators.KINDS}."
            )
        if self.generator is not None and method_class(config.method).through and self.generator.differentiable:
            raise UserError(
                f"method '{config.method}' is differentiated through the generator, and {setting.generator} cannot be: "
                f"{self.generator.differentiable}. Choose pssl, or a method such as fixmatch or scr with --unlabeled "
                "generator."
            )
        torch.manual_seed(noise.derive(seed, "initial weights"))
        self.method = method_class(config.method)(**{part: self._part(part) for part in parts}, **config.options)
        self.told += self.method.told
        config.engine.check(self.method.updates())  # before anything is written
        self._check_unread(parts)
        unlabeled, batch = self._unlabeled(), self._share("batch")  # whose errors come before long work
        self.stream = Stream(
            self._encoded(), unlabeled, batch=batch, steps=setting.steps, seed=seed, device=self.device
        )

    def _check_unread(self, parts: list[str]) -> None:
        """`UserError` for an option that this method would pass over in silence."""
        config, name = self.config, self.config.method
        unread: list[tuple[object, object, tuple[str, ...]]] = []
        unread += [(config.setting, Setting(), (part,)) for part in ("source", "judge") if part not in parts]
        if not self.method.reads_x:
            unread.append((config.setting, Setting(), ("labels_per_class", "batch")))
        updates = [update for update in self.method.updates().values() if isinstance(update, Update)]
        if "model" not in parts:
            unread.append((config.setting, Setting(), MODEL))
        classifiers = [part for update in updates for part in update.module.modules() if isinstance(part, Classifier)]
        if not classifiers:  # or its head alone
            unread.append((config.setting, Setting(), TUNED[:2]))
        if not any(p.requires_grad for part in classifiers for p in part.features.parameters()):
            unread.append((config.engine, Engine(), TUNED[2:]))
        if all(update.optimizer for update in updates):
            unread.append((config.engine, Engine(), RATES))
        whole = self.method.task == "represent"  # of which all is trained
        reasons = dict.fromkeys(MODEL + RATES, OWN) | dict.fromkeys(TUNED, ", as it trains all" if whole else STILL)
        for given, default, fields in unread:
            for field in fields:
                if getattr(given, field) != getattr(default, field):
                    raise UserError(f"method '{name}' does not read {field}: leave it out{reasons.get(field, '')}.")

    def _encoded(self) -> Images:
        """The labeled images or, for a method that asks for that, what its encoder makes of them."""
        encoder = self.method.encoded_by()
        return self.labeled if encoder is None else encoded(self.labeled, encoder, self.device)

    def _adapted(self, generator: Generator | None) -> generators.Permuted | None:
        """The generator with its classes shuffled and, where need be, with images of the data's shape."""
        if generator is None or self.made is None:
            return None
        adapter = generators.Adapter(self.made, self.data.shape)
        if adapter.told:
            self.told += (f"the images of generator '{self.config.setting.generator}' are {adapter.told}",)
            generator = generators.Adapted(generator, adapter)
        return generators.Permuted(generator, self.config.engine.seed)

    def _part(self, name: str) -> Any:
        setting, data = self.config.setting, self.data
        parts: dict[str, Callable[[], Any]] = {
            "model": self._model,
            "generator": lambda: self.generator,
            "source": self._source,
            "judge": self._judge,
            "weak": lambda: Weak(data.flip),
            "strong": lambda: Strong(data.flip),
            "shape": lambda: data.shape,
            "classes": lambda: len(data.classes),
            "pool": lambda: len(self.rest) if self._origin() in ("pool", "both") else 0,
            "synthetic": lambda: distributed.share(setting.unlabeled_batch, "unlabeled_batch"),
        }
        return parts[name]()

    def _model(self) -> nn.Module:
        setting = self.config.setting
        model = network.classifier(setting, self.data.shape, max(1, len(self.data.classes)))
        self.told += foreign.notes(model, setting.model, setting.init)
        if setting.tune_features == "frozen" and self.config.method in OF_FEATURES:
            self.told += (f"the features are frozen: the consistency of {self.config.method} teaches nothing",)
        return model

    def _source(self) -> nn.Module:
        setting = self.config.setting
        assert setting.generator and self.generator and self.made, "a source reads for a generator"
        names = generators.class_names(setting.generator, self.config.asked)
        found = source.load(setting.source, setting.generator, self.generator, self.made, self.data.shape, names)
        self.told += (found.told,) if found.told else ()
        return found

    def _judge(self) -> Judge | None:
        run, data = self.config.setting.judge, self.data
        if run is None:
            return None
        _, classifier, names, prepared = restore.classifier(Path(run), self.device)
        if unknown := sorted({*data.classes} - {*names}):
            raise UserError(f"--judge {run} knows no class '{unknown[0]}': give a classifier of these images.")
        if (prepared.channels, *prepared.size) != data.shape:
            raise UserError(f"--judge {run} reads images of another shape than {data.shape}: give one of these images.")
        return Judge(classifier, torch.tensor([names.index(name) for name in data.classes]))

    def _share(self, name: str) -> int:
        size: int = getattr(self.config.setting, name)
        distributed.share(size, name)
        return size

    def _origin(self) -> str:
        """Where unlabeled images come from, by the setting or, for "auto", by what there is."""
        origin = self.config.setting.unlabeled
        if origin != "auto":
            return origin
        return (
            ("pool" if self.generator is None else "generator") if method_class(self.config.method).reads_u else "none"
        )

    def _unlabeled(self) -> Source | None:
        """The source of the stream's `u`."""
        seed, name, origin = self.config.engine.seed, self.config.method, self._origin()
        if self.method.reads_u == (origin == "none"):
            told = (
                "needs unlabeled images: --unlabeled pool, generator or both"
                if self.method.reads_u
                else ("reads no unlabeled images: leave --unlabeled out")
            )
            raise UserError(f"method '{name}' {told}.")
        if self.generator is not None and origin in ("pool", "none") and "generator" not in method_parts(name):
            raise UserError(
                f"method '{name}' makes no use of --generator here: leave it out, or --unlabeled generator or both."
            )
        batch = self._share("unlabeled_batch")
        if origin == "both":
            batch = self._half(batch)
        synthetic = self._synthetic(origin, batch) if origin in ("generator", "both") else None
        if origin in ("pool", "both") and not len(self.rest):
            raise UserError(
                "every image of the pool is labeled: lower --labels-per-class, or give another --unlabeled."
            )
        pool = Pool(self.rest, batch, seed, self.device) if origin in ("pool", "both") else None
        return Both(pool, synthetic) if pool and synthetic else pool or synthetic

    def _half(self, batch: int) -> int:
        """Half of each rank's part."""
        if batch % (2 * distributed.world()):
            over = f" over {distributed.world()} processes" if distributed.world() > 1 else ""
            raise UserError(
                f"unlabeled_batch is {batch}, of which --unlabeled both takes half from the pool and half from the "
                f"generator{over}: choose a multiple of {2 * distributed.world()}."
            )
        return batch // 2

    def _synthetic(self, origin: str, batch: int) -> Source:
        if self.generator is None:
            raise UserError(f"--unlabeled {origin} needs --generator.")
        generator, like = self.generator.to(self.device), torch.empty(0, device=self.device)
        self.method.add_module(UNLABELED, External(generator))  # so that a run knows whose images it has seen
        return Synthetic(lambda n: generators.sample(generator, n, like), batch, self.config.engine.seed)


def drawn(data: Dataset, per_class: int, seed: int) -> tuple[Images, Images]:
    """The labeled images, and those without their labels: the rest of the pool, and what the data has besides.

    per_class: 0 for all of the pool as both. `UserError` where a class has fewer.
    """
    labeled = rest = pool = data.pool
    if per_class and data.classes:
        _check_enough(data, per_class)
        chosen, others = splits.draw_labels(pool.y, per_class, noise.derive(seed, "labels"))
        labeled, rest = pool.subset(chosen), pool.subset(others)
    return labeled, rest if data.unlabeled is None else rest.join(data.unlabeled)


def _check_enough(data: Dataset, per_class: int) -> None:
    """`UserError` naming the smallest class if it has fewer images to train on, and those that it has besides."""
    count = {split: _counts(getattr(data, split), data) for split in ("pool", "validation", "test")}
    smallest = int(count["pool"].argmin())
    there, validation, test = (int(found[smallest]) for found in count.values())
    if per_class > there:
        held = f" ({validation} are for validation, {test} for test{': see --holdout' if data.preparation else ''})"
        raise UserError(
            f"labels_per_class is {per_class}, but class '{data.classes[smallest]}' has only {there} images to train on"
            f"{held if validation or test else ''}: give at most {there}."
        )


def _counts(images: Images, data: Dataset) -> Tensor:
    return images.y[images.y >= 0].bincount(minlength=len(data.classes))
