"""Scoring a run of RSMatch against the hidden table of its mix, from the command line to the report."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import torch

from semisynth import contaminated, contamination, mixed, runs
from semisynth.cli import main
from semisynth.errors import UserError
from semisynth.mixed import HIDDEN, POOL, Row
from semisynth.recipes import restore, single
from semisynth.report import page
from semisynth.separable import rank_auroc

SIZES = {"train": 6, "unlabeled": 20, "validation": 4, "test": 4}


def pool(out: Path, seed: int = 0, strange: bool = False) -> Path:
    """Two classes, 20 unlabeled images of which the odd ones are synthetic, from two generators.

    strange: whether the second one makes images of another class.
    """
    source, rows = torch.Generator().manual_seed(seed), []
    for split, count in SIZES.items():
        for i in range(count):
            image = torch.randint(256, (1, 8, 8), generator=source, dtype=torch.uint8)
            name = "ab"[i // 2 % 2]
            made = split == "unlabeled" and i % 2
            label = None if split == "unlabeled" else name
            shown = "c" if strange and made and i // 2 % 2 else name
            rows += [Row(image, label, split, ("one", "two")[i // 2 % 2] if made else mixed.REAL, shown)]
    out.mkdir()
    mixed.write(rows, out)
    return out


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A mix, a run on it, and the run's memory with chosen values."""
    path = tmp_path_factory.mktemp("scored")
    made, out = pool(path / "mix"), path / "run"
    fit = ["fit", "--data", str(made / POOL), "--labels-per-class", "2", "--method", "rsmatch", "--steps", "3"]
    assert main([*fit, "--batch", "4", "--unlabeled-batch", "4", "--out", str(out)]) == 0
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    memory = content["method"]
    assert memory["suspicion"].shape == (2 + 20,)  # two labels of the training split were not drawn
    memory["suspicion"].copy_(torch.linspace(0.01, 0.99, 22))
    memory["suspicion"][5] = -1
    memory["share"].fill_(0.25)
    memory["entered"].fill_(-1)
    memory["entered"][0, 3] = memory["entered"][4, 3] = memory["entered"][1, 2] = 0  # one synthetic, one real
    memory["entered"][19, 7] = 1
    memory["index"].fill_(-1)
    memory["index"][1, 0] = 7
    torch.save(content, out / "checkpoint.pt")
    return made, out, memory


def test_scores_are_those_of_the_hidden_flags(scored: tuple[Path, Path, dict[str, torch.Tensor]]) -> None:
    made, out, memory = scored
    found = contamination.score(out, made / HIDDEN, torch.device("cpu"))
    flags = [False, False, *[i % 2 == 1 for i in range(20)]]
    seen = [i for i in range(22) if i != 5]
    probability = memory["suspicion"].tolist()
    assert found["share"] == {"true": pytest.approx(9 / 21), "estimated": 0.25}
    assert found["auroc"] == rank_auroc([probability[i] for i in seen], [flags[i] for i in seen])
    assert found["purity"] == {"a": [2 / 3, None, None, None, None], "b": [None, None, None, 1.0, 1.0]}
    assert {name: row["images"] for name, row in found["sources"].items()} == {"real": 12, "one": 5, "two": 5}
    one = [i for i in range(2, 22) if (i - 2) % 4 == 1]
    assert found["sources"]["one"]["probability"] == pytest.approx(sum(probability[i] for i in one) / 5)
    assert found["sources"]["one"]["taken"] == sum(probability[i] >= 0.5 for i in one) / 5
    two = [i for i in range(2, 22) if (i - 2) % 4 == 3 and i != 5]
    assert found["sources"]["two"]["taken"] == sum(probability[i] >= 0.5 for i in two) / 4
    assert {name: row["accuracy"] for name, row in found["sources"].items()} == accuracies(out)
    assert found["sources"]["real"]["queued"] == 1 and found["sources"]["one"]["queued"] == 2
    assert json.loads((out / contamination.NAME).read_text()) == found


