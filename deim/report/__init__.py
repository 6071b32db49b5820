"""The report of an evaluation: its numbers, page, charts and images."""
