"""The engine on toy methods whose numbers can be computed by hand, and its precision on every method."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from tiny import Toy, slope
from torch import nn

from semisynth import allocator, noise
from semisynth.combine import Combined
from semisynth.engine import Engine, resolve
from semisynth.errors import UserError
from semisynth.method import Average, Losses, Ready, Update
from semisynth.recipes.config import method_names
from semisynth.recipes.materials import Materials

PLAIN = Engine(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", ema=0.0, device="cpu")


def lines(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def fit(engine, method, steps, *arguments, **named):
    return engine.fit(method, partial(tiny.batch, steps=steps), steps, *arguments, **named)


def zeroed(method):
    nn.init.zeros_(method.model.weight)
    return method


def with_(engine, **fields):
    return Engine(**{**vars(engine), **fields})


# ---- optimisation --------------------------------------------------------------------------------------------------


def test_a_step_goes_down_the_gradient_by_the_rate():
    method = zeroed(Toy(main=slope))
    fit(PLAIN, method, 3)
    torch.testing.assert_close(method.model.weight, torch.full((1, 3), -1.5))


def test_sgd_has_the_rate_nesterov_momentum_and_weight_decay_of_the_engine():
    method = Toy()
    reference = nn.Linear(3, 1, bias=False)
    reference.load_state_dict(method.model.state_dict())
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.8, weight_decay=0.05, nesterov=True)
    for step in range(5):
        sgd.zero_grad()
        reference(tiny.batch(step).x).square().mean().backward()
        sgd.step()
    fit(with_(PLAIN, lr=0.1, momentum=0.8, weight_decay=0.05), method, 5)
    assert torch.equal(method.model.weight, reference.weight)


def test_the_schedule_multiplies_the_own_rate_of_every_group():
    def own(parameters):
        return torch.optim.SGD([{"params": list(parameters), "lr": 3.0}], lr=100.0)

    method = zeroed(Toy(main=slope))
    method.other = zeroed(Toy()).model
    method.entries["other"] = Update(
        method.other, lambda batch: Losses({"slope": method.other.weight.sum()}), optimizer=own
    )
    fit(with_(PLAIN, schedule="cosine"), method, 4)
    total = sum(math.cos(7 * math.pi * step / 4 / 16) for step in range(4))
    torch.testing.assert_close(method.model.weight, torch.full((1, 3), -0.5 * total))
    torch.testing.assert_close(method.other.weight, torch.full((1, 3), -3.0 * total))


@pytest.mark.parametrize("clip, length", [(0.0, math.sqrt(3)), (0.6, 0.6), (5.0, math.sqrt(3))])
def test_clip_shortens_a_long_gradient_and_only_that(clip, length):
    method = zeroed(Toy(main=slope))
    fit(with_(PLAIN, clip=clip, lr=1.0), method, 1)
    torch.testing.assert_close(method.model.weight, torch.full((1, 3), -length / math.sqrt(3)))


def test_combine_has_the_last_word_on_the_gradient():
    def double_first(losses, parameters):
        return Combined([2 * g for g in torch.autograd.grad(losses.terms["first"], parameters)])

    method = zeroed(Toy())
    weight = method.model.weight
    method.entries = {
        "main": Update(method.model, lambda _: Losses({"first": weight.sum(), "second": -weight.sum()}), double_first)
    }
    fit(PLAIN, method, 1)
    torch.testing.assert_close(weight, torch.full((1, 3), -1.0))


def test_a_parameter_that_needs_no_gradient_stays():
    method = Toy()
    method.model = nn.Linear(3, 1)
    method.model.bias.requires_grad_(False)
    before = method.model.bias.clone()
    fit(with_(PLAIN, weight_decay=0.1), method, 2)
    assert torch.equal(method.model.bias, before)


def test_gradients_are_not_left_behind():
    method = Toy()
    fit(PLAIN, method, 1)
    assert method.model.weight.grad is None


def test_a_rate_that_the_optimizer_refuses_is_the_users_mistake():
    method = Toy()
    bad = {"main": Update(method.model, partial(Toy.square, method), optimizer=partial(torch.optim.SGD, lr=-1.0))}
    with pytest.raises(UserError, match=r"Invalid learning rate: -1.0: give another rate"):
        PLAIN.optimizers(bad)


def test_averages_have_no_optimizer():
    method = Toy()
    entries = {"main": Update(method.model, method.square), "slow": Average(method.model, method.model)}
    assert list(PLAIN.optimizers(entries)) == ["main"]


# ---- the order of a step -------------------------------------------------------------------------------------------


def test_updates_run_in_order_and_each_sees_what_the_one_before_did():
    seen = []

    def watch(toy, batch):
        seen.append((batch.step, toy.model.weight[0, 0].item()))
        return slope(toy, batch)

    fit(PLAIN, zeroed(Toy(a=watch, b=watch)), 2)
    assert seen == [(0, 0.0), (0, -0.5), (1, -1.0), (1, -1.5)]


def test_an_update_runs_every_so_many_steps():
    seen = defaultdict(list)

    def watched(name):
        return lambda batch: seen[name].append(batch.step) or slope(method, batch)

    method = Toy()
    method.entries = {f"every {n}": Update(method.model, watched(n), every=n) for n in (1, 2, 3)}
    fit(PLAIN, method, 7)
    assert seen == {1: [0, 1, 2, 3, 4, 5, 6], 2: [0, 2, 4, 6], 3: [0, 3, 6]}


@pytest.mark.parametrize("every", [0, -1])
def test_an_update_that_never_comes_is_refused(every):
    with pytest.raises(UserError, match=f"every {every} steps: give at least 1"):
        Update(nn.Linear(1, 1), lambda batch: Losses({}), every=every)


def test_memory_is_committed_once_and_after_the_weights():
    seen = []

    def counted(toy, batch):
        seen.append(toy.count.item())
        return slope(toy, batch)._replace(memory={"count": toy.count + 1})

    method = Toy(main=counted)
    before = method.count
    fit(PLAIN, method, 4)
    assert seen == [0, 1, 2, 3] and method.count == 4 and method.count is before


def test_noise_depends_on_seed_step_and_update_and_on_nothing_else():
    def draws(seed):
        found = []

        def watch(toy, batch):
            found.append((noise.normal(1, 2, like=batch.x).tolist(), torch.rand(2).tolist()))
            return slope(toy, batch)

        torch.rand(int(torch.randint(5, ())))
        fit(with_(PLAIN, seed=seed), Toy(a=watch, b=watch), 2)
        return found

    first = draws(0)
    assert first == draws(0)
    every = [str(draw) for kind in zip(*first, *draws(1), strict=True) for draw in kind]
    assert len(set(every)) == 16


# ---- what an update had on its way of a later one -------------------------------------------------------------------


def with_ready(steps, every=1, term=5.0):
    """Another module's update brings `main` the gradient 2; `main` itself would have 1, and notes its steps."""
    method = zeroed(Toy())
    method.other = nn.Linear(1, 1)

    def early(batch):
        told = Losses({"term": torch.tensor(term)}, {"metric": torch.tensor(6.0)}, memory={"count": method.count + 1})
        ready = Ready(told, [torch.full_like(method.model.weight, 2.0)])
        return Losses({"other": method.other.weight.sum()}, ready={"main": ready})

    def main(batch):
        steps.append(batch.step)
        return slope(method, batch)

    method.entries = {"early": Update(method.other, early, every=every), "main": Update(method.model, main)}
    return method


