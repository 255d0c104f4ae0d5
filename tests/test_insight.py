"""What a study finds, each quantity against a loop in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from semisynth import distributed, insight, noise
from semisynth.generators.protocol import draw, sample
from semisynth.method import Batch
from semisynth.methods import MGR, MPSSL, Transport
from semisynth.models.mapper import Mapper

N, RATE = 7, 0.2
SEED = ("a study",)
METHODS = ("mpssl", "transport", "mgr")
Studied = MPSSL | Transport | MGR


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples in uneven chunks."""
    for name, value in {"SAMPLES": N, "DRAWS": 30, "TOP": 2, "VIEWS": 3, "LABELED_VIEWS": 10, "CHUNK": 4}.items():
        monkeypatch.setattr(insight, name, value)


def method(name: str, network: str = "cnn-group-relu") -> Studied:
    """One whose views are constant, with a mapper that has moved, in eval mode."""
    parts = (zoo.network(network), zoo.generator())
    made: Studied
    if name == "mgr":
        made = MGR(*parts, zoo.faint, zoo.mixed, 5, weight=0.3, inner_lr=RATE)
    elif name == "mpssl":
        made = MPSSL(*parts, zoo.faint, zoo.mixed, zoo.CLASSES, 5, weight=0.3, inner_lr=RATE)
    else:
        source = nn.Sequential(nn.Flatten(), nn.Linear(64, zoo.FOUNDATION)).double()
        made = Transport(*parts, source, zoo.faint, zoo.mixed, zoo.CLASSES, 5, weight=0.3, inner_lr=RATE)
    nn.init.normal_(made.mapper.out.weight, std=0.3)
    return made.double().eval()


def study(made: Studied, batch: Batch) -> dict[str, Tensor]:
    with noise.seeded(*SEED):
        return made.study(batch)


def samples(made: Studied, like: Tensor) -> tuple[Tensor, Tensor]:
    """The images that `study` makes first, and their target classes."""
    y = torch.arange(N) % zoo.CLASSES
    with noise.seeded(*SEED), torch.no_grad():
        if not isinstance(made, MGR):
            return made.latents.of(y, like), y
        z, foundation = draw(made.generator.module, N, like)
        return made.generator(made.mapper(z), foundation), y


def loss(made: Studied, s: Tensor, y: Tensor) -> Tensor:
    """l_i of one image (1, c, h, w), from its definition."""
    features, head = made.model.features, made.model.head
    if isinstance(made, MGR):
        return 0.3 * (features(s) - features(zoo.mixed(s))).square().sum()
    strong, weak = features(zoo.mixed(s))[0], features(zoo.faint(s))[0].detach()
    found = 0.3 * (1 - strong @ weak / (strong.norm() * weak.norm()))
    if isinstance(made, Transport):
        found = found - 0.5 * head(weak).softmax(0)[y].detach() * head(strong).log_softmax(0)[y]
    return found


