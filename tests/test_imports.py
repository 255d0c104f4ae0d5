"""Code of a user's own: imported anew, from its own folder, and without a trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from semisynth import imports
from semisynth.errors import UserError

NET = "from torch import nn\nfrom blocks import WIDTH\n\n\ndef Net():\n    return nn.Linear(2, WIDTH)\n"


def folder(place: Path, width: int, code: str = NET) -> Path:
    place.mkdir()
    (place / "net.py").write_text(code)
    (place / "blocks.py").write_text(f"WIDTH = {width}\n")
    return place


def test_helpers_of_the_same_name_are_each_its_own(tmp_path: Path) -> None:
    before, path = set(sys.modules), [*sys.path]
    found = [imports.made(folder(tmp_path / name, width), "net", "Net", "it") for name, width in (("p", 3), ("q", 4))]
    assert [made.network.out_features for made in found] == [3, 4]
    assert set(sys.modules) == before and sys.path == path


def test_the_code_is_told_by_the_hash_of_each_of_its_files(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", 3)
    (place / "unread.py").write_text("")
    first = imports.made(place, "net", "Net", "it")
    assert [*first.code] == ["blocks.py", "net.py"]
    assert first.code["net.py"] == imports.hashed(place / "net.py")
    (place / "blocks.py").write_text("WIDTH = 5\n")
    second = imports.made(place, "net", "Net", "it")
    assert second.network.out_features == 5 and second.code["net.py"] == first.code["net.py"]
    assert second.code["blocks.py"] != first.code["blocks.py"]


def test_a_library_that_is_installed_below_the_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, site = folder(tmp_path / "p", 3, "import somelibrary\n" + NET), tmp_path / "p" / ".venv"
    site.mkdir()
    (site / "somelibrary.py").write_text("")
    monkeypatch.syspath_prepend(site)
    made = imports.made(place, "net", "Net", "it")
    assert sys.modules.pop("somelibrary") and "blocks" not in sys.modules and len(made.code) == 2


def test_a_library_finds_what_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "p", 3, NET.replace("from blocks import WIDTH", "WIDTH = 6"))
    (place / "net.py").rename(place / "a_net_that_is_installed.py")
    monkeypatch.chdir(place)
    before = [*sys.path]
    made = imports.installed("a_net_that_is_installed", "Net", "it")
    del sys.modules["a_net_that_is_installed"]
    assert made.network.out_features == 6 and [*made.code] == ["a_net_that_is_installed.py"] and sys.path == before


@pytest.mark.parametrize(
    "code, told",
    [
        ("import sys\nsys.exit('an argument, please')", r"it fails \(SystemExit: an argument, please\): mend it\."),
        ("def Net():\n    return 3", r"it gives a int: it must give a torch\.nn\.Module"),
        ("def Net(one): pass", r"it fails \(TypeError: .*one.*\): mend it"),
        ("", r"it fails \(AttributeError: .*Net.*\): mend it"),
    ],
)
def test_what_goes_wrong_within_it_is_told(code: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        imports.made(folder(tmp_path / "p", 3, code), "net", "Net", "it")


def test_our_command_line_is_not_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["semisynth", "--width", "7"])
    code = "import argparse\nfrom torch import nn\n\nparser = argparse.ArgumentParser()\n"
    code += "parser.add_argument('--width', type=int, default=2)\nargs = parser.parse_args()\n"
    code += "\n\ndef Net():\n    return nn.Linear(2, args.width)\n"
    assert imports.made(folder(tmp_path / "p", 3, code), "net", "Net", "it").network.out_features == 2
    assert sys.argv == ["semisynth", "--width", "7"]
