"""The criterion: its terms, their names, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, generalized_iou
from deim.errors import NonFiniteError
from deim.loss.criterion import Criterion, LossOptions
from deim.model.decoder.distribution import compute_bin_values
from deim.structures import LayerOutput, ModelOutput, Target
from tests.model.tiny import Kind, random_images, random_targets, tiny_detector

KINDS: list[Kind] = ["vit_tiny", "dinov3"]
NUM_LAYERS, REG_MAX = 3, 32
QUERIES, CLASSES = 12, 3


def forward(
    counts: tuple[int, ...], kind: Kind = "vit_tiny", *, shake: float = 0.05, **options
) -> tuple[torch.nn.Module, ModelOutput, list[Target]]:
    model = tiny_detector(kind, shake=shake, num_layers=NUM_LAYERS, **options).train()
    targets = random_targets(counts)
    return model, model(random_images(len(counts)), targets), targets


def make_outputs(targets: list[Target], *, noise: float = 0.02, seed: int = 0) -> ModelOutput:
    """Outputs whose layers all find box n of an image with query 2n + 1, so that no vote is tied."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch = len(targets)
    near = torch.tensor([0.02, 0.02, 0.01, 0.01]).expand(batch, QUERIES, 4).clone()
    for image, target in enumerate(targets):
        near[image, 1 : 2 * len(target["boxes"]) : 2] = target["boxes"]

    def layer() -> LayerOutput:
        boxes = (near + noise * normal(batch, QUERIES, 4)).clamp(min=0.01, max=0.99)
        return {"pred_logits": normal(batch, QUERIES, CLASSES), "pred_boxes": boxes}

    ref_points = layer()["pred_boxes"]

    def refining() -> LayerOutput:
        return {
            **layer(),
            "pred_corners": normal(batch, QUERIES, 4 * (REG_MAX + 1)),
            "ref_points": ref_points,
        }

    scale = torch.tensor([4.0])
    return {
        **refining(),
        "aux_outputs": [refining() for _ in range(NUM_LAYERS - 1)],
        "pre_outputs": layer(),
        "enc_outputs": layer(),
        "bin_values": compute_bin_values(REG_MAX, torch.tensor([0.5]), scale),
        "reg_scale": scale,
    }


def map_layers(outputs: ModelOutput, change) -> ModelOutput:
    """The outputs with `change` applied to every tensor of every layer."""

    def layer(content: LayerOutput) -> LayerOutput:
        return {k: change(v) if k in LayerOutput.__annotations__ else v for k, v in content.items()}

    changed = layer(outputs)
    for name in ("aux_outputs", "dn_outputs"):
        if name in outputs:
            changed[name] = [layer(content) for content in outputs[name]]
    for name in ("pre_outputs", "enc_outputs", "dn_pre_outputs"):
        if name in outputs:
            changed[name] = layer(outputs[name])
    return changed


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(0, 0), (2, 1)], ids=["no boxes", "boxes"])
def test_every_trainable_parameter_gets_a_finite_gradient(kind, counts):
    model, outputs, targets = forward(counts, kind)
    loss = sum(Criterion(LossOptions())(outputs, targets).values())
    assert math.isfinite(loss.item())
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    assert [name for name, p in trainable.items() if not p.grad.isfinite().all()] == []
    if counts == (2, 1):
        # all but the mask token have a gradient other than zero.
        still = [name for name, p in trainable.items() if not p.grad.any()]
        assert still == ["backbone.dinov3.mask_token"] * (kind == "dinov3")


@pytest.mark.parametrize(("num_layers", "count"), [(4, 47), (6, 67)])
def test_number_of_terms_is_that_of_the_official_criterion(num_layers, count):
    #
    model = tiny_detector(num_layers=num_layers).train()
    targets = random_targets((1, 2))
    assert len(Criterion(LossOptions())(model(random_images(2), targets), targets)) == count


def test_names_of_the_terms_are_the_same_with_and_without_boxes_and_denoising():
    criterion = Criterion(LossOptions())
    names = []
    for counts, options in [((0, 0), {}), ((2, 0), {}), ((9, 1), {}), ((2, 1), {"num_denoising": 0})]:
        _, outputs, targets = forward(counts, **options)
        names.append(sorted(criterion(outputs, targets)))
    assert all(other == names[0] for other in names)


