"""The report of one evaluation: its numbers, words, tables, charts, pictures and page."""
