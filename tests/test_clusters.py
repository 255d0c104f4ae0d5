"""Tasks are the same wherever they run: here, in processes, on a Ray cluster, which is a real one for this module."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_interruption import SECONDS, interrupt

from semisynth import clusters, options, weights
from semisynth.clusters import LOCAL, Ray
from semisynth.errors import Diverged, UserError
from semisynth.recipes import cells, dpt, single
from semisynth.recipes.cells import Cell
from semisynth.recipes.dpt import DPT, Stage

PLACES = [1, 2, Ray(LOCAL, 2)]


@pytest.fixture(scope="module")
def cluster():
    """Its address; what asks for a cluster in this process gets this one."""
    ray = pytest.importorskip("ray", reason="ray cannot be imported", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the functions of this file
        patch.setenv("OMP_NUM_THREADS", "2")  # what a task has to bring down
        with clusters.pool(Ray(LOCAL, 2), 1, "cpu"):
            yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def about(*_: object) -> tuple[int, int, str]:
    return os.getpid(), torch.get_num_threads(), os.getcwd()


def fail(error: Exception) -> None:
    raise error


def sleep(place: Path) -> None:
    place.with_suffix(".part").write_text(str(os.getpid()))
    place.with_suffix(".part").rename(place)
    time.sleep(10 * SECONDS)


def appears(there) -> bool:
    until = time.monotonic() + SECONDS
    while not (found := there()) and time.monotonic() < until:
        time.sleep(0.01)
    return bool(found)


def gone(process: int) -> bool:
    """It has ended, though its parent may not have noticed yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# ---- the executors --------------------------------------------------------------------------------------------------


def test_a_single_worker_is_this_process_on_one_thread():
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clusters.each(lambda: found.append(about()), [(), ()], 1, "cpu")
        assert found == 2 * [(os.getpid(), 1, os.getcwd())] and torch.get_num_threads() == 2
        with pytest.raises(KeyError):
            clusters.each(fail, [(KeyError(),)], 1, "cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("workers", PLACES[1:])
def test_a_task_runs_elsewhere_on_one_thread_in_the_same_place(workers, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with clusters.pool(workers, 1, "auto") as pool:
        process, threads, place = pool.submit(about, 7).result()
    assert process != os.getpid() and (threads, place) == (1, str(tmp_path))


@pytest.mark.parametrize("workers", PLACES)
def test_the_first_error_is_raised_as_it_was(workers, cluster):
    with pytest.raises(UserError) as caught:
        clusters.each(fail, [(Diverged("at step 3"),)], workers, "cpu")
    assert type(caught.value) is Diverged and str(caught.value) == "at step 3"


def test_an_error_tells_where_on_the_cluster_it_happened(cluster):
    with clusters.pool(Ray(), 1, "cpu") as pool:
        error = pool.submit(fail, KeyError("here")).exception()
    assert type(error) is KeyError and "test_clusters.py" in str(error.__cause__)


@pytest.mark.parametrize("workers", PLACES[1:])
def test_a_worker_that_is_lost_is_told(workers, cluster):
    with pytest.raises(UserError, match="a worker process was ended from outside"):
        clusters.each(os._exit, [(3,)], workers, "cpu")


@pytest.mark.parametrize("workers", PLACES[1:])
def test_what_runs_is_ended_when_the_block_is_left_by_an_error(workers, cluster, tmp_path):
    with pytest.raises(KeyboardInterrupt), clusters.pool(workers, 1, "cpu") as pool:
        running = pool.submit(sleep, tmp_path / "process")
        assert appears((tmp_path / "process").exists)
        raise KeyboardInterrupt
    assert appears(lambda: gone(int((tmp_path / "process").read_text())))
    assert appears(running.done) and running.exception() is not None


def pretended(gpus: int, asked: dict[str, object], **more: object) -> SimpleNamespace:
    """In place of ray, where there are so many GPUs."""

    def remote(**given: object) -> object:
        asked.update(given)
        return lambda function: function

    return SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"GPU": gpus}, remote=remote, **more)


