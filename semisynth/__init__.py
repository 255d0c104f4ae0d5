"""Semi-supervised image classification from a handful of labels and a generative model."""

from importlib.metadata import version

__version__ = version("semisynth")
