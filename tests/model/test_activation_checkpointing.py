"""Recomputed activations change memory, not numbers."""

import copy

import pytest
import torch

from deim.model.activation_checkpointing import checkpoint_activations
from tests.model.tiny import Kind, random_images, random_targets, tiny_detector


@pytest.mark.parametrize("kind", ["vit_tiny", "dinov3"])
def test_outputs_gradients_and_statistics_are_the_same(kind: Kind) -> None:
    model = tiny_detector(kind).train()
    recomputed = copy.deepcopy(model)
    checkpoint_activations(recomputed)
    results = []
    for first in (model, recomputed):
        torch.manual_seed(0)
        outputs = first(random_images(2, 64, 96), random_targets((2, 1)))
        (outputs["pred_logits"].square().mean() + outputs["pred_boxes"].sum()).backward()
        gradients = {name: value.grad for name, value in first.named_parameters() if value.grad is not None}
        results.append((outputs["pred_logits"], gradients, first.state_dict()))
    (logits, gradients, state), (logits_again, gradients_again, state_again) = results
    assert torch.equal(logits, logits_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients_again[name], value) for name, value in gradients.items())
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state_again[name], value) for name, value in state.items())


def test_fewer_activations_are_kept() -> None:
    sizes = []
    for is_checkpointed in (False, True):
        model = tiny_detector("vit_tiny").train()
        if is_checkpointed:
            checkpoint_activations(model)
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(random_images(2, 128, 128), random_targets((2, 1)))
        sizes.append(sum(kept.values()))
    assert sizes[1] < 0.8 * sizes[0]