def test_an_update_takes_what_is_ready_in_its_step(tmp_path):
    steps = []
    method = with_ready(steps, every=2)
    fit(PLAIN, method, 5, tmp_path)
    assert steps == [1, 3] and method.count == 3
    torch.testing.assert_close(method.model.weight, torch.full((1, 3), -0.5 * (2 + 1 + 2 + 1 + 2)))
    (line,) = lines(tmp_path)
    assert (line["main/term"], line["main/metric"]) == (5, 6)


def test_a_ready_gradient_is_used_as_an_own_one_is():
    engine = with_(PLAIN, clip=0.6, weight_decay=0.1, momentum=0.9, ema=0.5, schedule="cosine")
    ready = with_ready([])
    own = zeroed(Toy(main=lambda toy, batch: Losses({"twice": 2 * toy.model.weight.sum()})))
    one, other = fit(engine, ready, 3), fit(engine, own, 3)
    assert torch.equal(one.weight, other.weight) and torch.equal(ready.model.weight, own.model.weight)


def test_a_ready_gradient_does_not_outlive_its_step():
    steps = []
    method = with_ready(steps, every=2)
    method.entries["main"] = Update(method.model, method.entries["main"].loss, every=3)
    fit(PLAIN, method, 4)  # ready at 0 and 2, wanted at 0 and 3
    assert steps == [3]
    torch.testing.assert_close(method.model.weight, torch.full((1, 3), -0.5 * (2 + 1)))


