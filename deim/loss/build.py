"""From configuration to criterion."""

from deim.loss.criterion import Criterion, LossOptions
from deim.loss.matcher import HungarianMatcher, MatcherOptions


def build_criterion(config: LossOptions | None = None, *, matcher_change_epoch: int = 80) -> Criterion:
    """Build the training loss.

    Args:
        config: The `loss` block; None for the defaults, which are those of the reference.
        matcher_change_epoch: First epoch (0-based) with the second matching cost. A training run takes it
            from its schedule; the default is that of the reference's M recipe.
    """
    config = config or LossOptions()
    return Criterion(
        build_matcher(config.matcher, change_epoch=matcher_change_epoch),
        {"mal": config.mal, "bbox": config.bbox, "giou": config.giou, "fgl": config.fgl, "ddf": config.ddf},
        mal_gamma=config.mal_gamma,
        ddf_temperature=config.ddf_temperature,
        union_ties=config.union_ties,
    )


def build_matcher(config: MatcherOptions, *, change_epoch: int) -> HungarianMatcher:
    """Build the assignment of queries to boxes.

    Args:
        config: The `loss.matcher` block.
        change_epoch: First epoch (0-based) with the second matching cost.
    """
    return HungarianMatcher(
        cost_class=config.cost_class,
        cost_bbox=config.cost_bbox,
        cost_giou=config.cost_giou,
        alpha=config.alpha,
        gamma=config.gamma,
        iou_order=config.iou_order,
        late_epoch=change_epoch,
    )
