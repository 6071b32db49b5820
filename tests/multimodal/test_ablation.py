"""The trials end to end on detector outputs made by hand, whose verdict is known."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deim.inference.detection_table import GroundTruthTable
from deim.records import from_json
from deim.report.schema import write_record
from multimodal.ablation.result import Ablation, build_ablation, format_classes, format_models
from multimodal.ablation.trials import TrialContext, evaluate_variant, run_trials, train_variant
from multimodal.ablation.variants import ABLATED_VARIANTS, Variant
from tests.multimodal.made_outputs import (
    Case,
    known_words,
    make_context,
    nothing_left,
    nothing_to_learn,
    unknown_words,
    wrong_words,
)


def judge(context: TrialContext) -> Ablation:
    return ablation_of(context, ABLATED_VARIANTS)


@pytest.mark.slow
def test_text_helps_where_rare_classes_look_as_words_of_frequent_ones_say():
    actual = judge(make_context(known_words(0), seed=0))
    assert actual.verdict == "text helps"
    assert not any("does not" in reason for reason in actual.summary)


@pytest.mark.slow
@pytest.mark.parametrize("make", [unknown_words, wrong_words])
def test_only_training_helps_where_the_text_says_nothing_of_the_looks(make: Callable[[int], Case]):
    actual = judge(make_context(make(0), seed=0))
    assert actual.verdict == "training helps, text does not"
    # The head reads its text all the same: that alone proves nothing.
    assert actual.summary[-2].endswith("the head uses its text.")


@pytest.mark.slow
@pytest.mark.parametrize("make", [nothing_to_learn, nothing_left])
def test_nothing_helps_where_nothing_can(make: Callable[[int], Case]):
    assert judge(make_context(make(0), seed=0, epochs=4)).verdict == "nothing helps"


def short() -> TrialContext:
    """12 images, and trainings of three steps."""
    few = replace(unknown_words(0), train_boxes=(6,) * 6, val_boxes=(6,) * 6)
    return make_context(few, seed=0, epochs=3, num_resamples=10)


def test_a_training_follows_from_its_seed_alone():
    context = short()
    first, other = (train_variant("text", context, seed=seed) for seed in (0, 1))
    train_variant("random", context, seed=5)
    again = train_variant("text", context, seed=0)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)
    assert not torch.equal(first.head.gate, other.head.gate)
    assert first.head.gate.any()
    assert (
        evaluate_variant(first, context).mean_ap50.value == evaluate_variant(again, context).mean_ap50.value
    )


def test_the_class_head_alone_keeps_its_gates_shut():
    model = train_variant("class_head", short(), seed=0)
    assert not model.head.gate.any()
    assert model.class_head_delta.weight.any()


def test_every_training_has_the_same_batches_and_the_swap_is_of_the_same_weights():
    asked = []
    context = short()

    def train(seed: int, epoch: int):
        asked.append((seed, epoch))
        return context.train(seed, epoch)

    scores = run_trials(replace(context, train=train), ["random", "mlp"], seeds=(3, 4))
    assert asked == [(seed, epoch) for seed in (3, 4) for _ in range(3) for epoch in range(3)]
    assert list(scores) == ["frozen", "text", "random", "mlp", "swapped"]
    assert len(scores["swapped"]) == 2
    mine, swapped = scores["text"][0], scores["swapped"][0]
    assert mine.ap50[0].value != swapped.ap50[0].value
    assert mine.ap50[2].value == swapped.ap50[2].value
    assert scores["frozen"][0].mean_ap50.value < 0.4


def ablation_of(context: TrialContext, variants: tuple[Variant, ...] = ("mlp",)) -> Ablation:
    scores = run_trials(context, variants, seeds=(0, 1))
    return build_ablation(context, scores, seeds=(0, 1), minutes=1.234)


def test_the_result_names_what_was_tried_and_its_scores(tmp_path: Path):
    ablation = ablation_of(short())
    path = tmp_path / "new" / "ablation.json"
    write_record(ablation, path)
    assert from_json(Ablation, json.loads(path.read_text(encoding="utf-8"))) == ablation
    assert [model.name for model in ablation.models] == ["frozen", "text", "mlp", "swapped"]
    assert (ablation.pair.first, ablation.pair.second) == ("class 0", "class 1")
    assert ablation.not_trained[0] == "random vectors"
    assert len(ablation.not_trained) == 5
    assert ablation.summary[0].startswith(f"Verdict: {ablation.verdict} (2 seeds of 3 epochs; 12 images,")
    _, text, mlp, _ = ablation.models
    assert text.ap50.value == pytest.approx(sum(text.ap50_of_seeds) / 2)
    assert mlp.text_delta.value == pytest.approx(text.ap50.value - mlp.ap50.value)
    assert text.text_delta.value == 0
    assert mlp.ap50.value == pytest.approx(sum(row.ap50.value for row in mlp.classes) / 6)
    lines = format_models(ablation).splitlines()
    (row,) = (line for line in lines if "an MLP without text" in line)
    assert f"{mlp.ap50.value:.3f}" in row
    assert re.search(r"AP50 +frozen +text +mlp +swapped", format_classes(ablation))


def test_a_split_without_boxes_has_dashes_and_the_last_verdict(tmp_path: Path):
    context = short()
    no_boxes = {**context.ground_truth.to_coco(), "annotations": []}
    bare = ablation_of(replace(context, ground_truth=GroundTruthTable.from_coco(no_boxes)))
    assert bare.verdict == "nothing helps"
    write_record(bare, tmp_path / "bare.json")
    assert "\N{EN DASH}" in format_models(bare)
