"""The page of an audit: self-contained, with a text for each image, and nothing of a name taken for markup."""

from __future__ import annotations

import re
from typing import Any

import torch

from semisynth import audited
from semisynth.report import HEAD


def record(**more: Any) -> dict[str, Any]:
    found = {
        "options": {"pool": "data/<b>pool.parquet", "labeled": "x", "seed": 0, "reading": {"size": 0}},
        "share": 0.42,
        "interval": [0.19, 0.8149],
        "p": 0.001,
        "assumption": audited.assumption(0.7),
        "images": {"labeled": 100, "pool": 1234, "copies": 5},
        "data": {"labeled": "abc", "pool": "def"},
        "notes": ["3 images <were> resized"],
    }
    return {**found, **more}


def page(**more: Any) -> str:
    x = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sheets = {"most": [("a<i>.png", 0.934, x[0]), ("b.png", 0.5, x[1])], "least": [("c.png", 0.0, x[2])]}
    return audited.page(record(**more), sheets)


def test_it_needs_nothing_else_and_names_are_no_markup() -> None:
    text = page()
    assert text.startswith(HEAD) and "<script" not in text and not re.search(r'(src|href)="(?!data:)', text)
    assert "<b>pool" not in text and "a<i>" not in text and "<were>" not in text
    assert "Audit of &lt;b&gt;pool.parquet" in text


def test_every_image_has_a_text() -> None:
    told = re.findall(r'<img [^>]*alt="([^"]*)"', page())
    assert told == ["a&lt;i&gt;.png, suspicion 93\u00a0%", "b.png, suspicion 50\u00a0%", "c.png, suspicion 0\u00a0%"]


def test_it_tells_the_figures_the_assumption_and_the_limits() -> None:
    text = page()
    lead = (
        "About 42\u00a0% of 1,234 images differ from the labeled ones as synthetic images would (95\u00a0% interval "
        "19 to 81\u00a0%). They are synthetic, or of other classes, cameras, writers or processing."
    )
    assert audited.CONDITION in text
    assert lead in text and 'aria-label="mean 42.0 %, interval 19.0 to 81.5 %"' in text
    assert all(limit in text for limit in audited.LIMITS) and "at least 0.7" in text
    assert "0.001" in text and "abc" in text and "3 images &lt;were&gt; resized" in text


def test_the_condition_stands_beside_every_finding_and_the_assumption_beside_every_interval() -> None:
    lines = audited.lines(record())
    assert lines[1:] == [audited.CONDITION, audited.assumption(0.7), "3 images <were> resized"]
    assert audited.lines(record(share=0.0))[1] == audited.assumption(0.7)


def test_a_pool_in_which_nothing_was_found_is_not_called_clean() -> None:
    told = audited.told(record(share=0.0, interval=[0.0, 0.45]))
    assert told == (
        "No synthetic image was found with any certainty among 1,234 images (95\u00a0% interval 0 to 45\u00a0%)."
    )
    assert "As nothing was found" in page(share=0.0) and "As nothing was found" not in page()
