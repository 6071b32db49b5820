"""Matching of queries to boxes, and the loss."""

from deim.loss.build import build_criterion

__all__ = ["build_criterion"]