def flat(value: Tensor, model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("network", ["cnn-group-relu", "cnn-batch-relu", "wrn-group-leaky"])
@pytest.mark.parametrize("name", METHODS)
def test_the_effect_is_that_of_a_step_along_each_loss_alone(name: str, network: str) -> None:
    made, batch = method(name, network), zoo.batch(6)
    s, y = samples(made, batch.x)
    v = flat(F.cross_entropy(made.model(zoo.mixed(batch.x)), batch.y), made.model)
    expected = torch.stack([-RATE * flat(loss(made, s[i : i + 1], y[i]), made.model) @ v for i in range(N)])
    found = study(made, batch)
    assert expected.abs().min() > 1e-9 and (found["effect"] - expected).norm() <= 1e-10 * expected.norm()
    assert found["error"].max() <= 1e-12 * expected.norm()  # constant views agree


def test_the_effect_is_the_slope_of_the_validation_loss() -> None:
    made, batch, h = method("mpssl", "cnn-group-silu"), zoo.batch(6), 1e-4
    s, y = samples(made, batch.x)
    step = [
        torch.autograd.grad(loss(made, s[2:3], y[2]), [p], allow_unused=True, materialize_grads=True)[0]
        for p in made.model.parameters()
    ]

    def validation(weight: float) -> float:
        with torch.no_grad():
            for parameter, slope in zip(made.model.parameters(), step, strict=True):
                parameter -= weight * RATE * slope
            value = F.cross_entropy(made.model(zoo.mixed(batch.x)), batch.y).item()
            for parameter, slope in zip(made.model.parameters(), step, strict=True):
                parameter += weight * RATE * slope
        return value

    difference = (validation(h) - validation(-h)) / (2 * h)
    assert study(made, batch)["effect"][2].item() == pytest.approx(difference, rel=1e-5)


def test_the_effect_is_a_mean_over_views_with_its_standard_error() -> None:
    model, batch, scales = zoo.network("cnn-group-relu"), zoo.batch(4), []

    def each(s: Tensor, rows: Tensor) -> Tensor:
        scales.append((rows, noise.normal(len(rows), like=s)))
        return scales[-1][1] * model.features(s).square().sum(1)

    s = zoo.batch(N, step=1).x
    with noise.seeded(*SEED):
        found = insight.influence(insight.Step(model, zoo.faint, each, RATE), s, batch)
    v = flat(F.cross_entropy(model(zoo.faint(batch.x)), batch.y), model)
    for i in range(N):
        base = (-RATE * flat(model.features(s[i : i + 1]).square().sum(), model) @ v).item()
        drawn = [scale[rows.tolist().index(i)].item() for rows, scale in scales if i in rows]
        assert len(drawn) == 3
        mean = sum(drawn) / 3
        error = math.sqrt(sum((scale - mean) ** 2 for scale in drawn) / 2 / 3)
        assert found["effect"][i].item() == pytest.approx(mean * base, rel=1e-10)
        assert found["error"][i].item() == pytest.approx(error * abs(base), rel=1e-10)


def test_the_validation_gradient_is_a_mean_over_as_many_views_as_told() -> None:
    model, batch, scales = zoo.network("cnn-group-relu"), zoo.batch(4), []

    def view(x: Tensor) -> Tensor:
        scales.append(noise.uniform(1, like=x))
        return scales[-1] * x

    step = insight.Step(model, view, lambda s, rows: model.features(s).sum(1), RATE)
    found = insight.influence(step, zoo.batch(1, step=1).x, batch)["effect"]
    assert len(scales) == 3  # of 4 images each, to be at least 10
    v = torch.stack([flat(F.cross_entropy(model(scale * batch.x), batch.y), model) for scale in scales]).mean(0)
    expected = -RATE * flat(model.features(zoo.batch(1, step=1).x).sum(), model) @ v
    assert found[0].item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_the_losses_of_each_image_add_up_to_the_terms_that_are_trained(name: str) -> None:
    made, batch, seen = method(name), zoo.batch(6), []
    s, y = samples(made, batch.x)
    if isinstance(made, MGR):
        made.synthesize = lambda like: s  # type: ignore[method-assign]
        terms = made.inner(batch).terms
    else:
        terms = made.problem.losses(batch, s, y).terms
        seen = [made.problem.each(s, y).mean().item()]
    expected = sum(value.item() for term, value in terms.items() if term != "supervised")
    seen = seen or [sum(loss(made, s[i : i + 1], y[i]).item() for i in range(N)) / N]
    assert seen[0] == pytest.approx(expected, rel=1e-12)


def test_a_turn_is_the_angle_between_latents() -> None:
    z, moved = zoo.normal(8, 6, 1.0, 0).view(8, 3, 2), zoo.normal(8, 6, 2.0, 1).view(8, 3, 2)
    angles = []
    for one, other in zip(z.flatten(1).tolist(), moved.flatten(1).tolist(), strict=True):
        cosine = sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
        angles.append(math.degrees(math.acos(cosine)))
    found = insight.turns(z, moved, groups=2)
    for row, own in zip(found.tolist(), (sorted(angles[:4]), sorted(angles[4:])), strict=True):
        for value, q in zip(row, insight.QUANTILES, strict=True):
            low = int(3 * q)
            assert value == pytest.approx(own[low] + (3 * q - low) * (own[min(low + 1, 3)] - own[low]), rel=1e-9)
    assert insight.turns(z.float(), 3 * z.float()).max() < 1e-5


def test_the_mapping_is_a_mean_over_latents_with_an_image_of_each_class_it_shows() -> None:
    mapper, generator, like = Mapper((3,), 2, 4), zoo.generator(), torch.empty(0, dtype=torch.float64)
    nn.init.normal_(mapper.out.weight, std=2.0)
    mapper.double()
    with noise.seeded(*SEED):
        found = insight.mapping(mapper, generator, 2, like)
    with noise.seeded(*SEED), torch.no_grad():
        z = noise.normal(60, 3, like=like)
        moved, vectors = mapper(z, torch.tensor([0] * 30 + [1] * 30))
        portrait = noise.normal(1, 3, like=like)
    for c in range(2):
        rows = range(30 * c, 30 * c + 30)
        mixture = [sum(vectors[i, k].item() for i in rows) / 30 for k in range(4)]
        assert found["mixture"][c].tolist() == pytest.approx(mixture, rel=1e-12)
        assert found["top"][c].tolist() == sorted(range(4), key=lambda k: -mixture[k])[:2]
        assert found["angle"][c].equal(insight.turns(z[30 * c : 30 * c + 30], moved[30 * c : 30 * c + 30])[0])
    assert found["foundation"].tolist() == sorted({*found["top"].flatten().tolist()})
    for number, image in zip(found["foundation"], found["portraits"], strict=True):
        expected = (255 * generator(portrait, number[None])[0]).round()
        assert image.dtype == torch.uint8 and (image.double() - expected).abs().max() <= 1


def test_without_foundation_classes_there_are_only_angles() -> None:
    mapper = Mapper((3, 2), 2, 0).double()
    found = insight.mapping(mapper, zoo.generator("unconditional"), 2, torch.empty(0, dtype=torch.float64))
    assert list(found) == ["angle"] and found["angle"].abs().max() == 0


def test_closeness_is_the_distance_to_the_nearest_other_labeled_row() -> None:
    labeled, mapped = zoo.normal(5, 4, 1.0, 0).view(5, 2, 2), zoo.normal(3, 4, 1.0, 1).view(3, 2, 2)

    def distance(a: Tensor, b: Tensor) -> float:
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / 4)

    found = insight.closeness({"labeled": labeled, "mapped": mapped})
    among = [min(distance(labeled[i], labeled[j]) for j in range(5) if j != i) for i in range(5)]
    assert found["labeled"].tolist() == pytest.approx(among, rel=1e-12)
    assert found["mapped"].tolist() == pytest.approx([min(distance(x, row) for row in labeled) for x in mapped])


