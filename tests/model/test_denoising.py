"""Denoising queries: how many, in which order, how noisy, and who sees whom."""

import pytest
import torch

from deim.boxes import cxcywh_to_xyxy
from deim.model.decoder.options import DecoderOptions
from deim.model.decoder.queries import DenoisingQueries, build_denoising_queries
from deim.structures import Target
from tests.model.tiny import random_targets

NUM_CLASSES, NUM_QUERIES = 4, 7


def draw(targets: list[Target], **options) -> DenoisingQueries | None:
    noise = DecoderOptions(**({"num_denoising": 12} | options))
    return build_denoising_queries(targets, NUM_CLASSES, noise, num_queries=NUM_QUERIES)


def central_targets(count: int, num_classes: int = NUM_CLASSES) -> list[Target]:
    """Small boxes far from the border, so that noise is never clipped."""
    generator = torch.Generator().manual_seed(0)
    center = 0.4 + 0.2 * torch.rand(count, 2, generator=generator)
    sides = 0.05 + 0.1 * torch.rand(count, 2, generator=generator)
    return [{"boxes": torch.cat([center, sides], dim=1), "labels": torch.arange(count) % num_classes}]


@pytest.mark.parametrize("counts", [(), (0,), (0, 0)])
def test_no_boxes_give_no_queries(counts):
    assert draw(random_targets(counts)) is None


def test_zero_denoising_gives_no_queries():
    assert draw(random_targets((2, 1)), num_denoising=0) is None


@pytest.mark.parametrize(
    ("counts", "num_denoising", "groups"),
    [((1,), 100, 100), ((3, 1), 100, 33), ((12, 5), 100, 8), ((0, 2), 12, 6), ((13, 2), 12, 1), ((5,), 1, 1)],
)
def test_groups_share_the_denoising_number_among_the_boxes_of_the_fullest_image(
    counts, num_denoising, groups
):
    # G = max(1, ⌊100 / g⌋), K = 2·g·G.
    queries = draw(random_targets(counts), num_denoising=num_denoising)
    total = 2 * max(counts) * groups
    assert queries.meta.num_groups == groups
    assert queries.meta.num_queries == total
    assert queries.labels.shape == (len(counts), total)
    assert queries.box_logits.shape == (len(counts), total, 4)
    assert queries.blocked.shape == (total + NUM_QUERIES,) * 2


def test_without_noise_every_query_is_its_box_and_padding_is_the_extra_class():
    targets = random_targets((3, 1), num_classes=NUM_CLASSES)
    queries = draw(targets, label_noise_ratio=0.0, box_noise_scale=0.0, num_denoising=6)
    for image, target in enumerate(targets):
        count = len(target["labels"])
        labels = queries.labels[image].view(-1, 3)
        boxes = queries.box_logits[image].view(-1, 3, 4)
        # Two groups, each of three positives and three negatives.
        assert labels.shape[0] == 4
        assert (labels[:, :count] == target["labels"]).all()
        assert torch.allclose(
            boxes[:, :count].sigmoid(), target["boxes"].expand(4, -1, -1), rtol=0, atol=1e-5
        )
        assert (labels[:, count:] == NUM_CLASSES).all()
        assert (boxes[:, count:] < -11.5).all()


def test_positive_indices_name_the_real_boxes_group_by_group():
    meta = draw(random_targets((3, 0, 2)), num_denoising=6).meta
    assert [index.tolist() for index in meta.query_idx] == [[0, 1, 2, 6, 7, 8], [], [0, 1, 6, 7]]
    assert [index.tolist() for index in meta.target_idx] == [[0, 1, 2, 0, 1, 2], [], [0, 1, 0, 1]]


def test_positives_move_each_edge_by_less_than_half_a_side_and_negatives_by_more():
    targets = central_targets(5)
    torch.manual_seed(0)
    queries = draw(targets, num_denoising=500)
    true_xyxy = cxcywh_to_xyxy(targets[0]["boxes"])
    noised = cxcywh_to_xyxy(queries.box_logits[0].sigmoid()).view(-1, 2, 5, 4)
    half = (targets[0]["boxes"][:, 2:] / 2).repeat(1, 2)
    share = (noised - true_xyxy).abs() / half
    assert share[:, 0].max() <= 1 + 1e-4
    assert share[:, 0].max() > 0.95
    assert share[:, 0].min() < 0.05
    # A negative's two corners may have swapped: then each is compared with the other true edge.
    swapped = (noised - true_xyxy.roll(2, dims=-1)).abs() / half
    ordered = ((share >= 1 - 1e-4) & (share <= 2 + 1e-4)).view(-1, 2, 5, 2, 2).all(dim=-2)
    turned = ((swapped >= 1 - 1e-4) & (swapped <= 2 + 1e-4)).view(-1, 2, 5, 2, 2).all(dim=-2)
    assert (ordered | turned)[:, 1].all()


def test_noised_boxes_stay_in_the_image():
    targets = [{"boxes": torch.tensor([[0.05, 0.95, 0.1, 0.1]]), "labels": torch.tensor([0])}]
    torch.manual_seed(0)
    boxes = draw(targets, num_denoising=200).box_logits.sigmoid()
    corners = cxcywh_to_xyxy(boxes)
    assert corners.min() > -1e-4
    assert corners.max() < 1 + 1e-4


def test_a_quarter_of_the_labels_is_drawn_anew_and_padding_never():
    targets = [*central_targets(4), *central_targets(2)]
    torch.manual_seed(0)
    queries = draw(targets, num_denoising=8000)
    labels = queries.labels.view(2, -1, 4)
    changed = (labels[0] != targets[0]["labels"]).float().mean().item()
    # A drawn label is the old one in one of four cases; 16 000 draws, three standard deviations are 0.009.
    assert changed == pytest.approx(0.25 * 3 / 4, abs=0.01)
    assert (labels[1, :, 2:] == NUM_CLASSES).all()
    assert labels[0].max() < NUM_CLASSES


def test_same_seed_gives_the_same_queries_and_another_seed_others():
    targets = random_targets((3, 1))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw(targets))
    assert torch.equal(drawn[0].box_logits, drawn[1].box_logits)
    assert torch.equal(drawn[0].labels, drawn[1].labels)
    assert not torch.equal(drawn[0].box_logits, drawn[2].box_logits)


def test_a_group_sees_itself_and_object_queries_and_these_only_one_another():
    queries = draw(random_targets((2, 1)), num_denoising=6)
    total, group_size = queries.meta.num_queries, 4
    assert (total, queries.meta.num_groups) == (12, 3)
    for viewer in range(total + NUM_QUERIES):
        for seen in range(total + NUM_QUERIES):
            same_group = viewer < total and viewer // group_size == seen // group_size
            allowed = seen >= total or same_group
            assert queries.blocked[viewer, seen].item() is not allowed, (viewer, seen)


def test_targets_are_left_as_they_were():
    targets = random_targets((3, 1))
    before = [{name: value.clone() for name, value in target.items()} for target in targets]
    draw(targets)
    for target, copy in zip(targets, before, strict=True):
        assert torch.equal(target["boxes"], copy["boxes"])
        assert torch.equal(target["labels"], copy["labels"])
