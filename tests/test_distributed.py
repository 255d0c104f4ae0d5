"""Two processes over gloo do what one does: the collectives, a fit of every method in float64, and `torchrun`."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny import Toy
from torch import Tensor

from semisynth import distributed, noise
from semisynth.engine import Engine
from semisynth.errors import UserError
from semisynth.functional import gather, mean
from semisynth.method import Batch, Losses
from semisynth.recipes import single
from semisynth.recipes.config import Config, method_names
from semisynth.recipes.materials import Materials

ROWS = torch.arange(12.0, dtype=torch.float64).view(4, 3)


def cases(generator: str) -> dict[str, Config]:
    """Every method as it comes, and what else takes another path between ranks."""
    found = {name: tiny.config(name, generator, steps=3) for name in method_names()}
    found["fixmatch on synthetic images"] = tiny.config("fixmatch", generator, unlabeled="generator", steps=3)
    for name in ("fixmatch", "flexmatch", "rsmatch", "pretext"):
        found[f"{name} on both"] = tiny.config(name, generator, unlabeled="both", unlabeled_batch=16, steps=3)
    found["pretext by Frank-Wolfe"] = tiny.config("pretext", options={"combine": "frank-wolfe"}, steps=3)
    found["mpssl, every second step"] = tiny.config("mpssl", generator, {"every": 2}, steps=3, clip=0.1)
    found["mpssl, gradients shared"] = tiny.config("mpssl", generator, {"every": 2, "shared": True}, steps=3, clip=0.1)
    return found


def fit(config: Config, out: Path | None = None) -> dict[str, Tensor]:
    """All weights after a few steps in float64."""
    method, data = Materials(config).method.double(), Materials(config).stream

    def stream(step: int) -> Batch:
        batch = data(step)
        return replace(batch, x=batch.x.double(), u=batch.u.double())

    model = config.engine.fit(method, stream, config.setting.steps, out)
    return {**method.state_dict(), **{f"ema.{name}": value for name, value in model.state_dict().items()}}


def collectives() -> dict[str, Any]:
    rank = distributed.rank()
    mine = ROWS.chunk(2)[rank].clone().requires_grad_()
    averaged = distributed.average([mine, torch.tensor(float(rank))])
    loss = mean(mine).pow(3).sum()
    with noise.seeded("here"):
        drawn = noise.normal(2, 3, like=ROWS)
    return {
        "world": distributed.world(),
        "rank": rank,
        "share": distributed.share(8, "batch"),
        "average": [value.detach() for value in averaged],
        "concatenate": distributed.concatenate(mine),
        "gather": gather(mine),
        "mean": mean(mine).detach(),
        "gradient": distributed.average(torch.autograd.grad(loss, mine))[0],
        "noise": drawn,
    }


def uneven() -> str:
    with pytest.raises(UserError) as caught:
        distributed.share(7, "batch")
    return str(caught.value)


def broken() -> str:
    """A loss that is not finite on one of the ranks."""

    def loss(toy: Toy, batch: Batch) -> Losses:
        bad = distributed.rank() == 1 and batch.step == 2
        return Losses({"term": toy.model.weight.sum() * (math.nan if bad else 1.0)})

    with pytest.raises(UserError) as caught:
        Engine(log_every=4).fit(Toy(main=loss), tiny.batch, 8)
    return str(caught.value)


def on_a_rank(rank: int, path: Path, generator: str, address: dict[str, str]) -> None:
    """What each of the two processes does; it leaves what it found in `path`."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**address, "RANK": str(rank), "WORLD_SIZE": "2"}.items():
            patch.setenv(name, value)
        found: dict[str, Any] = {"started": distributed.start(torch.device("cpu"))}
        found["again"] = distributed.start(torch.device("cpu"))
    found |= collectives() | {"uneven": uneven(), "broken": broken()}
    out = path / "run"
    out.mkdir(exist_ok=True)
    found["fits"] = {name: fit(config, out if name == "mpssl" else None) for name, config in cases(generator).items()}
    (path / f"before{rank}").touch()
    distributed.barrier()
    found["waited"] = (path / f"before{1 - rank}").exists()
    distributed.stop()
    found["stopped"] = not dist.is_initialized()
    torch.save(found, path / f"{rank}.pt")


