"""The detector gives the numbers of the official code (commit 0fff8d4); see `../shared/parity/README.md`."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deim.inference.postprocess import select_detections
from deim.model.build import build_variant
from deim.model.detector import Detector
from deim.structures import ModelOutput, Placement
from tests.model.parity_folder import (
    build_with_recipe_weights,
    draw_images,
    load_arrays,
    load_shapes,
    needs_parity_folder,
    single_thread,
)

PARAMETERS = {"s": 9_694_220, "m": 18_243_716, "l": 32_451_388, "x": 51_059_666}
"""With 6 classes, from the README of the parity folder."""
TRAINABLE_80_CLASSES = {"s": 9_779_836, "m": 18_357_748, "l": 32_551_212, "x": 51_211_734}
"""Measured on the official code."""
COMPUTED = {"decoder.anchors", "decoder.valid_mask"}
LOGIT_TOLERANCE, BOX_TOLERANCE = 1e-4, 1e-5
ORIGINAL_SIDE = 640
SLICES = {"backbone": np.s_[:, ::16, ::8, ::8], "encoder": np.s_[:, ::16, ::4, ::4]}

pytestmark = needs_parity_folder


class Evaluated(NamedTuple):
    model: Detector
    output: ModelOutput
    maps: dict[str, list[Tensor]]
    expected: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module", params=["s", "m", "l", "x"])
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def evaluated(variant) -> Evaluated:
    model = build_with_recipe_weights(variant).eval()
    maps: dict[str, list[Tensor]] = {}
    for part in ("backbone", "encoder"):
        getattr(model, part).register_forward_hook(
            lambda module, inputs, features, part=part: maps.update({part: features})
        )
    with single_thread(), torch.no_grad():
        output = model(draw_images(2, 320))
    return Evaluated(model, output, maps, load_arrays(f"{variant}_eval_320x320"))


def assert_same_rows(ours: NDArray, theirs: NDArray, tolerances: list[float]) -> None:
    """Equal within a tolerance for each column, in any order: ties of the top-k may come in another one."""
    assert ours.shape == theirs.shape
    distance = (np.abs(ours[:, None] - theirs[None]) / np.array(tolerances)).max(axis=-1)
    worst = distance[linear_sum_assignment(distance)].max()
    assert worst < 1, f"{worst:.2f} times the tolerance"


def test_keys_and_shapes_are_those_of_official_weights(variant, evaluated):
    expected = load_shapes(variant)
    ours = {key: list(value.shape) for key, value in evaluated.model.state_dict().items()}
    assert {key: shape for key, shape in expected.items() if key not in COMPUTED} == ours


def test_parameter_counts_are_those_of_the_official_model(variant, evaluated):
    assert sum(p.numel() for p in evaluated.model.parameters()) == PARAMETERS[variant]
    with torch.device("meta"):
        coco = build_variant(variant, num_classes=80)
    assert sum(p.numel() for p in coco.parameters() if p.requires_grad) == TRAINABLE_80_CLASSES[variant]


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_feature_maps_equal_those_of_the_official_model(evaluated, part):
    for level, features in enumerate(evaluated.maps[part]):
        expected = evaluated.expected[f"{part}_{level}"]
        np.testing.assert_allclose(features.numpy()[SLICES[part]], expected, rtol=0, atol=1e-5)


def test_logits_and_boxes_equal_those_of_the_official_model(evaluated):
    ours = torch.cat([evaluated.output["pred_logits"], evaluated.output["pred_boxes"]], dim=-1).numpy()
    theirs = np.concatenate([evaluated.expected["pred_logits"], evaluated.expected["pred_boxes"]], axis=-1)
    for image in range(2):
        assert_same_rows(ours[image], theirs[image], [LOGIT_TOLERANCE] * 6 + [BOX_TOLERANCE] * 4)


def test_detections_equal_those_of_the_official_post_processing(evaluated):
    side = ORIGINAL_SIDE
    placement = Placement(orig_size_hw=(side, side), span_hw=(side, side), shift_yx=(0, 0))
    detections = select_detections(evaluated.output, [placement] * 2)
    for image, ours in enumerate(detections):
        theirs = {name: evaluated.expected[f"post_{image}_{name}"] for name in ("labels", "boxes", "scores")}
        np.testing.assert_allclose(ours.scores, theirs["scores"], rtol=0, atol=LOGIT_TOLERANCE / 4)
        assert (ours.scores.diff() <= 0).all()
        assert_same_rows(
            np.column_stack([ours.labels, ours.boxes_xyxy, ours.scores]),
            np.column_stack([theirs["labels"], theirs["boxes"], theirs["scores"]]),
            [0.5, *[BOX_TOLERANCE * side] * 4, LOGIT_TOLERANCE / 4],
        )
