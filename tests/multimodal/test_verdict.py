"""The rule that turns intervals into a verdict."""

import pytest

from deim.metrics.bootstrap import Difference, Interval
from multimodal.ablation.variants import CONTROLS
from multimodal.ablation.verdict import EarlyStoppingState, decide

NAMES = ("crack", "scratch")


def gain(value: float, reach: float = 0.02) -> Difference:
    ends = Interval(low=value - reach, high=value + reach)
    return Difference(value=value, interval=ends, num_images=30, num_boxes=60)


def gains(
    text: Difference | None,
    *,
    controls: dict[str, Difference | None] | None = None,
    over_controls: dict[str, Difference | None] | None = None,
    over_swapped: Difference | None = None,
    tried: tuple[str, ...] = CONTROLS,
) -> EarlyStoppingState:
    """Controls that gain nothing and lie far below the text, but for those that are named."""
    return EarlyStoppingState(
        over_frozen={"text": text, **dict.fromkeys(tried, gain(0.0)), **(controls or {})},
        over_controls={**dict.fromkeys(tried, gain(0.1)), **(over_controls or {})},
        over_swapped=over_swapped,
    )


def test_text_helps_only_if_everything_speaks_for_it():
    full = gains(gain(0.1), over_swapped=gain(0.3))
    assert decide(full, pair_names=NAMES).verdict == "text helps"
    for control in CONTROLS:
        for found in (gain(0.01), gain(-0.1), None):
            spoiled = gains(gain(0.1), over_controls={control: found}, over_swapped=gain(0.3))
            assert decide(spoiled, pair_names=NAMES).verdict == "training helps, text does not"
    for found in (gain(0.01), gain(-0.3), None):
        spoiled = gains(gain(0.1), over_swapped=found)
        assert decide(spoiled, pair_names=NAMES).verdict == "training helps, text does not"


@pytest.mark.parametrize("control", CONTROLS)
def test_a_gain_of_any_control_is_one_of_training(control):
    found = decide(gains(gain(0.0), controls={control: gain(0.05)}), pair_names=NAMES)
    assert found.verdict == "training helps, text does not"


def test_without_a_gain_nothing_helps():
    for text in (gain(0.0), gain(-0.1), gain(0.02, reach=0.02), None):
        assert decide(gains(text, over_swapped=gain(0.3)), pair_names=NAMES).verdict == "nothing helps"


def test_an_interval_that_touches_0_is_not_above_it():
    assert decide(gains(gain(0.02, reach=0.02)), pair_names=NAMES).verdict == "nothing helps"
    assert decide(gains(gain(0.021, reach=0.02)), pair_names=NAMES).verdict != "nothing helps"


@pytest.mark.parametrize("left_out", CONTROLS)
def test_without_every_control_the_text_is_never_said_to_help(left_out):
    tried = tuple(name for name in CONTROLS if name != left_out)
    found = decide(gains(gain(0.1), over_swapped=gain(0.3), tried=tried), pair_names=NAMES)
    assert found.verdict == "training helps, text does not"
    assert any(line.startswith("Not tried: ") for line in found.reasons)


def test_reasons_name_what_speaks_for_and_against():
    found = decide(
        gains(
            gain(0.1),
            controls={"mlp": gain(0.09)},
            over_controls={"mlp": gain(0.01), "class_head": None},
            over_swapped=gain(0.3),
            tried=("random", "mlp", "class_head"),
        ),
        pair_names=NAMES,
    )
    assert found.reasons == (
        "With the real text, mAP50 is above that of the frozen detector (+0.100, +0.080 to +0.120).",
        "With an MLP without text (+0.090, +0.070 to +0.110), it lies above the frozen detector too.",
        "The real text beats random vectors (+0.100, +0.080 to +0.120).",
        "The real text does not beat an MLP without text (+0.010, -0.010 to +0.030), the class head alone "
        "(no ground truth).",
        "Not tried: shuffled descriptions, one-hot vectors, free prototypes. Without them nobody can say "
        "that the text helps.",
        "With the texts of crack and scratch exchanged at test time, the mean AP50 of the two falls by 0.300 "
        "(+0.280 to +0.320): the head reads its text.",
        "In brackets: differences, of mAP50 if not said otherwise, with paired 95 % intervals.",
    )
    bad = decide(gains(gain(-0.1), over_swapped=gain(0.01)), pair_names=NAMES).reasons
    assert (
        bad[0] == "With the real text, mAP50 is below that of the frozen detector (-0.100, -0.120 to -0.080)."
    )
    assert bad[1] == "No control lies above the frozen detector."
    assert bad[-2].endswith("does not fall for certain (-0.010 to +0.030): the head hardly reads their text.")
    none = decide(gains(None), pair_names=NAMES).reasons
    assert none[0].endswith("not to be compared with that of the frozen detector, for want of ground truth.")
    assert none[-2].endswith("does not fall for certain (no ground truth): the head hardly reads their text.")
