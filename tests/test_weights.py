"""Files that are whole or not there, and reading with errors that name the file."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch
from torch import nn

from semisynth import weights
from semisynth.errors import UserError


def test_text_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    weights.write_text(path, "old")
    weights.write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut_off)
    for write in (lambda: weights.write_text(path, "newer"), lambda: weights.write_tensors(path, {})):
        with pytest.raises(KeyboardInterrupt):
            write()
        assert path.read_text() == "new"


def test_json_comes_back(tmp_path):
    content = {"a": 1, "b": [1.5, None, True], "c": {"d": "é"}}
    weights.write_json(tmp_path / "a.json", content)
    assert weights.read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_text().startswith('{\n  "a": 1,\n')


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": 1,\n "b": ', r"a\.json, line 2: .* It must be JSON"),
        (b"", r"a\.json, line 1: .* It must be JSON"),
        (b"[1, 2]", r"a\.json must hold a JSON object"),
        (b"\xff\xfe{}", r"a\.json cannot be read"),
        (b'{"a": ' * 100_000, r"a\.json cannot be read: maximum recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"a\.json cannot be read: Exceeds the limit"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        weights.read_json(tmp_path / "a.json")


def test_missing_json_and_a_directory_are_named(tmp_path):
    with pytest.raises(UserError, match=r"b\.json does not exist: give the path"):
        weights.read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="cannot be read"):
        weights.read_json(tmp_path)


def test_tensors_come_back_bitwise(tmp_path):
    shared = torch.randn(4, 3)
    tensors = {"a": shared.t(), "b": torch.arange(3), "c": nn.Parameter(torch.randn(2)), "d": torch.tensor(1.5)}
    weights.write_tensors(tmp_path / "a.safetensors", tensors)
    found = weights.read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_tensors_are_named(tmp_path, share):
    path = tmp_path / "a.safetensors"
    weights.write_tensors(path, {"a": torch.randn(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        weights.read_tensors(path)


def test_a_full_disk_is_told_and_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.write_tensors(path, {"a": torch.zeros(10)})
    before = path.read_bytes()
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, largest[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(UserError, match=r"a\.safetensors cannot be written \(File too large\): make room"):
            weights.write_tensors(path, {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_tensors_may_be_read_by_whom_other_files_may(tmp_path):
    weights.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    weights.write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "a.txt").stat().st_mode


def test_missing_tensors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.safetensors does not exist: it is written when a run ends"):
        weights.read_tensors(tmp_path / "a.safetensors")


def test_a_network_is_filled_from_its_part_of_a_file(tmp_path):
    model = nn.ModuleDict({"features": nn.Linear(3, 2), "head": nn.Linear(2, 1)})
    weights.write_tensors(tmp_path / "a.safetensors", model.state_dict())
    features, whole = nn.Linear(3, 2), nn.ModuleDict({"features": nn.Linear(3, 2), "head": nn.Linear(2, 1)})
    weights.load_into(features, tmp_path / "a.safetensors", "features.")
    weights.load_into(whole, tmp_path / "a.safetensors")
    assert torch.equal(features.weight, model["features"].weight)
    assert torch.equal(whole["head"].bias, model["head"].bias)


@pytest.mark.parametrize("network", [nn.Linear(5, 2), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))])
def test_a_network_of_another_kind_is_refused_in_one_line(tmp_path, network):
    weights.write_tensors(tmp_path / "a.safetensors", nn.Linear(3, 2).state_dict())
    with pytest.raises(UserError, match=r"a\.safetensors does not fit this network: ") as caught:
        weights.load_into(network, tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_no_character_is_written_as_its_code(tmp_path):
    weights.write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9"


def test_of_a_network_that_does_not_fit_some_is_told():
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(100))
    with pytest.raises(UserError, match=r"mine does not fit this network: .*Missing key") as told:
        weights.fill(layers, {}, "mine")
    assert len(str(told.value)) < 400


def test_json_may_begin_with_a_byte_order_mark_and_a_name_be_there_once(tmp_path):
    file = tmp_path / "told.json"
    file.write_text('{"a": {"b": 1, "b": 2}}', encoding="utf-8-sig")
    assert weights.read_json(file) == {"a": {"b": 2}}
    with pytest.raises(UserError, match=r"told\.json cannot be read: 'b' is there twice"):
        weights.read_json(file, once=True)