def test_terms_without_boxes_are_zero_but_for_scores_and_distillation():
    _, outputs, targets = forward((0, 0))
    terms = values(Criterion(LossOptions())(outputs, targets))
    other = {name for name, value in terms.items() if value != 0}
    layers = range(NUM_LAYERS - 1)
    scores = {"loss_mal", "loss_mal_pre", "loss_mal_enc_0", *(f"loss_mal_aux_{i}" for i in layers)}
    assert other == scores | {f"loss_ddf_aux_{i}" for i in layers}


def test_distillation_is_zero_before_the_first_step():
    _, outputs, targets = forward((2, 1), shake=0.0)
    terms = values(Criterion(LossOptions())(outputs, targets))
    assert {value for name, value in terms.items() if "ddf" in name} == {0.0}
    assert all(value > 0 for name, value in terms.items() if "ddf" not in name)


def test_one_image_without_boxes_adds_only_background():
    targets = random_targets((2, 0))
    criterion = Criterion(LossOptions())
    both = criterion(make_outputs(targets), targets)
    first = map_layers(make_outputs(targets), lambda tensor: tensor[:1])
    alone = criterion(first, targets[:1])
    for name in ("loss_bbox", "loss_giou", "loss_fgl", "loss_bbox_pre", "loss_giou_enc_0"):
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-5)
    assert both["loss_mal"] > alone["loss_mal"]


def test_box_terms_are_means_over_pairs_with_the_configured_weights():
    targets = random_targets((3, 1))
    outputs = make_outputs(targets)
    terms = values(Criterion(LossOptions(bbox=5.0, giou=2.0))(outputs, targets))
    distances, gaps = [], []
    for image, target in enumerate(targets):
        for n, true_box in enumerate(target["boxes"]):
            box = outputs["pred_boxes"][image, 2 * n + 1]
            distances.append((box - true_box).abs().sum().item())
            overlap = generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(true_box))
            gaps.append(1 - overlap.item())
    assert terms["loss_bbox"] == pytest.approx(5 * sum(distances) / 4, rel=1e-5)
    assert terms["loss_giou"] == pytest.approx(2 * sum(gaps) / 4, rel=1e-5)


def test_box_terms_are_means_over_the_union_of_all_matchings():
    # The encoder finds the box with query 5 and all others with query 1: two pairs own one box.
    targets = random_targets((1,))
    outputs = make_outputs(targets, noise=0.001)
    encoder = outputs["enc_outputs"]["pred_boxes"]
    encoder[:, [1, 5]] = encoder[:, [5, 1]]
    terms = values(Criterion(LossOptions(bbox=1.0))(outputs, targets))
    for name, output in [("loss_bbox", outputs), ("loss_bbox_enc_0", outputs["enc_outputs"])]:
        distances = (output["pred_boxes"][0, [1, 5]] - targets[0]["boxes"]).abs().sum(dim=-1)
        assert terms[name] == pytest.approx(distances.mean().item(), rel=1e-5)


def test_denoising_terms_are_means_over_all_positives():
    _, outputs, targets = forward((2, 1))
    terms = values(Criterion(LossOptions(bbox=1.0))(outputs, targets))
    meta = outputs["dn_meta"]
    assert meta.num_groups == 3
    for name, output in [
        ("loss_bbox_dn_1", outputs["dn_outputs"][1]),
        ("loss_bbox_dn_pre", outputs["dn_pre_outputs"]),
    ]:
        distances = [
            (output["pred_boxes"][image, query] - targets[image]["boxes"][box]).abs().sum().item()
            for image in range(2)
            for query, box in zip(
                meta.query_idx[image].tolist(), meta.target_idx[image].tolist(), strict=True
            )
        ]
        assert len(distances) == 9
        assert terms[name] == pytest.approx(sum(distances) / 9, rel=1e-5)


