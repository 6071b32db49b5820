"""Detectors of other families, to compare with."""
