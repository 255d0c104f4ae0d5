"""Libraries that are missing, or lack what they need themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from semisynth import optional
from semisynth.errors import UserError


def test_what_a_library_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway.py").write_text("import not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"it needs the library halfway, which lacks not_there: pip install 'semisynth"):
        optional.library("halfway", "it")
    with pytest.raises(UserError, match=r"it needs the library not_there: pip install 'semisynth\[not_there\]'"):
        optional.library("not_there", "it")
