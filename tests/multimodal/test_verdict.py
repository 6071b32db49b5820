"""The rule that turns intervals into a verdict."""

from collections.abc import Sequence

import pytest

from multimodal.ablation.result import DESCRIPTIONS, Delta, ModelResult, Score, Verdict, decide
from multimodal.ablation.trials import SwappedPair
from multimodal.ablation.variants import ABLATED_VARIANTS

PAIR = SwappedPair(first="crack", second="scratch", origin="named by hand")
UNKNOWN = Score(value=None, interval=None)


def delta(value: float, reach: float = 0.02) -> Delta:
    return Delta(value=value, low=value - reach, high=value + reach)


def model(name: str, *, frozen_delta: Delta | None, text_delta: Delta | None) -> ModelResult:
    return ModelResult(
        name=name,
        description=DESCRIPTIONS[name],
        ap=UNKNOWN,
        ap50=UNKNOWN,
        ap50_of_seeds=(),
        frozen_delta=frozen_delta,
        text_delta=text_delta,
        classes=(),
    )


def judge(
    text: Delta | None,
    *,
    variants: dict[str, Delta | None] | None = None,
    over_ablated: dict[str, Delta | None] | None = None,
    over_swapped: Delta | None = None,
    trained: Sequence[str] = ABLATED_VARIANTS,
) -> tuple[Verdict, list[str]]:
    """Judge variants that gain nothing and lie far below the text, but for those that are named."""
    over_frozen = dict.fromkeys(trained, delta(0.0)) | (variants or {})
    over_ablated = dict.fromkeys(trained, delta(0.1)) | (over_ablated or {})
    models = [
        model("frozen", frozen_delta=delta(0.0), text_delta=text),
        model("text", frozen_delta=text, text_delta=delta(0.0)),
        *(model(name, frozen_delta=over_frozen[name], text_delta=over_ablated[name]) for name in trained),
        model("swapped", frozen_delta=delta(0.5), text_delta=over_swapped),
    ]
    return decide(models, over_swapped, PAIR)


def test_text_helps_only_if_everything_speaks_for_it():
    full = judge(delta(0.1), over_swapped=delta(0.3))
    assert full[0] == "text helps"
    for variant in ABLATED_VARIANTS:
        for actual in (delta(0.01), delta(-0.1), None):
            spoiled = judge(delta(0.1), over_ablated={variant: actual}, over_swapped=delta(0.3))
            assert spoiled[0] == "training helps, text does not"
    for actual in (delta(0.01), delta(-0.3), None):
        spoiled = judge(delta(0.1), over_swapped=actual)
        assert spoiled[0] == "training helps, text does not"


@pytest.mark.parametrize("variant", ABLATED_VARIANTS)
def test_a_gain_of_any_variant_is_one_of_training(variant):
    actual = judge(delta(0.0), variants={variant: delta(0.05)})
    assert actual[0] == "training helps, text does not"


def test_without_a_gain_nothing_helps():
    for text in (delta(0.0), delta(-0.1), delta(0.02, reach=0.02), None):
        assert judge(text, over_swapped=delta(0.3))[0] == "nothing helps"


def test_an_interval_that_touches_0_is_not_above_it():
    assert judge(delta(0.02, reach=0.02))[0] == "nothing helps"
    assert judge(delta(0.021, reach=0.02))[0] != "nothing helps"


@pytest.mark.parametrize("missing", ABLATED_VARIANTS)
def test_without_every_variant_the_text_is_never_said_to_help(missing):
    trained = tuple(name for name in ABLATED_VARIANTS if name != missing)
    actual = judge(delta(0.1), over_swapped=delta(0.3), trained=trained)
    assert actual[0] == "training helps, text does not"
    assert any(line.startswith("Not trained: ") for line in actual[1])


def test_reasons_name_what_speaks_for_and_against():
    _, reasons = judge(
        delta(0.1),
        variants={"mlp": delta(0.09)},
        over_ablated={"mlp": delta(0.01), "class_head": None},
        over_swapped=delta(0.3),
        trained=("random", "mlp", "class_head"),
    )
    assert reasons == [
        "With the real text, mAP50 is above the frozen detector (+0.100, +0.080 to +0.120).",
        "Also above the frozen detector: an MLP without text (+0.090, +0.070 to +0.110).",
        "The real text beats: random vectors (+0.100, +0.080 to +0.120).",
        "The real text does not beat: an MLP without text (+0.010, -0.010 to +0.030), the class head alone "
        "(no ground truth).",
        "Not trained: shuffled descriptions, one-hot vectors, free prototypes. Without them the verdict "
        "cannot be that the text helps.",
        "With the texts of crack and scratch exchanged at test time, the mean AP50 of the two falls "
        "(+0.300, +0.280 to +0.320): the head uses its text.",
        "In brackets: differences, of mAP50 unless stated otherwise, with paired 95 % intervals.",
    ]
    bad = judge(delta(-0.1), over_swapped=delta(0.01))[1]
    assert bad[0] == "With the real text, mAP50 is below the frozen detector (-0.100, -0.120 to -0.080)."
    assert not any(line.startswith("Also above") for line in bad)
    assert bad[-2].endswith(
        "does not clearly fall (+0.010, -0.010 to +0.030): the head hardly uses their texts."
    )
    none = judge(None)[1]
    assert none[0].endswith("not comparable with the frozen detector (no ground truth).")
    assert none[-2].endswith("does not clearly fall (no ground truth): the head hardly uses their texts.")
