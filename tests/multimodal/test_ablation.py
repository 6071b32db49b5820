"""The trials end to end on findings made by hand, of which is known what the verdict must be."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deim.inference.detection_table import GroundTruthTable
from multimodal.ablation.build import TrialPlan, nearest_texts
from multimodal.ablation.files import write_evidence
from multimodal.ablation.schema import EVIDENCE_KEYS, build_evidence, model_of
from multimodal.ablation.tables import format_classes, format_models
from multimodal.ablation.trials import TrialSetting, run_trials, score, train_variant
from multimodal.ablation.variants import CONTROLS, Variant
from multimodal.ablation.verdict import Decision, compute_gains, decide
from tests.multimodal.made_findings import (
    Case,
    known_words,
    make_setting,
    nothing_left,
    nothing_to_learn,
    unknown_words,
    wrong_words,
)


def judge(setting: TrialSetting) -> Decision:
    scores = run_trials(setting, CONTROLS, seeds=(0, 1), pair=(0, 1))
    return decide(compute_gains(scores, pair=(0, 1)), pair_names=("class 0", "class 1"))


@pytest.mark.slow
def test_text_helps_where_rare_classes_look_as_words_of_frequent_ones_say():
    found = judge(make_setting(known_words(0), seed=0))
    assert found.verdict == "text helps"
    assert not any("does not" in reason for reason in found.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("make", [unknown_words, wrong_words])
def test_only_training_helps_where_the_text_says_nothing_of_the_looks(make: Callable[[int], Case]):
    found = judge(make_setting(make(0), seed=0))
    assert found.verdict == "training helps, text does not"
    # The head reads its text all the same: that alone proves nothing.
    assert found.reasons[-2].endswith("the head reads its text.")


@pytest.mark.slow
@pytest.mark.parametrize("make", [nothing_to_learn, nothing_left])
def test_nothing_helps_where_nothing_can(make: Callable[[int], Case]):
    assert judge(make_setting(make(0), seed=0, epochs=4)).verdict == "nothing helps"


def short() -> TrialSetting:
    """12 images, and trainings of three steps."""
    few = replace(unknown_words(0), train_boxes=(6,) * 6, val_boxes=(6,) * 6)
    return make_setting(few, seed=0, epochs=3, num_resamples=10)


def test_a_training_follows_from_its_seed_alone():
    setting = short()
    first, other = (train_variant("text", setting, seed=seed) for seed in (0, 1))
    train_variant("random", setting, seed=5)
    again = train_variant("text", setting, seed=0)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.gate, other.head.gate)
    assert first.head.gate.any()
    assert score(first, setting).mean_ap50.value == score(again, setting).mean_ap50.value


def test_the_class_head_alone_keeps_its_gates_shut():
    model = train_variant("class_head", short(), seed=0)
    assert not model.head.gate.any()
    assert model.class_head_delta.weight.any()


def test_every_training_has_the_same_batches_and_the_swap_is_of_the_same_weights():
    asked = []
    setting = short()

    def train(seed: int, epoch: int):
        asked.append((seed, epoch))
        return setting.train(seed, epoch)

    scores = run_trials(replace(setting, train=train), ["random", "mlp"], seeds=(3, 4), pair=(0, 1))
    assert asked == [(seed, epoch) for seed in (3, 4) for _ in range(3) for epoch in range(3)]
    assert list(scores.variants) == ["text", "random", "mlp"]
    assert len(scores.swapped) == 2
    own, swapped = scores.variants["text"][0], scores.swapped[0]
    assert own.ap50[0].value != swapped.ap50[0].value
    assert own.ap50[2].value == swapped.ap50[2].value
    assert scores.frozen.mean_ap50.value < 0.4


def test_the_nearest_texts():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    assert nearest_texts(text) == (0, 2)


def plan_of(setting: TrialSetting) -> TrialPlan:
    return TrialPlan(
        setting=setting,
        class_names=tuple(f"class {label}" for label in range(6)),
        pair=(0, 1),
        pair_origin="named by hand",
        encoder="hashed bag of words",
        detector="outputs/run/best.pth",
    )


def evidence_of(setting: TrialSetting, controls: tuple[Variant, ...] = ("mlp",)) -> dict[str, Any]:
    scores = run_trials(setting, controls, seeds=(0, 1), pair=(0, 1))
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    return build_evidence(plan_of(setting), scores, seeds=(0, 1), minutes=1.234, created=now)


def test_the_numbers_say_what_was_tried_and_what_came_out():
    evidence = evidence_of(short())
    assert list(evidence) == list(EVIDENCE_KEYS)
    assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence
    assert [model["name"] for model in evidence["models"]] == ["frozen", "text", "mlp", "swapped"]
    assert evidence["pair"] == {"first": "class 0", "second": "class 1", "origin": "named by hand"}
    assert evidence["left_out"][0] == "random vectors"
    assert len(evidence["left_out"]) == 5
    assert evidence["in_words"][0].startswith(
        f"Verdict: {evidence['verdict']} (2 seeds of 3 epochs; 12 images,"
    )
    text, mlp = model_of(evidence, "text"), model_of(evidence, "mlp")
    assert text["ap50"] == pytest.approx(sum(text["ap50_of_seeds"]) / 2)
    assert mlp["text_over_it"]["value"] == pytest.approx(text["ap50"] - mlp["ap50"])
    assert text["text_over_it"]["value"] == 0
    values = [row["ap50"] for row in mlp["classes"]]
    assert mlp["ap50"] == pytest.approx(sum(values) / 6)
    lines = format_models(evidence).splitlines()
    assert len(lines) == 5
    assert lines[3].split("  ")[0] == "an MLP without text"
    assert f"{mlp['ap50']:.3f}" in lines[3]
    assert re.fullmatch(r"AP50 +frozen +text +mlp +swapped", format_classes(evidence).splitlines()[0])


@pytest.mark.slow
def test_the_files_of_the_trials(tmp_path: Path):
    evidence = evidence_of(short())
    path = write_evidence(evidence, tmp_path / "trials")
    assert json.loads(path.read_text(encoding="utf-8")) == evidence
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert evidence["in_words"][0] in page
    for name in ("models", "classes"):
        with Image.open(tmp_path / "trials" / "evidence" / f"{name}.png") as picture:
            assert min(picture.size) > 400
    # A split without boxes has nothing to draw, and no verdict but the last.
    setting = short()
    no_boxes = {**setting.ground_truth.to_coco(), "annotations": []}
    bare = evidence_of(replace(setting, ground_truth=GroundTruthTable.from_coco(no_boxes)))
    assert bare["verdict"] == "nothing helps"
    write_evidence(bare, tmp_path / "bare")
    assert "\N{EN DASH}" in format_models(bare)
