"""The synthetic defect set."""
