"""Matching of queries to boxes, loss terms, criterion."""
