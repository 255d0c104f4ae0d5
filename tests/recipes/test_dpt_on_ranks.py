"""DPT under torchrun: two ranks make the same images as one process, and neither waits for one that is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from semisynth import weights

SECONDS = 600  # in which both ranks end, by themselves
# The command in shards of 8 images, of which rank 1 makes none if it is told so.
COMMAND = """
import os, sys, time
from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.recipes import shards, stages
stages.SHARD = 8

def fail(*given):
    raise UserError("no images on this rank")

if "RANK" in os.environ:
    with open(f"made{os.environ['RANK']}", "a") as told:
        make = shards.make
        late = int(os.environ["RANK"])  # and the other rank may not go on without its images
        shards.make = lambda *given: (time.sleep(late), make(*given), print(given[-1].name, file=told))
        if sys.argv[1] == os.environ["RANK"]:
            shards.make = fail
        sys.exit(main(sys.argv[2:]))
sys.exit(main(sys.argv[2:]))
"""
SMALL = "--data digits-pool --labels-per-class 3 --steps 3 --diffusion-steps 3 --images-per-class 2 --sampler-steps 2"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a single process made all stages, in out."""
    place = tmp_path_factory.mktemp("ranks")
    subprocess.run(command("none"), cwd=place, check=True, capture_output=True)
    return place


def command(broken: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, broken, "dpt", *SMALL.split(), "--out", "out"]


def two(place: Path, broken: str = "none") -> Iterator[tuple[int, str, str]]:
    """How both ranks end, by themselves, and what they print and tell."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [
        subprocess.Popen(
            command(broken),
            cwd=place,
            env={**os.environ, **address, "RANK": rank, "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        for process in ranks:
            printed, told = process.communicate(timeout=SECONDS)
            yield process.returncode, printed, told
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def contents(place: Path) -> dict[str, bytes]:
    """Of what is made without being trained."""
    return {str(file): file.read_bytes() for file in (place / "out").glob("*/*.parquet")}


def test_two_ranks_share_the_images_and_write_the_same_bytes(one: Path, tmp_path: Path) -> None:
    """What a single process trained is taken as it is, and all that follows the diffusion model is made again."""
    place = shutil.copytree(one, tmp_path / "place")
    before, told = contents(place), weights.read_json(place / "out" / "dpt.json")
    stages = {name: place / stage["path"] for name, stage in told["stages"].items()}
    last = weights.read_json(stages["classifier-1"] / "config.json")
    for lost in (stages["labels-1"], stages["images-1"], place / Path(last["data"]).parent, stages["classifier-1"]):
        shutil.rmtree(lost)
    (place / "out" / "dpt.json").unlink()
    (first, printed, said), (second, silent, _) = two(place)
    assert (first, second) == (0, 0), said
    assert contents(place) == before and len(before) == 5
    assert (place / "made0").read_text().split() == ["00000.parquet", "00002.parquet"]
    assert (place / "made1").read_text().split() == ["00001.parquet"]
    found = weights.read_json(place / "out" / "dpt.json")
    assert [line.partition(":")[0] for line in printed.splitlines() if line[0] != " "] == list(
        found["stages"]
    ) and silent == ""
    assert found["stages"].keys() == told["stages"].keys() and found["options"] == told["options"]
    assert "test" in found["stages"]["classifier-1"]


def test_no_rank_waits_for_one_that_failed(one: Path, tmp_path: Path) -> None:
    place = shutil.copytree(one, tmp_path / "place")
    [images] = (place / "out").glob("images-*")
    shutil.rmtree(images)
    (first, _, _), (second, _, told) = two(place, "1")
    assert second == 2 and "no images on this rank" in told and first not in (0, None)
    assert sorted(file.name for file in images.iterdir()) == ["00000.parquet", "00002.parquet"]
