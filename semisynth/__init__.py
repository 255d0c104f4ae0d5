"""Semi-supervised image classification from a handful of labels and a generative model."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semisynth.api import Prediction as Prediction
    from semisynth.api import Trained as Trained
    from semisynth.api import fit as fit
    from semisynth.api import load_data as load_data
    from semisynth.errors import UserError as UserError
    from semisynth.estimator import SemiSynthClassifier as SemiSynthClassifier

__version__ = version("semisynth")
# Where each public name is: it is imported when it is first used, as torch takes seconds.
PUBLIC = {
    "Prediction": "api",
    "SemiSynthClassifier": "estimator",
    "Trained": "api",
    "UserError": "errors",
    "fit": "api",
    "load_data": "api",
}
__all__ = ["Prediction", "SemiSynthClassifier", "Trained", "UserError", "fit", "load_data"]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'semisynth' has no attribute '{name}'")
    return getattr(import_module(f"semisynth.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