@pytest.mark.parametrize(
    "workers, device, gpus, each",
    [
        (Ray(LOCAL, 4), "auto", 0, 0),
        (Ray(LOCAL, 4), "auto", 1, 0.25),
        (Ray(LOCAL, 4), "cuda", 8, 1),
        (Ray(LOCAL, 4), "cpu", 8, 0),
        (Ray("10.0.0.1:6379"), "auto", 8, 1),
        (Ray("10.0.0.1:6379"), "auto", 0, 0),
    ],
)
def test_a_task_takes_a_gpu_where_there_is_one_and_workers_share_it(workers, device, gpus, each, monkeypatch):
    asked: dict[str, object] = {}
    monkeypatch.setattr(clusters, "_ray", lambda: pretended(gpus, asked))
    with clusters.pool(workers, 1, device):
        assert (asked["num_gpus"], asked["num_cpus"], asked["max_retries"]) == (each, 1, 0)


def test_a_cluster_that_cannot_be_joined_is_told(monkeypatch):
    ray = pretended(0, {}, init=lambda *a, **k: fail(ConnectionError("no answer")))
    ray.is_initialized = lambda: False
    monkeypatch.setattr(clusters, "_ray", lambda: ray)
    with pytest.raises(UserError, match=r"--ray there:1 cannot be joined \(no answer\)"), clusters.pool(Ray("there:1"), 1, "cpu"):  # fmt: skip  # noqa: E501
        pass


def test_mistakes_are_told(monkeypatch):
    for workers in (0, Ray(LOCAL, 0)):
        with pytest.raises(UserError, match="--workers is 0"):
            clusters.require(workers)
    monkeypatch.setitem(sys.modules, "ray", None)
    clusters.require(2)
    with pytest.raises(UserError, match=r"semisynth\[ray\]"):
        clusters.require(Ray())


@pytest.mark.parametrize(
    "typed, found",
    [((), 1), (("--workers", "3"), 3), (("--ray", "--workers", "3"), Ray(LOCAL, 3)), (("--ray", "a:1"), Ray("a:1"))],
)
def test_the_options_of_workers(typed, found):
    parser = options.new_parser("bench", "Bench.")
    options.add_pool(parser, "there")
    given = options.parse(parser, [*typed, "--out", "x"])
    assert (options.pool(given), given) == (found, {"out": "x"})


# ---- what is computed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The images of a diffusion model, made by one worker, and what makes them anew."""
    out = tmp_path_factory.mktemp("shards")
    single.fit(tiny.config("edm", data="digits-pool", labels_per_class=0, steps=2), out / "run", show=False)

    def made(workers) -> dict[str, bytes]:
        (out / str(workers)).mkdir()
        asked = DPT("digits-pool", images_per_class=2, sampler_steps=2)
        stage = dpt.Work(asked, out / str(workers), workers).images(Stage(out / "run", "of the run"))
        return {file.name: file.read_bytes() for file in stage.path.iterdir()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpt, "SHARD", 8)
        yield made, made(1)


@pytest.mark.parametrize("workers", PLACES[1:])
def test_shards_are_the_same_bytes(workers, cluster, shards):
    made, expected = shards
    assert sorted(expected) == ["00000.parquet", "00001.parquet", "00002.parquet"] and made(workers) == expected


def test_cells_are_the_same_and_fail_alike(cluster, tmp_path):
    configs = {"good": tiny.config("fixmatch", steps=3), "bad": tiny.config("fixmatch", steps=3, lr=1e30)}
    found = {}
    for workers in PLACES[1:]:
        mine = [Cell(tmp_path / str(workers) / name, config) for name, config in configs.items()]
        failures = cells.run(mine, workers)
        told = {path.name: (type(error), str(error)) for path, error in failures.items()}
        model = (mine[0].path / "model.safetensors").read_bytes()
        measured = [{key: mine[0].result()[key] for key in ("test", "validation")}]
        found[str(workers)] = told, model, measured, tiny.log(mine[0].path)
    one, other = found.values()
    assert one == other and one[0]["bad"][0] is Diverged and list(one[0]) == ["bad"]


def test_ctrl_c_ends_the_cells_of_a_cluster_that_was_joined(cluster, tmp_path):
    out, content = tmp_path / "search", tiny.content("supervised", steps=2, init="none")
    arguments = ["tune", *tiny.options(content), "--configurations", "64", "--seeds", "0", "--out", str(out)]
    first = out / "cells" / "00" / "0" / "result.json"
    told = interrupt("semisynth.recipes.cells:_error", [*arguments, "--ray", cluster], first.exists)
    assert told == "semisynth: interrupted; the same command goes on from what is done."
    assert 0 < len(list(out.glob("cells/*/*/result.json"))) < 64
    assert weights.read_json(out / "tune.json")["winner"] is None
