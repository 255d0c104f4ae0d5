"""What methods that learn from their own predictions share: limits of logits, weighted sums, alignment, averages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chosen
import pytest
import torch
from chosen import CLASSES, LOGITS, Views, each_logits
from torch import Tensor

from semisynth.method import Method
from semisynth.methods import FlexMatch, FreeMatch, IOMatch, OpenMatch, SoftMatch
from semisynth.methods._targets import aligned, consistency, finite, moved


@each_logits
def test_probabilities_of_finite_logits_are_the_limit(weak: Tensor) -> None:
    found = finite(weak).softmax(-1)
    for row, p in zip(weak.tolist(), found.tolist(), strict=True):
        assert p == pytest.approx(chosen.softmax(row), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_finite_logits_are_wide_ordinary_ones_as_they_were_and_their_differences_finite(dtype, wide) -> None:
    logits = torch.tensor([math.inf, -math.inf, 0.0, -3.0, math.nan], dtype=dtype)
    found = finite(logits)
    assert found.dtype == wide and found[2] == 0 and found[3] == -3
    assert (found[0] - found[1]).isfinite() and found[0] > 1e37 and found[1] < -1e37
    assert found[4].isnan()  # what must end the training does


@each_logits
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_consistency_is_a_loop_over_all_rows(weak: Tensor, kind: str) -> None:
    target = torch.arange(len(weak)) % CLASSES
    p = torch.rand(len(weak), CLASSES, dtype=torch.float64).softmax(-1)
    weight = torch.rand(len(weak), dtype=torch.float64) * (torch.arange(len(weak)) % 3 > 0)
    given = target if kind == "classes" else p
    each = [
        w * chosen.cross_entropy(row, t) if w else 0.0
        for row, t, w in zip(weak.tolist(), given.tolist(), weight.tolist(), strict=True)
    ]
    assert chosen.is_close(consistency(finite(weak), given, weight), chosen.mean(each))


@each_logits
def test_alignment_is_a_loop_and_knows_no_scale(weak: Tensor) -> None:
    p = finite(weak).softmax(-1)
    expected = p.mean(0)
    for row, found in zip(p.tolist(), aligned(p, expected).tolist(), strict=True):
        ratio = [q / e if e else 0.0 for q, e in zip(row, expected.tolist(), strict=True)]
        assert found == pytest.approx([r / sum(ratio) for r in ratio], rel=1e-12, abs=1e-300)
    torch.testing.assert_close(aligned(p, 7 * expected), aligned(p, expected))


def test_aligned_predictions_of_a_skewed_batch_are_even_on_average() -> None:
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], dtype=torch.float64)
    found = aligned(p, p.mean(0))
    torch.testing.assert_close(found[1], torch.full((2,), 0.5, dtype=torch.float64))
    assert found[0, 0] > 0.5 > found[2, 0]


def test_an_average_moves_by_what_the_decay_leaves() -> None:
    found = moved(torch.tensor(1.0), torch.tensor(3.0), 0.75)
    assert found.item() == 1.5


# ---- what holds for every method ------------------------------------------------------------------------------------

Make = Callable[..., Method]


def simple(kind: type[Any], **parts: int) -> Make:
    def make(classes: int = CLASSES, weak: Views | None = None, **options: Any) -> Method:
        weak = weak or Views([0], 2)
        return kind(chosen.Columns(0, classes), weak, Views([1], 2), classes=classes, **parts, **options).double()

    return make


def openmatch(classes: int = CLASSES, **options: Any) -> Method:
    method = OpenMatch(chosen.Classifier(classes), Views([0], 2), Views([1], 2), classes=classes, **options).double()
    method.one_vs_all = chosen.Columns(0, 2 * classes, (classes, 2))
    return method


def iomatch(classes: int = CLASSES, **options: Any) -> Method:
    method = IOMatch(chosen.Classifier(classes), Views([0], 2), Views([1], 2), classes=classes, **options).double()
    method.projection = torch.nn.Identity()
    method.one_vs_all = chosen.Columns(0, 2 * classes, (classes, 2))
    method.open_head = chosen.Columns(0, classes + 1)
    return method


METHODS: dict[str, Make] = {
    "flexmatch": simple(FlexMatch, pool=30),
    "freematch": simple(FreeMatch),
    "softmatch": simple(SoftMatch),
    "openmatch": openmatch,
    "iomatch": iomatch,
}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def wide(logits: Tensor) -> Tensor:
    """As many columns as the binary classifiers of the classes ask for."""
    return logits.repeat(1, 3)


def data(weak: Tensor, strong: Tensor) -> Any:
    x, y = chosen.labeled(classes=weak.shape[1])
    return chosen.batch(chosen.images(wide(x), wide(x)), y, chosen.images(wide(weak), wide(strong)))


@each_method
@each_logits
def test_no_logits_leave_a_memory_a_mask_or_a_gradient_that_is_not_finite(make: Make, weak: Tensor) -> None:
    method = make()
    for strong in (weak, weak.roll(1, 1)):
        losses = method.loss(data(weak, strong))
        assert not any(term.isnan() for term in losses.terms.values())
        assert all(value.isfinite().all() for value in (*losses.memory.values(), *losses.metrics.values()))
        assert not any(gradient.isnan().any() for gradient in chosen.gradients(method, losses))
        chosen.commit(method, losses)


@each_method
def test_infinite_logits_in_the_weak_view_alone_leave_the_losses_finite(make: Make) -> None:
    losses = make().loss(data(LOGITS["infinite"], torch.randn(6, CLASSES, dtype=torch.float64)))
    finite_terms = {name: term for name, term in losses.terms.items() if name not in ("entropy", "consistency")}
    assert all(term.isfinite() and term.abs() < 1e3 for term in finite_terms.values())


@each_method
def test_a_logit_that_is_no_number_is_not_hidden(make: Make) -> None:
    strong = torch.randn(6, CLASSES, dtype=torch.float64)
    losses = make().loss(data(80 * torch.eye(CLASSES)[[0, 1, 2, 3, 0, 1]].double(), strong.where(strong < 1, math.nan)))
    assert torch.stack(list(losses.terms.values())).sum().isnan()


@each_method
def test_a_single_class_is_trivial(make: Make) -> None:
    method = make(classes=1)
    for seed in range(3):
        logits = torch.randn(5, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        losses = method.loss(data(logits, -logits))
        assert losses.terms["supervised"] == 0 and losses.terms["unsupervised"].abs() < 1e-12
        assert all(value.isfinite().all() for value in (*losses.terms.values(), *losses.memory.values()))
        chosen.commit(method, losses)


@each_method
def test_targets_are_constant(make: Make) -> None:
    weak = 3 * torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = data(weak, weak.flip(0))
    given.u.requires_grad_()
    losses = make(**({"threshold": 0.4} if make in (METHODS["flexmatch"], METHODS["iomatch"]) else {})).loss(given)
    gradient = torch.autograd.grad(losses.terms["unsupervised"], given.u)[0].flatten(1)
    assert not gradient[:, : 3 * CLASSES].any() and gradient[:, 3 * CLASSES :].any()


@each_method
def test_the_loss_writes_nothing(make: Make) -> None:
    method = make()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    losses = method.loss(data(LOGITS["random"], LOGITS["random"]))
    assert all(value.equal(method.state_dict()[name]) for name, value in before.items())
    assert set(losses.memory) == {name for name, _ in method.named_buffers()}


@each_method
def test_statistics_under_bf16_are_as_fine_as_in_float32(make: Make) -> None:
    method = make().float()
    given = data(LOGITS["random"], LOGITS["random"])
    rounded = given.u.bfloat16()
    full = method.loss(type(given)(given.x.bfloat16().float(), given.y, rounded.float(), given.index, progress=0.5))
    half = method.to(torch.bfloat16)
    for name, buffer in half.named_buffers():
        buffer.data = make().float().get_buffer(name).data
    found = half.loss(type(given)(given.x.bfloat16(), given.y, rounded, given.index, progress=0.5))
    for one, other in ((full.terms, found.terms), (full.memory, found.memory)):
        for name, value in one.items():
            assert other[name].dtype == value.dtype
            torch.testing.assert_close(other[name], value)