def test_a_copy_is_at_no_distance_though_images_are_bright() -> None:
    labeled = 0.9 + 0.1 * torch.rand(30, 3, 32, 32)
    assert insight.closeness({"labeled": labeled, "copies": labeled + 1e-4})["copies"].max() < 1.1e-4


@pytest.mark.parametrize("name", METHODS)
def test_each_image_stands_beside_the_labeled_one_with_the_nearest_features(name: str) -> None:
    made, batch = method(name), zoo.batch(6)
    s, y = samples(made, batch.x)
    found = study(made, batch)
    features, real = made.model.features(s), made.model.features(batch.x)
    for i in range(N):
        nearest = min(range(6), key=lambda j: (features[i] - real[j]).norm().item())
        assert found["neighbours"][i].equal(insight.pixels(batch.x[nearest]))
        assert found["neighbour_classes"][i] == batch.y[nearest]
        assert found["features/mapped"][i].item() == pytest.approx(
            ((features[i] - real[nearest]).norm() / math.sqrt(features.shape[1])).item()
        )
    assert found["images"].equal(insight.pixels(s))
    assert ("asked" in found) == (name != "mgr") and ("asked" not in found or found["asked"].equal(y))


def test_the_uniform_images_are_drawn_from_the_generator_and_compared_beside_the_mapped_ones() -> None:
    model, generator, batch, s = zoo.network("cnn-group-relu"), zoo.generator(), zoo.batch(6), zoo.batch(N, step=1).x
    step = insight.Step(model, zoo.faint, lambda s, rows: model.features(s).sum(1), RATE)
    with noise.seeded(*SEED):
        found = insight.study(step, generator, s, batch)
    with noise.seeded(*SEED):
        sets = {"labeled": batch.x, "mapped": s, "uniform": sample(generator, N, batch.x)}
    for space, of in {"pixels": nn.Identity(), "features": model.features}.items():
        for name, expected in insight.closeness({name: of(x) for name, x in sets.items()}).items():
            torch.testing.assert_close(found[f"{space}/{name}"], expected)


def test_the_angle_of_the_finder_is_that_between_its_latents_and_where_it_leads_them() -> None:
    made, batch = method("mgr"), zoo.batch(6)
    assert isinstance(made, MGR)
    with noise.seeded(*SEED):
        z, _ = draw(made.generator.module, N, batch.x)
    found = study(made, batch)["angle"]
    torch.testing.assert_close(found, insight.turns(z, made.mapper(z).detach()))
    assert found.min() > 0.1


def test_pixels_are_rounded_and_kept_in_their_range() -> None:
    values = torch.tensor([-1.0, 0.4, 0.6, 1.0, 99.7, 254.6, 255.0, 300.0]) / 255
    assert insight.pixels(values).tolist() == [0, 0, 1, 1, 100, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert insight.pixels(every.float() / 255).equal(every)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_rank_studies_alone_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: 0, get_world_size=lambda: 2)
    monkeypatch.setattr(distributed, "dist", alone)  # a collective would be an AttributeError
    made, batch = method(name, "cnn-batch-relu"), zoo.batch(6)
    before = zoo.copies(made)
    found = study(made, batch)
    assert all(value.isfinite().all() for value in found.values())
    assert zoo.same(before, made.state_dict()) and not any(value.requires_grad for value in found.values())
    assert all(parameter.grad is None for parameter in made.parameters())
    assert zoo.same(found, study(made, batch))
