"""Prediction from Python gives what evaluation scored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deim
from deim.data.formats.split import CocoSplit
from deim.data.splits import read_split
from deim.engine.trained_detector import load_trained
from deim.errors import DataError
from deim.inference.detection_table import DetectionTable
from deim.inference.evaluator import EvaluationResult, build_evaluator
from deim.inference.predictor import Predictor
from deim.metrics.coco import compute_coco_metrics
from deim.structures import Detections


@pytest.fixture(scope="module")
def detector(tiny_run: Path) -> Predictor:
    return deim.load_detector(tiny_run / "best.pth", device="cpu")


@pytest.fixture(scope="module")
def images(tiny_set: Path) -> list[Path]:
    return sorted((tiny_set / "images").glob("val_*.png"))


def evaluate(run: Path, *overrides: str) -> tuple[CocoSplit, EvaluationResult]:
    trained = load_trained(run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    evaluator = build_evaluator(trained, split)
    return split, evaluator.evaluate(trained.model)


def assert_close(actual: Detections, expected: Detections, *, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual.boxes_xyxy, expected.boxes_xyxy, atol=atol, rtol=0)
    torch.testing.assert_close(actual.scores, expected.scores, atol=1e-6, rtol=0)
    assert torch.equal(actual.labels, expected.labels)


def test_no_images_give_no_detections(detector: Predictor) -> None:
    assert detector.predict([]) == []


def enlarged_images(tiny_set: Path, root: Path) -> Path:
    """What the run was validated on, its training images, four times as wide and high, as JPEG, boxes too."""
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    content = json.loads((tiny_set / "annotations" / "train.json").read_text())
    for image in content["images"]:
        image["width"], image["height"] = 4 * image["width"], 4 * image["height"]
        with Image.open(tiny_set / "images" / image["file_name"]) as small:
            # The names end in .png as before: Pillow goes by the content.
            large = small.convert("RGB").resize((image["width"], image["height"]))
            large.save(root / "images" / image["file_name"], format="JPEG")
    for annotation in content["annotations"]:
        annotation["bbox"] = [4 * number for number in annotation["bbox"]]
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_predict_gives_exactly_what_evaluation_scored(
    resize: str, reduced: bool, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    options = [f"data.resize={resize}"]
    if reduced:
        root = enlarged_images(tiny_set, tmp_path)
        options += ["data.reduced_decode=true", f"data.root={root}"]
    split, evaluation = evaluate(tiny_run, *options)
    trained = load_trained(tiny_run / "best.pth", overrides=options)
    paths = [split.image_path(index) for index in range(len(split))]
    actual = Predictor(trained).predict(paths, score_threshold=0.0)
    assert len(actual) == len(split) == evaluation.ground_truth.num_images
    predicted, evaluated = DetectionTable.from_detections(dict(enumerate(actual))), evaluation.detections
    assert len(predicted) > 0
    for column in ("image", "label", "boxes_xywh", "score", "query"):
        np.testing.assert_array_equal(getattr(predicted, column), getattr(evaluated, column))


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((8, 8, 3), dtype=np.float32), r"float32 array \(8, 8, 3\)"),
        (np.zeros(8, dtype=np.uint8), r"uint8 array \(8,\)"),
        (torch.zeros(3, 8, 8), "Tensor"),
    ],
    ids=["floats", "a row", "a tensor"],
)
def test_what_is_no_picture_is_refused(detector: Predictor, image: object, problem: str) -> None:
    with pytest.raises(DataError, match=rf"predict: got a {problem}\. Give a path, a Pillow image, or"):
        detector.predict([image])


def test_the_batch_size_changes_nothing(tiny_run: Path) -> None:
    _, item = evaluate(tiny_run, "data.eval_batch_size=1")
    _, eight = evaluate(tiny_run, "data.eval_batch_size=8")
    assert compute_coco_metrics(item.ground_truth, item.detections) == compute_coco_metrics(
        eight.ground_truth, eight.detections
    )
    for position in range(item.ground_truth.num_images):
        detections, others = (result.detections.detections_of_image(position) for result in (item, eight))
        assert_close(detections, others)


def test_a_path_a_picture_and_an_array_agree(detector: Predictor, images: list[Path]) -> None:
    photo_image = Image.open(images[0])
    actual = detector.predict([images[0], str(images[0]), photo_image, np.asarray(photo_image)])
    for other in actual[1:]:
        assert_close(other, actual[0])
    for single in (images[0], str(images[0]), photo_image, np.asarray(photo_image)):
        (alone,) = detector.predict(single)
        assert_close(alone, actual[0])


def test_a_gray_array_is_like_a_gray_file(detector: Predictor, images: list[Path], tmp_path: Path) -> None:
    gray = Image.open(images[0]).convert("L")
    gray.save(tmp_path / "gray.png")
    from_file, from_array = detector.predict([tmp_path / "gray.png", np.asarray(gray)])
    assert_close(from_array, from_file)


def test_a_rotated_photograph_is_the_same_as_path_and_as_picture(
    detector: Predictor, images: list[Path], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images[0]).save(tmp_path / "turned.png", exif=exif)
    from_file, from_image = detector.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    assert_close(from_image, from_file)


def test_detections_are_sorted_and_inside_their_image(detector: Predictor, images: list[Path]) -> None:
    for path, actual in zip(images, detector.predict(images, score_threshold=0.0), strict=True):
        width, height = Image.open(path).size
        assert len(actual.scores) == 20  # as many as there are queries
        assert (actual.scores[:-1] >= actual.scores[1:]).all()
        assert actual.boxes_xyxy.min() >= 0
        assert (actual.boxes_xyxy[:, 2] <= width).all()
        assert (actual.boxes_xyxy[:, 3] <= height).all()
        assert set(actual.labels.tolist()) <= {0, 1, 2}


def test_the_threshold_keeps_the_scores_at_and_above_it(detector: Predictor, images: list[Path]) -> None:
    (everything,) = detector.predict(images[0], score_threshold=0.0)
    threshold = float(everything.scores[4])
    (actual,) = detector.predict(images[0], score_threshold=threshold)
    assert 5 <= len(actual.scores) < 20
    assert_close(actual, everything.take(everything.scores >= threshold))
    assert detector.predict(images[0], score_threshold=1.0)[0].boxes_xyxy.shape == (0, 4)


def test_the_detector_knows_its_classes(detector: Predictor) -> None:
    assert detector.class_names == ("pit", "scratch", "crack")
    assert detector.category_ids == (3, 7, 90)
    assert detector.input_format.size_hw == (64, 64)


def test_results_carry_the_ids_of_the_annotations() -> None:
    nothing = Detections(
        boxes_xyxy=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0).long(),
        queries=torch.zeros(0).long(),
    )
    assert list(DetectionTable.from_detections({0: nothing}).to_coco((5,), (3, 7))) == []
    assert list(DetectionTable.from_detections({}).to_coco((), ())) == []
    two = Detections(
        boxes_xyxy=torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 5.0, 5.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        queries=torch.tensor([4, 9]),
    )
    first = {"image_id": 5, "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75, "query": 4}
    assert next(DetectionTable.from_detections({1: two}).to_coco((4, 5), (3, 7))) == first


def test_a_damaged_image_is_named(detector: Predictor, tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"part\.png: the image is damaged"):
        detector.predict(tmp_path / "part.png")


def test_an_image_of_any_size_is_accepted(detector: Predictor) -> None:
    for height, width in ((1, 1), (300, 20), (64, 64)):
        (actual,) = detector.predict(np.zeros((height, width, 3), dtype=np.uint8), score_threshold=0.0)
        assert len(actual.scores) == 20  # as many as there are queries
        assert actual.boxes_xyxy[:, 2].max() <= width
        assert actual.boxes_xyxy[:, 3].max() <= height
