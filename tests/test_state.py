"""What a checkpoint keeps, what it refuses, and which pass may write batch statistics."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from tiny import Toy
from torch import nn

from semisynth.errors import UserError
from semisynth.method import Average, External, Losses, Update
from semisynth.state import State, Statistics, externals, move


class WithTeacher(Toy):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.teacher = External(nn.Linear(2, 2))
        nn.init.constant_(self.teacher.module.weight, scale)
        nn.init.zeros_(self.teacher.module.bias)


def state(method: Toy | None = None) -> State:
    method = method or Toy()
    return State(method, {"main": torch.optim.SGD(method.model.parameters(), lr=0.1, momentum=0.9)}, 0.9)


def trained(method: Toy | None = None) -> State:
    """A state in which nothing is as it was at the start."""
    found = state(method)
    found.method.model(torch.randn(2, 3)).sum().backward()
    found.optimizers["main"].step()
    move(found.ema, 0)
    found.method.get_buffer("count").fill_(7)
    found.step, found.seconds, found.metrics = 12, 3.5, {"main/loss": torch.tensor(0.25)}
    return found


def everything(state: State):
    return {
        "method": state.method.state_dict(),
        "ema": state.ema.target.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers.values()],
        "rest": [state.step, state.seconds, state.metrics],
    }


def test_a_checkpoint_brings_everything_back_bitwise(tmp_path):
    before = trained()
    before.save(tmp_path / "checkpoint.pt")
    after = state()
    assert not tiny.same(everything(after), everything(before))
    after.load(tmp_path / "checkpoint.pt")
    assert tiny.same(everything(after), everything(before))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_average_starts_as_a_frozen_copy_of_the_model():
    found = state()
    assert torch.equal(found.ema.target.weight, found.method.model.weight)
    assert found.ema.source is found.method.model is not found.ema.target
    assert found.ema.decay == 0.9 and not found.ema.target.weight.requires_grad and not found.ema.target.training


def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    trained().save(path)
    before = path.read_bytes()

    def disk_full(content, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(UserError, match=r"cannot be written \(no space left\): make room"):
        trained().save(path)
    assert path.read_bytes() == before


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def disk_full(content, file):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be written \(the disk may be full\): make room"):
        trained().save(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named_with_the_remedy(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    trained().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged: delete it to start this run again"):
        state().load(path)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80", b"PK\x03\x04", bytes(100)])
def test_a_foreign_file_is_damaged_too(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        state().load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, 5, torch.zeros(3)])
def test_a_file_of_something_else_is_damaged_too(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="is damaged"):
        state().load(tmp_path / "checkpoint.pt")


def rewritten(path, **fields):
    torch.save({**torch.load(path, weights_only=True), **fields}, path)


def test_another_format_is_refused(tmp_path):
    trained().save(tmp_path / "checkpoint.pt")
    rewritten(tmp_path / "checkpoint.pt", format=99)
    with pytest.raises(UserError, match=r"has format 99, this version reads 1: start in another --out"):
        state().load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("field", ["method", "ema", "optimizers"])
def test_a_checkpoint_that_lacks_something_does_not_fit(tmp_path, field):
    trained().save(tmp_path / "checkpoint.pt")
    rewritten(tmp_path / "checkpoint.pt", **{field: {}})
    with pytest.raises(UserError, match=r"does not fit this method: .*Use another --out"):
        state().load(tmp_path / "checkpoint.pt")


def test_weights_of_another_shape_do_not_fit(tmp_path):
    trained().save(tmp_path / "checkpoint.pt")
    method = Toy()
    method.model = nn.Linear(5, 1, bias=False)
    with pytest.raises(UserError, match="does not fit this method"):
        state(method).load(tmp_path / "checkpoint.pt")


def test_a_foreign_network_is_kept_as_its_fingerprint_and_must_be_the_same(tmp_path):
    path = tmp_path / "checkpoint.pt"
    before = trained(WithTeacher())
    before.save(path)
    content = torch.load(path, weights_only=True)
    assert content["externals"] == externals(before.method) == {"teacher": before.method.teacher.fingerprint()}
    assert list(content["method"]) == ["count", "model.weight"]
    state(WithTeacher()).load(path)
    for other in (WithTeacher(2.0), Toy()):
        with pytest.raises(UserError, match="was made with another generator, teacher or autoencoder"):
            state(other).load(path)


@pytest.mark.parametrize(
    "decay, step, moved",
    [(0.999, 0, 0.9), (0.999, 8, 0.5), (0.999, 89, 9 / 99), (0.999, 10**7, 0.001), (0.05, 0, 0.95), (0.0, 5, 1.0)],
)
def test_an_average_moves_by_the_warmed_up_share(decay, step, moved):
    target, source = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    before, kept = copy.deepcopy(target), copy.deepcopy(source)
    move(Average(target, source, decay), step)
    for t, b, s, k in zip(*(m.parameters() for m in (target, before, source, kept)), strict=True):
        torch.testing.assert_close(t, b + moved * (s - b))
        assert torch.equal(s, k)


def test_an_average_copies_buffers():
    target, source = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(5, 3))
    move(Average(target, source, 0.9), 0)
    assert tiny.same(dict(target.named_buffers()), dict(source.named_buffers()))
    assert target.running_mean is not source.running_mean


class Normed(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.other = nn.Linear(3, 3)

    def updates(self) -> dict[str, Update | Average]:
        return {"main": Update(self.model, self.square), "other": Update(self.other, self.through)}

    def through(self, batch) -> Losses:
        return Losses({"square": self.model(self.other(batch.x)).square().mean()})


def test_batch_statistics_are_written_once_by_their_own_update():
    method, once = Normed(), nn.BatchNorm1d(3)
    norm, x = method.model[0], torch.randn(6, 3)
    once(x)
    start = {name: value.clone() for name, value in norm.named_buffers()}
    statistics = Statistics(method)
    with statistics.written_by(method.other):
        method.model(method.other(x))
    assert tiny.same(dict(norm.named_buffers()), start)
    with statistics.written_by(method.model):
        with torch.no_grad():
            weak = method.model(x)
        assert tiny.same(dict(norm.named_buffers()), start)
        assert torch.equal(method.model(x), weak)  # by the statistics of the batch, both times
    assert tiny.same(dict(norm.named_buffers()), dict(once.named_buffers()))
    method.model(x)
    assert tiny.same(dict(norm.named_buffers()), dict(once.named_buffers()))


def test_norms_are_given_back_as_they_were():
    method = Normed()
    method.more = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ZeroDivisionError), Statistics(method) as statistics, statistics.written_by(method.other):
        method.model(torch.randn(6, 3))
        raise ZeroDivisionError
    assert method.model[0].track_running_stats and not method.more.track_running_stats
    method.model(torch.randn(6, 3))
    assert method.model[0].num_batches_tracked == 1
