"""RSMatch against naive loops over several steps of its memory, in float64, and what it finds in a mixture."""

from __future__ import annotations

import math
from typing import Any

import chosen
import numpy as np
import pytest
import torch
import zoo
from chosen import CLASSES
from torch import Tensor

from semisynth import noise
from semisynth.errors import UserError
from semisynth.method import Losses
from semisynth.methods import FixMatch, RSMatch, rsmatch
from semisynth.methods._spread import SHRINK, Spread, distance
from semisynth.methods.rsmatch import PERIODS, SCALE, SHARE_DECAY

POOL, SHAPE, PIXELS = 30, (1, 8, 8), 64
WEIGHT, BIAS = -1.3, -0.2


class Times:
    """A view that multiplies; logits are the first pixels of it."""

    def __init__(self, scale: float, turned: bool = False) -> None:
        self.scale, self.turned = scale, turned

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * (x.flip(-1) if self.turned else x)


def make(scale: float = 20.0, **options: Any) -> RSMatch:
    method = RSMatch(
        chosen.Classifier(CLASSES), Times(scale), Times(5.0, True), CLASSES, POOL, SHAPE, **{"length": 2, **options}
    ).double()
    if method.dummy is not None:
        method.dummy = chosen.Columns(CLASSES, 2 * CLASSES)
    if method.detector is not None and method.sees == "image":
        torch.nn.init.constant_(method.detector.weight, WEIGHT)
        torch.nn.init.constant_(method.detector.bias, BIAS)
    return method


