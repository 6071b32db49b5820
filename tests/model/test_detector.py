"""The whole detector: sizes, modes, precision, and that it can learn."""

import re

import pytest
import torch
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, iou
from deim.errors import ConfigError
from deim.loss.criterion import Criterion, LossOptions
from deim.model.build import build_variant
from deim.structures import Target
from tests.model.tiny import Kind, random_images, random_targets, tiny_detector

KINDS: list[Kind] = ["vit_tiny", "dinov3", "dinov3_swiglu"]


def storage(tensors) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [(32, 32), (64, 128), (96, 64)])
def test_takes_any_size_that_is_a_multiple_of_32(kind, size_hw):
    height, width = size_hw
    model = tiny_detector(kind, num_queries=300)
    images = random_images(2, height, width)
    # Fewer cells than queries: each cell becomes one query.
    cells = sum(height // stride * (width // stride) for stride in (8, 16, 32))
    queries = min(300, cells)
    for mode in (True, False):
        output = model.train(mode)(images, random_targets((1, 2)))
        assert output["pred_logits"].shape == (2, queries, 3)
        assert output["pred_boxes"].shape == (2, queries, 4)
        assert output["pred_boxes"].isfinite().all()


def test_evaluates_at_another_size_than_it_was_trained_at_as_if_fresh():
    trained, fresh = tiny_detector(shake=0.05), tiny_detector(shake=0.05)
    trained.train()(random_images(2), random_targets((1, 2)))
    trained.eval()(random_images(1))
    fresh.load_state_dict(trained.state_dict())
    wide = random_images(1, 64, 96)
    with torch.no_grad():
        assert torch.equal(trained(wide)["pred_boxes"], fresh.eval()(wide)["pred_boxes"])


@pytest.mark.parametrize(("height", "width"), [(65, 64), (64, 48)])
def test_other_sizes_are_refused_with_the_remedy(height, width):
    message = (
        f"images: got {height}x{width} px. Height and width must be multiples of 32. "
        "Resize or pad the images, or set image_size to such a size."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_detector()(random_images(1, height, width))


def test_as_many_targets_as_images_are_needed():
    with pytest.raises(ValueError, match=r"^targets: got 1 for 2 images\. Pass one target for each image\.$"):
        tiny_detector().train()(random_images(2), random_targets((1,)))


def test_evaluation_gives_scores_and_boxes_alone_and_training_all_that_is_supervised():
    model, images = tiny_detector(num_layers=3), random_images(2)
    assert set(model.eval()(images)) == {"pred_logits", "pred_boxes"}
    assert set(model(images, random_targets((1, 2)))) == {"pred_logits", "pred_boxes"}
    with_boxes = model.train()(images, random_targets((1, 2)))
    assert len(with_boxes["aux_outputs"]) == 2
    assert len(with_boxes["dn_outputs"]) == 3
    assert not with_boxes["ref_points"].requires_grad
    without = model(images, random_targets((0, 0)))
    assert set(with_boxes) - set(without) == {"dn_outputs", "dn_pre_outputs", "dn_meta"}


@pytest.mark.parametrize("autocast", [False, True])
def test_the_features_of_the_queries_are_what_the_last_class_head_reads(autocast):
    model, images = tiny_detector(shake=0.1).eval(), random_images(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain, output = model(images), model(images, with_queries=True)
        class_logits = model.decoder.dec_score_head[-1](output["query_features"])
    assert set(output) - set(plain) == {"query_features"}
    assert output["query_features"].shape == (2, 20, 32)
    # The location quality adds one number for all classes of a query.
    correction = (output["pred_logits"] - class_logits).float()
    assert correction.any()
    tolerance = 0.05 if autocast else 1e-5
    assert (correction - correction.mean(dim=-1, keepdim=True)).abs().max() < tolerance
    for name, tensor in plain.items():
        assert torch.equal(output[name], tensor)


def test_queries_are_not_to_be_had_in_training_mode():
    message = "with_queries: the detector is in training mode. Call detector.eval() first."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tiny_detector().train()(random_images(1), with_queries=True)


def test_an_image_is_detected_the_same_alone_and_in_a_batch():
    model, images = tiny_detector(shake=0.05).eval(), random_images(3)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    assert torch.allclose(together["pred_boxes"][1:2], alone["pred_boxes"], atol=1e-5)
    assert torch.allclose(together["pred_logits"][1:2], alone["pred_logits"], atol=1e-5)


def test_object_queries_of_the_first_layer_do_not_depend_on_the_targets():
    """The mask hides denoising queries, and so the true boxes, from the object queries."""
    model, images = tiny_detector(shake=0.05).train(), random_images(2)
    first = model(images, random_targets((3, 1), seed=1))
    second = model(images, random_targets((2, 2), seed=2))
    for name in ("pred_logits", "pred_boxes", "pred_corners"):
        assert torch.allclose(first[name], second[name], atol=1e-5)


def test_all_layers_refine_the_boxes_of_the_first_and_only_the_last_is_returned():
    model = tiny_detector(shake=0.05).train()
    output = model(random_images(2), random_targets((1, 2)))
    for layer in output["aux_outputs"]:
        assert torch.equal(layer["ref_points"], output["pre_outputs"]["pred_boxes"])
        assert not torch.equal(layer["pred_boxes"], output["pred_boxes"])


def test_at_the_start_every_layer_predicts_the_anchors_with_the_prior_score():
    # box heads start at zero, class heads with a bias of -4.59512.
    model = tiny_detector().eval()
    with torch.no_grad():
        output = model(random_images(1))
    sides = output["pred_boxes"][..., 2:].unique().tolist()
    assert all(any(abs(side - anchor) < 1e-5 for anchor in (0.05, 0.1, 0.2)) for side in sides)
    for head in (model.decoder.enc_score_head, *model.decoder.dec_score_head):
        assert head.bias.tolist() == pytest.approx([-4.59512] * 3, abs=1e-5)


def test_two_models_share_no_tensor_and_learn_apart():
    single, two = tiny_detector(seed=0), tiny_detector(seed=0)
    assert not storage(single.state_dict().values()) & storage(two.state_dict().values())
    images, targets = random_images(1), random_targets((2,))
    with torch.no_grad():
        before = two.eval()(images)["pred_logits"]
    optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
    sum(Criterion(LossOptions())(single.train()(images, targets), targets).values()).backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(two(images)["pred_logits"], before)
        assert not torch.equal(single.eval()(images)["pred_logits"], before)


def test_within_a_model_only_the_two_frozen_scalars_stand_under_two_names():
    model = tiny_detector("dinov3")
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    assert sorted(sorted(group) for group in names.values() if len(group) > 1) == [
        ["decoder.decoder.reg_scale", "decoder.reg_scale"],
        ["decoder.decoder.up", "decoder.up"],
    ]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["decoder.up", "decoder.reg_scale"]


def test_dinov3_rescales_its_coordinates_in_training_only():
    vit = tiny_detector("dinov3", shake=0.05).backbone.pretrained
    images = random_images(1)
    with torch.no_grad():
        training = [vit.train()(images)[-1] for _ in range(2)]
        evaluation = [vit.eval()(images)[-1] for _ in range(2)]
    assert not torch.allclose(*training)
    assert torch.equal(*evaluation)


def test_vit_tiny_computes_the_same_in_training_and_evaluation():
    vit = tiny_detector(shake=0.05).backbone.pretrained
    images = random_images(1)
    with torch.no_grad():
        assert torch.equal(vit.train()(images)[-1], vit.eval()(images)[-1])


def test_key_bias_of_dinov3_is_masked_and_the_others_are_not():
    model = tiny_detector("dinov3", dim=32)
    for block in model.backbone.pretrained.blocks:
        assert block.attn.qkv.bias_mask.tolist() == [1.0] * 32 + [0.0] * 32 + [1.0] * 32
    vit, images = model.backbone.pretrained.eval(), random_images(1)

    def last_map() -> Tensor:
        with torch.no_grad():
            return vit(images)[-1]

    start = last_map()
    bias = vit.blocks[0].attn.qkv.bias.data
    bias[32:64] = 5.0
    assert torch.equal(last_map(), start)
    bias[64:] = 5.0
    assert not torch.equal(last_map(), start)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_gives_finite_scores_and_float32_boxes(kind):
    model, images = tiny_detector(kind, shake=0.05), random_images(2)
    targets = random_targets((2, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluated = model.eval()(images)
        trained = model.train()(images, targets)
    for output in (evaluated, trained):
        assert output["pred_boxes"].dtype == torch.float32
        assert output["pred_boxes"].isfinite().all()
        assert output["pred_logits"].isfinite().all()
    loss = sum(Criterion(LossOptions())(trained, targets).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart():
    images = torch.full((2, 3, 64, 64), -1.0)
    targets: list[Target] = [
        {"boxes": torch.tensor([[0.3, 0.35, 0.3, 0.4]]), "labels": torch.tensor([0])},
        {
            "boxes": torch.tensor([[0.6, 0.3, 0.4, 0.3], [0.3, 0.75, 0.3, 0.3]]),
            "labels": torch.tensor([1, 2]),
        },
    ]
    for image, target in zip(images, targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            left, top, right, bottom = (cxcywh_to_xyxy(box) * 64).round().int().tolist()
            image[label, top:bottom, left:right] = 1.0
    model = tiny_detector(num_layers=2, num_queries=10).train()
    criterion = Criterion(LossOptions())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=100, pct_start=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        terms = criterion(model(images, targets), targets)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append((terms["loss_bbox"] + terms["loss_giou"]).item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        learned, evaluated = model(images), model.eval()(images)
    # The coarsest map has four cells: its batch norm sees eight values, whose statistics differ from the
    # running ones, and so the boxes in evaluation are less exact.
    for output, least_overlap in [(learned, 0.8), (evaluated, 0.5)]:
        for image, target in enumerate(targets):
            scores = output["pred_logits"][image].sigmoid()
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                best = scores[:, label].argmax()
                actual = output["pred_boxes"][image, best]
                assert iou(cxcywh_to_xyxy(actual), cxcywh_to_xyxy(box)) > least_overlap
                assert scores[best].argmax() == label
                assert scores[best, label] > 0.5


def test_nano_has_fewer_than_three_million_parameters_and_works():
    model = build_variant("nano", num_classes=6).eval()
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    with torch.no_grad():
        assert model(random_images(1))["pred_logits"].shape == (1, 84, 6)
    assert model.num_classes == 6


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"^build_variant: model: got 'xl' for the size, needs a size \(nano, lite, s,"
    ):
        build_variant("xl", num_classes=6)


def test_one_image_alone_gets_its_own_gradient() -> None:
    """Torch's CPU batch norm fails for one image with a gradient of unusual strides; see `HybridEncoder`."""
    model = tiny_detector("vit_tiny", num_denoising=0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    image = random_images(1)
    gradients = []
    for images in (image, image.repeat(2, 1, 1, 1)):
        model.zero_grad()
        model(images)["pred_logits"][0].square().sum().backward()
        named = model.backbone.named_parameters()
        gradients.append({name: value.grad.clone() for name, value in named if value.grad is not None})
    for name, value in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], value, rtol=1e-3, atol=1e-5)
