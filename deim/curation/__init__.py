"""What a person asks of a dataset before training: check, split, statistics, previews."""