@pytest.fixture(scope="module")
def pair(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("pair")
    # The store is this process's, as it is the agent's under torchrun, so that no other one can take the port.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.multiprocessing.spawn(on_a_rank, (path, generator, address), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in range(2)], path


def test_start_joins_once_and_stop_leaves(pair):
    for rank, found in enumerate(pair[0]):
        assert (found["rank"], found["world"]) == (rank, 2)
        assert found["started"] and not found["again"] and found["stopped"] and found["waited"]


def test_collectives_put_the_global_batch_together(pair):
    with noise.seeded("here"):
        drawn = noise.normal(4, 3, like=ROWS)
    leaf = ROWS.clone().requires_grad_()
    gradient = torch.autograd.grad(leaf.mean(0).pow(3).sum(), leaf)[0]
    for rank, found in enumerate(pair[0]):
        assert found["share"] == 4
        assert torch.equal(found["average"][0], (ROWS[:2] + ROWS[2:]) / 2)
        assert found["average"][1] == 0.5
        assert torch.equal(found["concatenate"], ROWS) and torch.equal(found["gather"], ROWS)
        assert torch.equal(found["mean"], ROWS.mean(0))
        assert torch.equal(found["noise"], drawn.chunk(2)[rank])
    # The gradient at a row is averaged over ranks, as that of a weight behind every row would be.
    torch.testing.assert_close(pair[0][0]["gradient"], gradient[:2] + gradient[2:])


def test_an_uneven_share_is_refused_with_the_remedy(pair):
    assert pair[0][0]["uneven"] == "batch is 7, which 2 processes cannot share evenly: choose a multiple of 2."


@pytest.mark.parametrize(
    "case",
    [
        *method_names(),
        "fixmatch on synthetic images",
        *(f"{name} on both" for name in ("fixmatch", "flexmatch", "rsmatch", "pretext")),
        "pretext by Frank-Wolfe",
        "mpssl, every second step",
        "mpssl, gradients shared",
    ],
)
def test_two_ranks_equal_one(case, pair, generator):
    one = fit(cases(generator)[case])
    for two in (found["fits"][case] for found in pair[0]):
        assert two.keys() == one.keys()
        assert max((two[name] - one[name]).abs().max() for name in one) < 1e-10
    assert tiny.same(pair[0][0]["fits"][case], pair[0][1]["fits"][case])


def test_every_rank_stops_where_one_has_a_loss_that_is_not_finite(pair):
    for found in pair[0]:
        assert found["broken"].startswith("the loss term 'main/term' was not finite at step 2.")


def test_two_ranks_write_one_log_and_one_checkpoint(pair):
    assert sorted(file.name for file in (pair[1] / "run").iterdir()) == ["checkpoint.pt", "log.jsonl"]
    assert [line["step"] for line in tiny.log(pair[1] / "run")] == [1, 2, 3]


def test_the_log_of_two_ranks_is_that_of_one(pair, generator, tmp_path):
    fit(cases(generator)["mpssl"], tmp_path)
    for one, two in zip(tiny.log(tmp_path), tiny.log(pair[1] / "run"), strict=True):
        assert one.keys() == two.keys() >= {"mapper/distance", "mapper/gap_gradient", "mapper/validation_gradient"}
        assert [two[key] for key in one] == pytest.approx(list(one.values()), rel=1e-5)


def test_the_checkpoint_keeps_the_metrics_of_all_ranks(pair):
    kept, line = tiny.checkpoint(pair[1] / "run")["metrics"], tiny.log(pair[1] / "run")[-1]
    assert {name: value.item() for name, value in kept.items()} == {name: line[name] for name in kept}


def test_one_process_is_a_world_of_its_own():
    assert (distributed.rank(), distributed.world(), distributed.share(7, "batch")) == (0, 1, 7)
    assert not distributed.start(torch.device("cpu"))
    assert torch.equal(distributed.average([ROWS])[0], ROWS) and torch.equal(distributed.concatenate(ROWS), ROWS)
    assert not distributed.concatenate(ROWS.clone().requires_grad_()).requires_grad
    distributed.barrier()
    distributed.stop()


def test_torchrun_does_what_one_process_does(generator, tmp_path):
    content = tiny.content("mpssl", generator, steps=3)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*run, "-m", "semisynth", "fit", *tiny.options(content), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    single.fit(Config.of(content), tmp_path / "one", show=False)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    assert [line["step"] for line in tiny.log(tmp_path / "two")] == [1, 2, 3]
    assert sorted(f.name for f in (tmp_path / "two").iterdir()) == sorted(f.name for f in (tmp_path / "one").iterdir())
    assert done.stdout.count("is finished") == 1 and done.stderr.count("fit mpssl: step") == 3
