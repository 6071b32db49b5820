"""Predictions, metrics, reports and pictures."""
