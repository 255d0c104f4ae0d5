"""The trained weights that ship: fixed by their hashes, so that no figure changes unnoticed, and small."""

from __future__ import annotations

import hashlib

import pytest

from semisynth.weights import SHIPPED, read_json

HASHES = {
    "digits-gan-generator": "faae80209d1675bedfb5b883b40e278ba3b7e5141b864b45e45d960aa011b53c",
    "digits-vae-generator": "87643a6dee1958a8f24761e0e108ed098d96808f622a8bacca08294cf5264f39",
    "glyphs-generator": "528ab8a4438a16259448c0c28aaf177a466c1925f9a49d501c6f855660b4d20c",
    "glyphs-small-cnn": "dc8f7aeb04fa17004d5a8b6a4553c759b034b734998137f8e0dfde932c9d7098",
    "glyphs-source": "67a6af2bbcd2fdd52b316dd539f8684ba9ea06009ba4b0723210501a3cd7328a",
    "letters-generator": "d5e11b04594f2efa6ea21d2d67b0df605595b7c0520e62a6517f832755c792a8",
    "letters-source": "0b3319bdb2da2f98abb11b7175d874eed910e964450cc72317bb13c22cd36e2d",
}


@pytest.mark.parametrize("name", HASHES)
def test_shipped_weights_are_those_that_were_trained(name: str) -> None:
    content = (SHIPPED / name / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == HASHES[name] and len(content) <= 2**20


@pytest.mark.parametrize("name", HASHES)
def test_they_come_with_how_they_were_made(name: str) -> None:
    config, result = (read_json(SHIPPED / name / f"{what}.json") for what in ("config", "result"))
    assert (SHIPPED / name / "log.jsonl").read_text().count("\n") > 1
    assert result["finished"] and (result["steps"], result["method"]) == (config["steps"], config["method"]["name"])
    assert (SHIPPED / name / "samples.png").exists() == (result["task"] == "generate")


@pytest.mark.parametrize("name", ["glyphs", "letters"])
def test_a_source_classifier_knows_only_samples_of_its_generator(name: str) -> None:
    config, result = (read_json(SHIPPED / f"{name}-source" / f"{what}.json") for what in ("config", "result"))
    assert (config["data"], config["init"], config["labels_per_class"]) == (f"generator:{name}", "none", 0)
    assert result["classes"] == read_json(SHIPPED / f"{name}-generator" / "result.json")["classes"]


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_the_generators_of_digits_saw_none_that_they_are_mixed_with(name: str) -> None:
    config = read_json(SHIPPED / f"digits-{name}-generator" / "config.json")
    assert (config["data"], config["method"]["name"], config["labels_per_class"]) == ("digits-others", name, 0)
