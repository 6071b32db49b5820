"""Loss and gradients equal those of the official code (commit 0fff8d4); see `../shared/parity/README.md`."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deim.loss.criterion import Criterion, LossOptions
from deim.structures import ModelOutput, Target
from tests.model.parity_folder import (
    build_with_recipe_weights,
    draw_images,
    draw_targets,
    load_arrays,
    needs_parity_folder,
    single_thread,
)

MATCHER_CHANGE_EPOCH = {"s": 100, "m": 80}
"""Of the official recipes"""
RELATIVE = 1e-3

pytestmark = needs_parity_folder


class Case(NamedTuple):
    side: int
    counts: tuple[int, ...]
    epoch: int


CASES = {
    "s_train_256_empty": Case(256, (0, 0), 0),
    "s_train_256_epoch0": Case(256, (2, 1), 0),
    "s_train_256_many": Case(256, (12, 5), 0),
    "m_train_320_epoch0": Case(320, (2, 0, 2), 0),
    "m_train_320_epoch95": Case(320, (2, 0, 2), 95),
}


LATE = "m_train_320_epoch95"
NAMES = [pytest.param(name, id=name, marks=[pytest.mark.slow] if name == LATE else []) for name in CASES]


class Trained(NamedTuple):
    name: str
    targets: list[Target]
    outputs: ModelOutput
    terms: dict[str, Tensor]
    grad_norms: dict[str, float]
    expected: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module", autouse=True)
def _single_thread():
    # Bilinear sampling has a kink at pixel borders, and one sampling point of the M fixture lies on one: with
    # two threads, rounding puts it on the other side and moves the gradient norm of one bias by 1.07e-3.
    with single_thread():
        yield


@pytest.fixture(scope="module")
def run(_single_thread):
    """Runs a fixture's training step, once each."""
    done: dict[str, Trained] = {}

    def run_once(name: str) -> Trained:
        if name not in done:
            done[name] = _train_step(name)
        return done[name]

    return run_once


def _train_step(name: str) -> Trained:
    case, variant = CASES[name], name[0]
    model = build_with_recipe_weights(variant).train()
    criterion = Criterion(
        LossOptions(union_ties="reference"), matcher_change_epoch=MATCHER_CHANGE_EPOCH[variant]
    )
    targets = draw_targets(case.counts)
    torch.manual_seed(123)
    outputs = model(draw_images(len(case.counts), case.side), targets)
    terms = criterion(outputs, targets, epoch=case.epoch)
    torch.stack(list(terms.values())).sum().backward()
    grad_norms = {key: p.grad.norm().item() for key, p in model.named_parameters() if p.grad is not None}
    detached = {key: value.detach() for key, value in terms.items()}
    return Trained(name, targets, outputs, detached, grad_norms, load_arrays(name))


def expected_terms(trained: Trained) -> dict[str, float]:
    prefix = "loss/"
    actual = trained.expected.items()
    return {key.removeprefix(prefix): value.item() for key, value in actual if key.startswith(prefix)}


@pytest.mark.parametrize("name", NAMES)
def test_every_term_equals_the_official_one(run, name):
    trained = run(name)
    expected = expected_terms(trained)
    ours = {key: trained.terms[key].item() for key in expected}
    assert ours == pytest.approx(expected, rel=RELATIVE)
    total = sum(value.item() for value in trained.terms.values())
    assert total == pytest.approx(trained.expected["loss_total"].item(), rel=RELATIVE)


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_norm_equals_the_official_one(run, name):
    trained = run(name)
    grads = trained.expected.items()
    expected = {key.removeprefix("grad/"): v.item() for key, v in grads if key.startswith("grad/")}
    large = {key: value for key, value in expected.items() if value > RELATIVE}
    assert len(large) > 200
    assert {key: trained.grad_norms[key] for key in large} == pytest.approx(large, rel=RELATIVE)
    small = {key: trained.grad_norms[key] for key in expected if key not in large}
    assert all(value < 2 * RELATIVE for value in small.values())


@pytest.mark.parametrize("name", [name for name in NAMES if "empty" not in str(name.id)])
def test_denoising_groups_and_terms_are_the_official_ones(run, name):
    trained = run(name)
    meta = trained.outputs["dn_meta"]
    assert [meta.num_queries, 300] == trained.expected["dn_num_split"].tolist()
    assert meta.num_groups == trained.expected["dn_num_group"].item()
    # 47 terms for four decoder layers.
    assert set(trained.terms) == set(expected_terms(trained))
    assert len(trained.terms) == 47


def test_terms_of_a_batch_without_boxes_have_the_usual_names_and_are_zero_for_denoising(run):
    empty, usual = run("s_train_256_empty"), run("s_train_256_epoch0")
    assert set(empty.terms) == set(usual.terms)
    extra = set(empty.terms) - set(expected_terms(empty))
    assert extra == {key for key in empty.terms if "_dn_" in key}
    assert {key: empty.terms[key].item() for key in extra} == dict.fromkeys(extra, 0.0)


def test_stable_vote_stays_close_to_the_official_one_with_many_boxes(run):
    """The difference, 5.2 % at most when measured, comes from ties of the vote, which `mal` does not use."""
    trained = run("s_train_256_many")
    with torch.no_grad():
        terms = Criterion(LossOptions(), matcher_change_epoch=100)(trained.outputs, trained.targets)
    expected = expected_terms(trained)
    mal = {key: value for key, value in expected.items() if "mal" in key}
    assert {key: terms[key].item() for key in mal} == pytest.approx(mal, rel=RELATIVE)
    assert {key: terms[key].item() for key in expected} == pytest.approx(expected, rel=6e-2)