def test_a_ready_loss_that_is_not_finite_is_told():
    with pytest.raises(UserError, match="the loss term 'main/term' was not finite at step 0"):
        fit(PLAIN, with_ready([], term=math.nan), 3)


# ---- averages ------------------------------------------------------------------------------------------------------


def warm(decay, step):
    return min(decay, (1 + step) / (10 + step))


@pytest.mark.parametrize("decay", [0.05, 0.15, 0.999])
def test_ema_warms_up_and_is_what_fit_returns(decay):
    weights = []

    def watch(toy, batch):
        weights.append(toy.model.weight.detach().clone())
        return slope(toy, batch)

    method = Toy(main=watch)
    returned = fit(with_(PLAIN, ema=decay), method, 6)
    expected = weights[0]
    for step, weight in enumerate([*weights[1:], method.model.weight.detach()]):
        expected = warm(decay, step) * expected + (1 - warm(decay, step)) * weight
    torch.testing.assert_close(returned.weight, expected)
    assert returned is not method.model and not returned.training and not returned.weight.requires_grad


def test_mean_teacher_is_the_average_of_the_students_after_each_step(generator):
    method = Materials(tiny.config("meanteacher", options={"decay": 0.15})).method
    stream = Materials(tiny.config("meanteacher")).stream
    students = [{k: v.clone() for k, v in method.model.state_dict().items()}]

    def remember(_):
        students.append({k: v.clone() for k, v in method.model.state_dict().items()})
        return {}

    Engine(lr=0.3, evaluate_every=1).fit(method, stream, 5, evaluate=remember)
    teacher = students[0]
    for step, student in enumerate(students[1:]):
        decay = warm(0.15, step)
        teacher = {k: decay * teacher[k] + (1 - decay) * student[k] for k in teacher}
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, teacher[name])
        assert not torch.equal(value, method.model.state_dict()[name])


def test_the_evaluated_model_is_the_average_and_the_trained_one_trains():
    modes = []

    def watch(toy, batch):
        modes.append((toy.training, toy.model.training))
        return slope(toy, batch)

    method = Toy(main=watch).eval()
    seen = []
    fit(with_(PLAIN, evaluate_every=1), method, 2, evaluate=lambda model: seen.append(model) or {})
    assert modes == [(True, True)] * 2
    assert seen[0] is seen[1] is not method.model and not seen[0].training


def test_memory_that_steps_free_is_kept_from_the_first_step_on(monkeypatch):
    seen = []

    def watch(toy, batch):
        seen.append(batch.step)
        return slope(toy, batch)

    monkeypatch.setattr(allocator, "keep", lambda: seen.append("kept"))
    fit(PLAIN, Toy(main=watch), 2)
    assert seen == ["kept", 0, 1]


# ---- the log and the checkpoint ------------------------------------------------------------------------------------