def images(n: int, seed: int) -> Tensor:
    """Of 256 grey levels, as those of a data set."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, *SHAPE), generator=source).double() / 255


def pools(step: int) -> dict[str, Tensor]:
    """Unlabeled batches."""
    random = images(9, step)
    sure, single, vague = random.clone(), random.clone(), random.clone()
    sure[:, 0, 0, :CLASSES] = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(9) % CLASSES]
    single[:, 0, 0, :CLASSES] = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    vague[:, 0, 0, :CLASSES] = 0.6
    return {
        "random": random,
        "all confident": sure,
        "a single class": single,
        "none confident": vague,
        "one image": random[:1],
        "all alike": sure[:1].expand(9, *SHAPE),
        "black": torch.zeros(9, *SHAPE, dtype=torch.float64),
    }


class Naive:
    """The memory and one step of the method, in loops."""

    def __init__(self, method: RSMatch, scale: float) -> None:
        self.method, self.scale, self.share = method, scale, 0.5
        self.queue: list[list[tuple[int, list[float]]]] = [[] for _ in range(CLASSES)]
        self.suspicion, self.entered = [-1.0] * POOL, [[-1] * POOL for _ in range(PERIODS)]
        self.weight, self.total = np.zeros(CLASSES), np.zeros((CLASSES, PIXELS))
        self.square = np.zeros((PIXELS, PIXELS))

    def spread(self, u: list[list[float]], target: list[int], step: int) -> None:
        decay = min(0.99, step / (10 + step))
        self.weight *= decay
        self.total *= decay
        for values, c in zip(u, target, strict=True):
            self.weight[c] += (1 - decay) / len(u)
            self.total[c] += (1 - decay) / len(u) * np.array(values)
        self.square *= decay
        for values, c in zip(u, target, strict=True):
            rest = np.array(values) - self.total[c] / max(self.weight[c], 1e-6)
            self.square += (1 - decay) / len(u) * np.outer(rest, rest)

    def logit(self, values: list[float], c: int, count: float = POOL) -> float:
        """count: of the values that the averages are over, without this one; infinite if it is not among them."""
        rest = np.array(values) - self.total[c] / max(self.weight[c], 1e-6)
        others = 1 - min(1 / count / max(self.weight[c], 1e-6), 0.5)
        rest /= others
        level = max(np.trace(self.square) / PIXELS, 1e-6)
        inverse = np.linalg.inv(self.square + SHRINK * level * np.eye(PIXELS))
        white = rest @ inverse @ rest
        white /= max(1 - others * white / count, 0.1)
        return WEIGHT * SCALE * math.log(max(white / PIXELS, 1e-6)) + BIAS

    def step(self, x: Tensor, y: Tensor, u: Tensor, index: list[int], step: int, progress: float, seed: int) -> Any:
        method, rows, labeled = self.method, u.flatten(1).tolist(), x.flatten(1).tolist()
        p = [chosen.softmax([self.scale * v for v in row[:CLASSES]]) for row in rows]
        confidence, target = list(map(max, p)), [row.index(max(row)) for row in p]
        with noise.seeded(seed):
            draws = noise.integers(2**31, len(x)).tolist()
        self.spread(rows, target, step)
        flat = [(image, c) for c in range(CLASSES) for _, image in self.queue[c]]
        started, filled = progress >= method.start, bool(flat)
        logits = [self.logit(row, c) for row, c in zip(rows, target, strict=True)]
        positive = [self.logit(*flat[draw % len(flat)]) for draw in draws] if filled else logits
        detector = chosen.mean([math.log1p(math.exp(-v)) for v in positive]) + chosen.mean(
            [math.log1p(math.exp(self.logit(row, c, math.inf))) for row, c in zip(labeled, y.tolist(), strict=True)]
        )
        prior = math.log(self.share / (1 - self.share))
        suspicion = [1 / (1 + math.exp(-(v + prior))) for v in logits]
        told = filled or (started and not method.queue)
        synthetic = [told and s >= 0.5 for s in suspicion]
        if filled:
            moved = SHARE_DECAY * self.share + (1 - SHARE_DECAY) * chosen.mean(suspicion)
            self.share = min(max(moved, 1e-3), 1 - 1e-3)
        for i, s in zip(index, suspicion, strict=True):
            self.suspicion[i] = s
        if started and method.queue:
            self.enter(index, suspicion, confidence, target, rows, progress)
        return self.terms(u, confidence, target, synthetic, started), detector, synthetic

    def enter(self, index: Any, suspicion: Any, confidence: Any, target: Any, rows: Any, progress: float) -> None:
        inside = {i for places in self.queue for i, _ in places}
        for c in range(CLASSES):
            fit = [
                k
                for k in range(len(index))
                if target[k] == c
                and confidence[k] >= self.method.threshold
                and suspicion[k] >= 0.5
                and index[k] not in inside
            ]
            if fit:
                best = max(fit, key=lambda k: suspicion[k])
                self.queue[c] = [(index[best], rows[best]), *self.queue[c]][:2]
                self.entered[int(progress * PERIODS)][index[best]] = c

    def terms(self, u: Tensor, confidence: Any, target: Any, synthetic: Any, started: bool) -> tuple[float, float]:
        strong = (5 * u.flip(-1)).flatten(1)
        unsupervised, dummy = [], []
        for k, row in enumerate(strong.tolist()):
            own = chosen.cross_entropy(row[:CLASSES], target[k])
            unsupervised.append(own if confidence[k] >= self.method.threshold and not synthetic[k] else 0.0)
            taught = started if self.method.both else synthetic[k]
            dummy.append(chosen.cross_entropy(row[CLASSES : 2 * CLASSES], target[k]) if taught else 0.0)
        return chosen.mean(unsupervised), chosen.mean(dummy)


@pytest.mark.parametrize("case", pools(0))
@pytest.mark.parametrize(
    "scale, options",
    [(20.0, {}), (20.0, {"both": False, "weight": 0.7}), (1e300, {"threshold": 0.5}), (20.0, {"queue": False})],
    ids=["default", "synthetic alone", "infinite", "no queue"],
)
def test_terms_and_memory_are_those_of_loops_over_several_steps(
    case: str, scale: float, options: dict[str, Any]
) -> None:
    method = make(scale, start=0.2, **options)
    naive, weight = Naive(method, scale), options.get("weight", 1.0)
    for step in range(7):
        u, x, y = pools(step)[case], images(4, 100 + step), torch.arange(4)
        index = torch.arange(len(u)) + 5 * step % 20
        with noise.seeded(step):
            losses = method.loss(chosen.Batch(x, y, u, index, step, step / 7))
        (unsupervised, dummy), detector, synthetic = naive.step(x, y, u, index.tolist(), step, step / 7, step)
        assert chosen.is_close(losses.terms["unsupervised"], unsupervised, weight)
        assert chosen.is_close(losses.terms["dummy"], dummy, weight)
        assert losses.terms["detector"].item() == pytest.approx(detector, rel=1e-6)
        assert losses.metrics["synthetic"].item() == chosen.mean(synthetic)
        chosen.commit(method, losses)
        assert_same_memory(method, naive)
    if case == "all confident":
        assert (method.index >= 0).any() == method.queue


def assert_same_memory(method: RSMatch, naive: Naive) -> None:
    assert method.share.item() == pytest.approx(naive.share, rel=1e-6)
    assert method.suspicion.tolist() == pytest.approx(naive.suspicion, rel=1e-6, abs=1e-9)
    assert method.entered.tolist() == naive.entered
    for c, places in enumerate(naive.queue):
        padded = [i for i, _ in places] + [-1] * (2 - len(places))
        assert method.index[c].tolist() == padded
        for place, (_, image) in enumerate(places):
            assert (method.stored[c, place].double() / 255).flatten().tolist() == image


def first(method: RSMatch, progress: float, x: Tensor | None = None) -> Losses:
    u = pools(0)["all confident"]
    x = images(4, 1) if x is None else x
    with noise.seeded(0):
        return method.loss(chosen.Batch(x, torch.arange(4), u, torch.arange(len(u)), 3, progress))


def filled(**options: Any) -> RSMatch:
    """With a queue, and a detector that takes every image for synthetic."""
    method = make(**options)
    torch.nn.init.constant_(method.detector.bias, 60.0) if method.detector is not None else None
    chosen.commit(method, first(method, 0.5))
    return method


def test_nothing_is_told_apart_before_the_start() -> None:
    method = make(start=0.5)
    torch.nn.init.constant_(method.detector.bias, 60.0)
    losses = first(method, 0.49)
    assert losses.metrics["synthetic"] == 0 and losses.metrics["mask"] == 1 and losses.terms["dummy"] == 0
    assert not losses.memory.keys() & {"index", "stored", "entered"}
    assert losses.memory["share"] == 0.5
    assert (first(method, 0.5).memory["index"] >= 0).any()


def test_what_is_taken_for_synthetic_teaches_the_dummy_head_and_never_the_classifiers_own() -> None:
    method = filled()
    losses = first(method, 0.5)
    assert losses.metrics["synthetic"] == 1 and losses.metrics["mask"] == 0
    head, dummy = method.model.head.shift, method.dummy.shift
    total = losses.terms["unsupervised"] + losses.terms["dummy"] + losses.terms["detector"]
    found = torch.autograd.grad(total, [head, dummy], allow_unused=True, materialize_grads=True)
    assert found[0].abs().sum() == 0 and found[1].abs().sum() > 0


def test_without_a_dummy_head_they_are_left_out() -> None:
    losses = first(filled(dummy=False), 0.5)
    assert set(losses.terms) == {"supervised", "detector", "unsupervised"} and losses.terms["unsupervised"] == 0


def test_without_a_detector_all_images_teach_both_heads() -> None:
    method = make(detector=False, start=0.3)
    before, after = first(method, 0.2), first(method, 0.4)
    assert before.metrics["mask"] == after.metrics["mask"] == 1 and not after.memory
    assert before.terms["dummy"] == 0 < after.terms["dummy"] and "detector" not in after.terms


def test_a_queue_that_no_memory_holds_is_told() -> None:
    with pytest.raises(UserError, match=r"25 images of 1000 classes takes 3.5 GiB: give a lower --method.length"):
        RSMatch(chosen.Classifier(CLASSES), Times(1.0), Times(1.0), 1000, POOL, (3, 224, 224))


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_with_neither_it_is_fixmatch(view: Any) -> None:
    model, options = zoo.network("cnn-group-silu"), {"threshold": 0.4, "weight": 0.7, "view": view}
    bare = RSMatch(model, zoo.WEAK, zoo.STRONG, zoo.CLASSES, POOL, zoo.SHAPE, detector=False, dummy=False, **options)
    found = []
    for method in (bare.double(), FixMatch(model, zoo.WEAK, zoo.STRONG, **options).double()):
        with noise.seeded(0):
            found.append(method.loss(zoo.batch(m=9, progress=0.5)))
    assert found[0].terms.keys() == found[1].terms.keys() and 0 < found[0].metrics["mask"] < 1
    for name, term in found[0].terms.items():
        torch.testing.assert_close(term, found[1].terms[name])


@pytest.mark.parametrize("shared", [False, True])
def test_the_detectors_gradient_enters_the_features_only_if_it_is_shared(shared: bool) -> None:
    model = zoo.network("cnn-group-silu")
    method = RSMatch(model, zoo.WEAK, zoo.STRONG, zoo.CLASSES, POOL, zoo.SHAPE, sees="features", shared=shared).double()
    torch.nn.init.normal_(method.detector.weight)
    with noise.seeded(0):
        term = method.loss(zoo.batch(m=6)).terms["detector"]
    features = list(model.features.parameters())
    found = torch.autograd.grad(term, features, allow_unused=True, materialize_grads=True)
    assert (sum(g.abs().sum() for g in found) > 0) == shared
    assert torch.autograd.grad(method.loss(zoo.batch(m=6)).terms["detector"], [method.detector.weight])[0].norm() > 0


def test_what_is_rather_real_does_not_enter_the_queue() -> None:
    method = make()
    torch.nn.init.constant_(method.detector.bias, -60.0)
    assert (first(method, 0.5).memory["index"] == -1).all()


def test_an_image_of_the_queue_does_not_enter_again() -> None:
    method = filled(length=9)
    for _ in range(5):
        chosen.commit(method, first(method, 0.5))
    inside = method.index[method.index >= 0]
    assert len(inside) == len(inside.unique()) == 9


def test_typical_images_are_found_in_a_mixture_and_hardly_any_in_a_clean_pool() -> None:
    """Real images have large deviations from their class, synthetic ones small."""
    shares, suspicions = {}, {}
    for share in (0.0, 0.5):
        source = torch.Generator().manual_seed(0)
        n, size = 400, torch.full((400,), 0.1, dtype=torch.float64)
        size[: int(share * n)] = 0.02
        x = torch.randn(n + 40, PIXELS, generator=source, dtype=torch.float64)
        x = x * torch.cat([size, torch.full((40,), 0.1, dtype=torch.float64)])[:, None] + 0.5
        x[:, :CLASSES] = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(n + 40) % CLASSES]
        x = x.clamp(0, 1).view(-1, *SHAPE)
        shares[share], suspicions[share] = trained(x[n:], torch.arange(40) % CLASSES, x[:n])
    assert shares[0.0] < 0.2 and 0.4 < shares[0.5] < 0.6
    assert (suspicions[0.0] >= 0.5).double().mean() < 0.1
    assert (suspicions[0.5][:200] >= 0.5).all() and (suspicions[0.5][200:] < 0.5).all()


def trained(x: Tensor, y: Tensor, u: Tensor) -> tuple[float, Tensor]:
    """The share and the suspicions after the detector learned for a while."""
    method = RSMatch(chosen.Classifier(CLASSES), Times(20.0), Times(5.0), CLASSES, len(u), SHAPE, dummy=False).double()
    optimizer = torch.optim.SGD(method.detector.parameters(), lr=0.03, momentum=0.9)
    for step in range(300):
        with noise.seeded(step):
            rows = noise.integers(len(u), 64)
            losses = method.loss(chosen.Batch(x, y, u[rows], rows, step, step / 300))
        optimizer.zero_grad()
        losses.terms["detector"].backward()
        optimizer.step()
        chosen.commit(method, losses)
    return method.share.item(), method.suspicion


def test_a_distance_is_that_of_a_value_which_was_left_out() -> None:
    """Of the averages over ten values, one left out: S less its part, and the mean of the other nine."""
    values, target = zoo.normal(10, 3, 1.0, 0), torch.zeros(10, dtype=torch.int64)
    spread = Spread(1, 3).double().after(values, target, 0)
    found = distance(spread, values, target, torch.full((10,), 0.1, dtype=torch.float64))
    level = SHRINK * spread["square"].diagonal().mean() * torch.eye(3, dtype=torch.float64)
    for i, value in enumerate(values):
        others = values[torch.arange(10) != i]
        rest, around = value - others.mean(0), others - others.mean(0)
        inverse = torch.linalg.inv(around.T @ around / 10 + level)
        assert found[i].item() == pytest.approx(math.log(rest @ inverse @ rest / 3), rel=1e-9)


def test_a_pool_is_needed_and_options_are_checked() -> None:
    parts: Any = (chosen.Classifier(CLASSES), Times(1), Times(1), CLASSES)
    with pytest.raises(UserError, match="there is none: give --unlabeled pool"):
        RSMatch(*parts, 0, SHAPE)
    with pytest.raises(UserError, match=r"give --method\.sees features"):
        RSMatch(*parts, POOL, SHAPE, shared=True)
    for name, value in (("threshold", 1.1), ("start", -1), ("length", 0), ("weight", -1)):
        with pytest.raises(UserError, match=name):
            RSMatch(*parts, POOL, SHAPE, **{name: value})


def test_the_docstring_says_that_it_is_a_reconstruction() -> None:
    assert "our reconstruction" in (rsmatch.__doc__ or "")
