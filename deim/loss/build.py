"""From configuration to criterion."""

from deim.config.schema import LossConfig
from deim.loss.criterion import Criterion
from deim.loss.matcher import HungarianMatcher


def build_criterion(config: LossConfig | None = None, *, matcher_change_epoch: int = 80) -> Criterion:
    """Build the training loss.

    Args:
        config: The `loss` block; None for the defaults, which are those of the reference.
        matcher_change_epoch: First epoch (0-based) with the second matching cost. A training run takes it
            from its schedule; the default is that of the reference's M recipe.
    """
    config = config or LossConfig()
    costs = config.matcher
    matcher = HungarianMatcher(
        cost_class=costs.cost_class,
        cost_bbox=costs.cost_bbox,
        cost_giou=costs.cost_giou,
        alpha=costs.alpha,
        gamma=costs.gamma,
        iou_order=costs.iou_order,
        late_epoch=matcher_change_epoch,
    )
    return Criterion(
        matcher,
        {"mal": config.mal, "bbox": config.bbox, "giou": config.giou, "fgl": config.fgl, "ddf": config.ddf},
        mal_gamma=config.mal_gamma,
        ddf_temperature=config.ddf_temperature,
        union_ties=config.union_ties,
    )