@pytest.mark.parametrize("term", ["mal", "bbox", "giou", "fgl", "ddf"])
def test_a_weight_scales_its_own_terms_alone(term):
    targets = random_targets((3, 1))
    outputs = make_outputs(targets)
    default = LossOptions()
    once = values(Criterion(default)(outputs, targets))
    doubled = LossOptions(**{term: 2 * getattr(default, term)})
    twice = values(Criterion(doubled)(outputs, targets))
    for name, value in once.items():
        factor = 2 if name.startswith(f"loss_{term}") else 1
        assert twice[name] == pytest.approx(factor * value, rel=1e-6), name


@pytest.mark.parametrize("epoch", [0, 80])
def test_order_of_the_boxes_of_an_image_does_not_matter(epoch):
    targets = random_targets((4, 2))
    outputs = make_outputs(targets)
    turned = [{name: value.flip(0) for name, value in target.items()} for target in targets]
    criterion = Criterion(LossOptions())
    expected = values(criterion(outputs, targets, epoch=epoch))
    assert values(criterion(outputs, turned, epoch=epoch)) == pytest.approx(expected, rel=1e-5)


def test_order_of_the_images_of_a_batch_does_not_matter():
    targets = random_targets((4, 0, 2))
    outputs = make_outputs(targets)
    criterion = Criterion(LossOptions())
    turned = criterion(map_layers(outputs, lambda tensor: tensor.flip(0)), targets[::-1])
    assert values(turned) == pytest.approx(values(criterion(outputs, targets)), rel=1e-5)


def test_better_boxes_and_scores_give_a_lower_loss():
    targets = random_targets((3, 2))
    criterion = Criterion(LossOptions())
    near, far = (criterion(make_outputs(targets, noise=noise), targets) for noise in (0.001, 0.05))
    assert near["loss_bbox"] < far["loss_bbox"]
    assert near["loss_giou"] < far["loss_giou"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_the_float32_loss_of_the_same_numbers(dtype):
    _, outputs, targets = forward((2, 1))
    criterion = Criterion(LossOptions())
    halves = map_layers(outputs, lambda tensor: tensor.to(dtype))
    terms = criterion(halves, targets)
    expected = criterion(map_layers(halves, Tensor.float), targets)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert values(terms) == values(expected)
    assert all(math.isfinite(value) for value in values(terms).values())


def test_the_loss_is_float32_inside_autocast_too():
    _, outputs, targets = forward((2, 1))
    criterion = Criterion(LossOptions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion(outputs, targets)
    assert values(terms) == values(criterion(outputs, targets))


def test_more_boxes_than_queries_give_a_finite_loss():
    _, outputs, targets = forward((9, 1), num_queries=4)
    terms = values(Criterion(LossOptions())(outputs, targets))
    assert all(math.isfinite(value) for value in terms.values())
    assert terms["loss_bbox"] > 0


def test_outputs_that_are_not_numbers_are_refused():
    _, outputs, targets = forward((2, 1))
    outputs["aux_outputs"][1]["pred_logits"] = torch.full_like(outputs["pred_logits"], math.nan)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        Criterion(LossOptions())(outputs, targets)


def test_outputs_of_evaluation_mode_are_refused():
    model = tiny_detector().eval()
    with pytest.raises(ValueError, match=r"^outputs: no supervised outputs. Call model.train\(\) before"):
        Criterion(LossOptions())(model(random_images(1)), random_targets((1,)))


@pytest.mark.parametrize("counts", [[2, 0, 3], [1, 4]])
def test_the_loss_of_a_validation_is_that_of_the_last_layer_in_training(counts: list[int]) -> None:
    targets = random_targets(counts)
    outputs = make_outputs(targets)
    criterion = Criterion(LossOptions(bbox=0.0, giou=0.0))  # boxes are matched for all layers in training
    total, num_boxes = criterion.sum_last_layer(outputs, targets)
    assert num_boxes == sum(counts)
    assert total / num_boxes == pytest.approx(float(criterion(outputs, targets)["loss_mal"]), rel=1e-5)
    last = {"pred_logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    assert criterion.sum_last_layer(last, targets) == (total, num_boxes), "evaluation mode has no more"