def test_lines_checkpoints_and_evaluations_come_when_they_are_due(tmp_path):
    saved = []

    def watch(toy, batch):
        path = tmp_path / "checkpoint.pt"
        saved.append(torch.load(path, weights_only=True)["step"] if path.exists() else 0)
        return slope(toy, batch)

    engine = with_(PLAIN, log_every=2, evaluate_every=3, checkpoint_every=5)
    fit(engine, Toy(main=watch), 7, tmp_path, lambda model: {"validation/accuracy": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines(tmp_path) if "validation/accuracy" in line] == [3, 6, 7]
    assert saved == [0] * 5 + [5] * 2
    assert tiny.checkpoint(tmp_path)["step"] == 7


def test_zero_means_the_last_step_only(tmp_path):
    engine = with_(PLAIN, log_every=0, evaluate_every=0, checkpoint_every=0)
    fit(engine, Toy(), 3, tmp_path, lambda model: {"validation/accuracy": 0.5})
    assert [(line["step"], line["validation/accuracy"]) for line in lines(tmp_path)] == [(3, 0.5)]


def test_a_line_has_the_newest_terms_and_metrics_and_the_times(tmp_path):
    def loss(toy, batch):
        return Losses({"term": toy.model.weight.sum() * 0 + batch.step}, {"metric": torch.tensor(10 * batch.step)})

    method = Toy(often=loss)
    method.entries["seldom"] = Update(method.model, partial(loss, method), every=3)
    fit(with_(PLAIN, log_every=5), method, 5, tmp_path)
    (line,) = lines(tmp_path)
    assert (line["often/term"], line["often/metric"], line["seldom/term"], line["seldom/metric"]) == (4, 40, 3, 30)
    assert line["steps_per_second"] == pytest.approx(5 / line["seconds"], rel=0.5)
    assert {key for key in line if key.startswith("time/")} == {"time/data", "time/often", "time/seldom"}
    assert 0 < line["time/often"] <= line["seconds"] + 1e-3


def test_times_are_those_since_the_last_line(tmp_path):
    fit(with_(PLAIN, log_every=1), Toy(), 30, tmp_path)
    found = lines(tmp_path)
    assert sum(line["time/main"] for line in found) <= found[-1]["seconds"] + 0.01
    assert [line["seconds"] for line in found] == sorted(line["seconds"] for line in found)


def test_the_speed_is_that_since_the_last_line(tmp_path):
    def slow_at_first(toy, batch):
        time.sleep(0.05 if batch.step < 5 else 0)
        return slope(toy, batch)

    fit(with_(PLAIN, log_every=5), Toy(main=slow_at_first), 10, tmp_path)
    first, second = (line["steps_per_second"] for line in lines(tmp_path))
    assert 0 < first <= 20 and second > 2 * first  # over all ten steps it would be less


def test_seconds_go_on_after_a_resume(tmp_path):
    fit(PLAIN, Toy(), 2, tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**content, "seconds": 1000.0}, tmp_path / "checkpoint.pt")
    fit(PLAIN, Toy(), 4, tmp_path)
    assert 1000 < lines(tmp_path)[-1]["seconds"] < 1100


