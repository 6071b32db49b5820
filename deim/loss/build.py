"""The training loss by its config."""

from deim.loss.criterion import Criterion, LossOptions
from deim.loss.matcher import HungarianMatcher, MatcherOptions


def build_criterion(options: LossOptions | None = None, *, matcher_change_epoch: int = 80) -> Criterion:
    """Build the training loss.

    Args:
        options: The `loss` block; None for the defaults, which are the reference's.
        matcher_change_epoch: First epoch (0-based) with the late matching cost. A training run takes it from
            its schedule; the default is the epoch of the reference's M recipe.
    """
    return Criterion(options or LossOptions(), matcher_change_epoch=matcher_change_epoch)


def build_matcher(options: MatcherOptions, *, change_epoch: int) -> HungarianMatcher:
    """Build the assignment of queries to boxes; `change_epoch` is the first with the late matching cost."""
    return HungarianMatcher(options, late_epoch=change_epoch)
