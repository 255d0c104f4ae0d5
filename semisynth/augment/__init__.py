"""Weak and strong views of images."""

from semisynth.augment.policies import Strong, Weak

__all__ = ["Strong", "Weak"]