def test_a_finished_fit_runs_no_step_again(tmp_path):
    first = fit(PLAIN, Toy(), 3, tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    again = fit(PLAIN, Toy(main=None), 3, tmp_path)
    assert torch.equal(first.weight, again.weight) and (tmp_path / "log.jsonl").read_bytes() == before


def test_a_line_needs_no_update_since_the_resume(tmp_path):
    def seldom():
        method = Toy()
        method.entries = {"main": Update(method.model, method.square, every=4)}
        return method

    engine = with_(PLAIN, log_every=1)
    fit(engine, seldom(), 2, tmp_path)
    fit(engine, seldom(), 4, tmp_path)
    assert len({line["main/square"] for line in lines(tmp_path)}) == 1 and len(lines(tmp_path)) == 4


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(PLAIN, Toy(), 2)
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_with_speed_and_time_left(capsys):
    fit(with_(PLAIN, log_every=2), Toy(), 4, None, lambda model: {"validation/accuracy": 0.25}, "fit toy", True)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fit toy: step 2/4, \d+\.\d steps/s, \d+ s left", first)
    assert re.fullmatch(r"fit toy: step 4/4, \d+\.\d steps/s, validation 0\.250, 0 s left", last)
    fit(PLAIN, Toy(), 4)
    assert capsys.readouterr().err == ""


# ---- what is not finite --------------------------------------------------------------------------------------------


def broken_at(broken, value=math.nan):
    def loss(toy, batch):
        total = toy.model.weight.sum()
        return Losses({"good": total, "bad": total * (value if batch.step == broken else 1)})

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_stops_the_run_and_is_named_with_its_step(tmp_path, value):
    engine = with_(PLAIN, log_every=3, checkpoint_every=2)
    with pytest.raises(UserError, match="the loss term 'main/bad' was not finite at step 4"):
        fit(engine, Toy(main=broken_at(4, value)), 20, tmp_path)
    assert tiny.checkpoint(tmp_path)["step"] == 4
    assert all(math.isfinite(value) for line in lines(tmp_path) for value in line.values())
    healed = fit(engine, Toy(main=broken_at(99)), 6, tmp_path)
    assert healed.weight.isfinite().all()


def test_the_first_of_many_is_named():
    with pytest.raises(UserError, match="'early/bad' was not finite at step 1"):
        fit(PLAIN, Toy(late=broken_at(3), early=broken_at(1)), 6)


def test_weights_that_are_lost_do_not_replace_the_last_checkpoint(tmp_path):
    def steep(toy, batch):  # a finite loss with an infinite gradient
        return Losses({"root": (toy.model.weight * 0).sqrt().sum() if batch.step == 3 else toy.model.weight.sum()})

    with pytest.raises(UserError, match="the norm of the weights of 'main' was not finite at step 4"):
        fit(with_(PLAIN, checkpoint_every=1), Toy(main=steep), 6, tmp_path)
    assert tiny.checkpoint(tmp_path)["step"] == 3
    assert all(value.isfinite().all() for value in tiny.checkpoint(tmp_path)["method"].values())


@pytest.mark.parametrize("broken", [1, 99])
def test_norms_are_given_back_however_a_run_ends(broken):
    method = Toy(main=lambda toy, batch: broken_at(broken)(toy, toy.normed(batch)))
    norm = method.norm = nn.BatchNorm1d(3)
    method.normed = lambda batch: replace(batch, x=norm(batch.x))
    with contextlib.suppress(UserError):
        fit(PLAIN, method, 3)
    assert norm.track_running_stats and not norm._forward_pre_hooks
    assert norm.num_batches_tracked == 0  # it is not in the module of the update


def test_a_metric_may_be_what_it_is():
    fit(PLAIN, Toy(main=lambda toy, batch: slope(toy, batch)._replace(metrics={"m": torch.tensor(math.nan)})), 2)


# ---- the stream ----------------------------------------------------------------------------------------------------


def test_the_next_batch_is_made_while_this_one_is_used():
    made = [threading.Event() for _ in range(4)]
    ahead, asked = [], []

    def stream(step):
        asked.append((step, threading.current_thread() is threading.main_thread()))
        made[step].set()
        return tiny.batch(step, 4)

    def watch(toy, batch):
        ahead.append(batch.step == 3 or made[batch.step + 1].wait(10))
        return slope(toy, batch)

    PLAIN.fit(Toy(main=watch), stream, 4)
    assert ahead == [True] * 4 and asked == [(step, False) for step in range(4)]


def test_an_error_of_the_stream_is_raised():
    def stream(step):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        PLAIN.fit(Toy(), stream, 4)


# ---- device, precision, options ------------------------------------------------------------------------------------


def test_resolve_finds_a_device_and_refuses_what_is_none():
    assert resolve("cpu").type == "cpu"
    assert resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("bogus", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {name} cannot be used here"):
            resolve(name)


WRONG = {"lr": -1, "momentum": 1.5, "weight_decay": -0.1, "clip": -1, "ema": 2}


@pytest.mark.parametrize("field, value", WRONG.items())
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field} is {value}: give a number from 0 to"):
        Engine(**{field: value})
    with pytest.raises(UserError, match=field):
        Engine(**{field: math.nan})


@pytest.mark.parametrize("precision, dtype", [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_computation_not_of_the_weights(precision, dtype):
    seen = []

    def watch(toy, batch):
        # The cache hands a no-grad pass's casts, which have no graph, to the pass that needs one (torch before 2.10).
        seen.append((toy.model(batch.x).dtype, torch.is_autocast_cache_enabled()))
        return toy.square(batch)

    method = Toy(main=watch)
    fit(with_(PLAIN, precision=precision), method, 1)
    assert seen == [(dtype, False)] and method.model.weight.dtype == torch.float32


def test_channels_last_is_the_layout_of_weights_and_activations_and_changes_no_result():
    formats = set()

    def trained(**fields):
        config = tiny.config("fixmatch", steps=3, **fields)
        materials = Materials(config)
        layers = list(materials.method.model.features)[1:5]  # before the last convolution, whose weights are wide
        for layer in layers:
            layer.register_forward_hook(lambda *a: formats.add(a[2].is_contiguous(memory_format=torch.channels_last)))
        model = config.engine.fit(materials.method, materials.stream, 3)
        return {**materials.method.state_dict(), **{f"ema.{k}": v for k, v in model.state_dict().items()}}

    plain = trained()
    assert formats == {False}
    formats.clear()
    found = trained(channels_last=True)
    assert formats == {True}
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def moved(config) -> dict[str, dict[int, bool]]:
    """By update: which of its parameters, in order, ever got a gradient that is not zero."""
    materials = Materials(config)
    found: dict[str, dict[int, bool]] = defaultdict(lambda: defaultdict(bool))

    def see(name, gradients):
        for position, gradient in enumerate(gradients):
            assert gradient is not None and gradient.isfinite().all()
            found[name][position] |= bool(gradient.any())

    config.engine.fit(tiny.spied(materials.method, see), materials.stream, 2)
    return found


@pytest.mark.parametrize("method", method_names())
def test_every_parameter_gets_its_gradient_under_bf16(method, generator):
    full, half = (moved(tiny.config(method, generator, precision=p)) for p in ("float32", "bf16"))
    assert full and full == half
