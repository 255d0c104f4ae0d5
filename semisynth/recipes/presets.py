"""The rows of a comparison: what each name stands for, as part of a configuration."""

from __future__ import annotations

from typing import Any

from semisynth.errors import choose
from semisynth.recipes import config


def rows(generator: str = "glyphs") -> dict[str, dict[str, Any]]:
    """Every named row, in the order of a table, with synthetic images from `generator`."""
    return {
        "supervised": _row("supervised"),
        "naive-fixmatch": _row("fixmatch", generator, "generator"),
        "naive-uda": _row("uda", generator, "generator"),
        "naive-entropy": _row("entropy", generator, "generator"),
        "pssl": _row("pssl", generator),
        "gda": _row("gda", generator),
        "mgr": _row("mgr", generator),
        "scr-uniform": _row("scr", generator, "generator"),
        "gap-only": _row("mpssl", generator, look_ahead=False),
        "mpssl-no-gap": _row("mpssl", generator, gap=0.0),
        "mpssl": _row("mpssl", generator),
        "mpssl-amortised": _row("mpssl", generator, every=4, shared=True),
        "mpssl-letters": _row("mpssl", "letters"),
        "transport-only": _row("transport", generator, refine=False),
        "mpssl-plus": _row("transport", generator),
        "fixmatch-real": _row("fixmatch", unlabeled="pool"),
        "uda-real": _row("uda", unlabeled="pool"),
        "meanteacher-real": _row("meanteacher", unlabeled="pool"),
        "flexmatch-real": _row("flexmatch", unlabeled="pool"),
        "freematch-real": _row("freematch", unlabeled="pool"),
        "softmatch-real": _row("softmatch", unlabeled="pool"),
        "openmatch-real": _row("openmatch", unlabeled="pool"),
        "iomatch-real": _row("iomatch", unlabeled="pool"),
        "rsmatch-no-queue": _row("rsmatch", unlabeled="pool", queue=False),
        "rsmatch-no-detector": _row("rsmatch", unlabeled="pool", detector=False),
        "rsmatch-no-dummy": _row("rsmatch", unlabeled="pool", dummy=False),
        "rsmatch-bare": _row("rsmatch", unlabeled="pool", detector=False, dummy=False),  # which is FixMatch
    }


def pretexts() -> dict[str, dict[str, Any]]:
    """What features can be learned without labels: rotation alone (RotNet), IE-Rot, all tasks, and these weighed.

    IE-Rot (Yamaguchi et al., arXiv 1912.11603 v2) predicts rotation and one enhancement together, without Frank-Wolfe;
    that the enhancement is sharpness, and that each has a head of its own, is our reconstruction.
    """
    return {
        "rotation": _row("pretext", unlabeled="pool", tasks="rotation"),
        "ierot": _row("pretext", unlabeled="pool", tasks="rotation,sharpness"),
        "pretext": _row("pretext", unlabeled="pool"),
        "frank-wolfe": _row("pretext", unlabeled="pool", combine="frank-wolfe"),
    }


def row(name: str, generator: str | None = None) -> dict[str, Any]:
    """The part of `config.json` that a row fixes; a method's name stands for the method with its own defaults.

    generator: glyphs, if a row needs one and none is given. As in a single fit, a bare method that reads `u` gets the
    generator's images if one is given, and else the real pool. `UserError` suggests the nearest name.
    """
    named = rows(generator or "glyphs")
    methods = [method for method in config.method_names() if config.method_class(method).task == "classify"]
    if choose(name, dict.fromkeys([*named, *methods]), "row or method") in named:
        return named[name]
    if "generator" in config.method_parts(name):
        return _row(name, generator or "glyphs")
    if not config.method_class(name).reads_u:
        return _row(name)
    return _row(name, generator, "generator" if generator else "pool")


def _row(method: str, generator: str | None = None, unlabeled: str = "none", **options: Any) -> dict[str, Any]:
    return {"generator": generator, "unlabeled": unlabeled, "method": {"name": method, **options}}