def test_what_is_not_known_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While the queue is empty nothing is estimated or taken for synthetic; there is no accuracy without a class."""
    made, out = pool(tmp_path / "mix", strange=True), tmp_path / "run"
    fit = ["fit", "--data", str(made / POOL), "--labels-per-class", "2", "--method", "rsmatch", "--steps", "3"]
    assert main([*fit, "--batch", "4", "--unlabeled-batch", "4", "--out", str(out)]) == 0
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    content["method"]["suspicion"].fill_(0.9)
    content["method"]["index"].fill_(-1)
    torch.save(content, out / "checkpoint.pt")
    capsys.readouterr()
    assert main(["evaluate", str(out), "--hidden", str(made / HIDDEN)]) == 0
    assert "synthetic share not estimated, as the queue is empty, true" in capsys.readouterr().out
    found = json.loads((out / contamination.NAME).read_text())
    assert found["share"]["estimated"] is None
    assert {row["taken"] for row in found["sources"].values()} == {0}
    assert found["sources"]["two"]["accuracy"] is None and found["sources"]["one"]["accuracy"] is not None


def accuracies(out: Path) -> dict[str, float]:
    """How many unlabeled images of each source are of the class that the run predicts."""
    _, model, data = restore.trained(out, torch.device("cpu"))
    assert data.unlabeled is not None
    right: dict[str, list[bool]] = {"real": [], "one": [], "two": []}
    for i, c in enumerate(model(data.unlabeled.x.float() / 255).argmax(1).tolist()):
        source = ("one", "two")[i // 2 % 2] if i % 2 else "real"
        right[source] += ["ab"[c] == "ab"[i // 2 % 2]]
    return {name: sum(found) / len(found) for name, found in right.items()}


def test_the_command_tells_and_the_report_shows_it(
    scored: tuple[Path, Path, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, out, _ = scored
    assert main(["evaluate", str(out), "--hidden", str(made / HIDDEN), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(out), "--hidden", str(made / HIDDEN)]) == 0
    told = capsys.readouterr().out
    assert f"detector AUROC {found['auroc']:.3f}" in told and "share estimated 0.250, true 0.429" in told
    groups = runs.load([out])
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", contaminated.contamination(groups, {}))))
    assert "share, estimated 0.250 share, true 0.429" in text and " b – – – 1.00 1.00" in text
    assert "Synthetic images in the pool" in page(groups)


def test_a_run_that_was_not_scored_shows_nothing(tmp_path: Path, scored: tuple[Path, Path, object]) -> None:
    shutil.copytree(scored[1], tmp_path / "run")
    (tmp_path / "run" / contamination.NAME).unlink(missing_ok=True)
    assert contaminated.contamination(runs.load([tmp_path / "run"]), {}) == ""
    (tmp_path / "run" / contamination.NAME).write_text('{"auroc": 0.5}')
    with pytest.raises(UserError, match="score the run again"):
        contaminated.contamination(runs.load([tmp_path / "run"]), {})


def test_what_cannot_be_scored_is_told(tmp_path: Path, scored: tuple[Path, Path, object]) -> None:
    made, out, _ = scored
    other = pool(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"is not the hidden table of the pool .* beside that"):
        contamination.score(out, other / HIDDEN, torch.device("cpu"))
    shutil.copytree(out, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="is missing or damaged: repeat this run"):
        contamination.score(tmp_path / "run", made / HIDDEN, torch.device("cpu"))
    config = json.loads((out / "config.json").read_text())
    config["method"]["detector"] = False
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no detector"):
        contamination.score(tmp_path / "run", made / HIDDEN, torch.device("cpu"))
    config["method"]["detector"], config["data"] = True, "digits"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    shutil.copy(out / "checkpoint.pt", tmp_path / "run")
    with pytest.raises(UserError, match="trained on 'digits', which is no mix that is there"):
        contamination._hidden(made / HIDDEN, single.Config.of(config))
    assert main(["evaluate", str(out), "--hidden", str(made / HIDDEN), "--split", "test"]) == 2
