"""The detector."""

from deim.model.build import build_model, build_variant

__all__ = ["build_model", "build_variant"]
