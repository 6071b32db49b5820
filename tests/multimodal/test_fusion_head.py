"""The fusion head: its formulas, its exact start, and that only text moves the logits."""

import math

import pytest
import torch
from torch.nn import functional as F

from deim.engine.optimizer import RecipeOptions
from multimodal.fusion_head import FusionHead, parameter_groups
from tests.multimodal.fused import class_text, fuse, open_gates, random_text, small_head


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_number_of_parameters_at_full_size():
    # Counted by hand: 788,480 projection, 262,912 adapter, 2,048 background, 18 + 1 + 6 + 6 scales and gates.
    head = FusionHead(draw(6, 3, 512), draw(4, 512), query_dim=256)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_053_471


def test_result_follows_the_formulas():
    """Written out once more, query by query and class by class."""
    head = open_gates(small_head()).double()
    logits, queries = draw(1, 2, 3).double(), draw(1, 2, 32, seed=1).double()
    with torch.no_grad():
        # The head computes in float32 alone; here its steps are repeated in float64.
        text = head.text
        center = sum(text[c, k] for c in range(3) for k in range(3)) / 9
        expected = torch.empty(2, 3, dtype=torch.float64)
        scale = min(math.exp(head.log_scale), 100)
        for i, query in enumerate(queries[0]):
            v = head.projection(query)
            v = v / v.norm()
            against = [scale * v @ ((b - center) / (b - center).norm()) for b in head.background]
            z_bg = math.log(sum(math.exp(value) for value in against) / 4)
            for c in range(3):
                shares = head.prompt_logits[c].exp() / head.prompt_logits[c].exp().sum()
                u = sum(share * vector for share, vector in zip(shares, text[c], strict=True)) - center
                u = u / u.norm()
                t = u + head.adapter(u)
                f = scale * v @ (t / t.norm())
                expected[i, c] = logits[0, i, c] + math.tanh(head.gate[c]) * (f - z_bg + head.bias[c])
        result = fuse(head.float(), logits, queries)
    assert result.shape == (1, 2, 3)
    assert torch.allclose(result[0].double(), expected, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_start_the_class_columns_are_the_logits_themselves(dtype):
    logits, queries = (5 * draw(2, 20, 3)).to(dtype), draw(2, 20, 32, seed=1).to(dtype)
    logits[0, 0] = -torch.inf
    logits[1, 2] = torch.tensor([0.0, -0.0, 1e-30]).to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            fused = fuse(small_head(), logits, queries)
        assert fused.dtype == torch.float32
        assert torch.equal(fused, logits.float())


def test_mixed_precision_does_not_reach_the_head():
    head, logits, queries = open_gates(small_head()), draw(2, 20, 3), draw(2, 20, 32, seed=1)
    plain = fuse(head, logits, queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fuse(head, logits, queries), plain)
        assert torch.equal(class_text(head), class_text(head.float()))
        assert head.cosines(queries).dtype == torch.float32


def test_infinite_logits_and_extreme_queries_give_no_nan():
    head = open_gates(small_head())
    logits = draw(1, 4, 3)
    logits[0, 0] = -torch.inf
    queries = torch.stack([draw(32), torch.zeros(32), torch.full((32,), 7.0), 65504 * draw(32).sign()])[None]
    fused = fuse(head, logits, queries)
    assert not fused.isnan().any()
    assert (fused[0, 0] == -torch.inf).all()
    assert fused[0, 1:].isfinite().all()
    fused[0, 1:].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_equal_texts_tell_no_classes_apart():
    """Features move the logits through text alone: with one text for all, all classes move alike."""
    text = random_text(1, 3).expand(3, 3, -1)
    head = small_head(text)
    with torch.no_grad():
        for layers in (head.projection, head.adapter):
            for parameter in layers.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        head.gate.fill_(0.7)
    queries = draw(2, 20, 32)
    logits = head.compare(queries).class_logits
    assert logits.std() > 0.1
    assert torch.allclose(logits, logits[..., :1].expand_as(logits), atol=1e-3)
    shift = fuse(head, torch.zeros(2, 20, 3), queries)
    assert torch.allclose(shift, shift[..., :1].expand_as(shift), atol=1e-3)


def test_what_no_text_says_tells_no_classes_apart():
    """All that the logits learn of a query are its products with the texts."""
    head = open_gates(small_head())
    queries = draw(1, 20, 32)
    with torch.no_grad():
        before = head.compare(queries).class_logits
        # A direction at right angles to all texts is added to all queries: they may come to lie nearer to or
        # farther from the texts, but from all of them alike.
        texts = torch.cat([class_text(head), F.normalize(head.background - head.center, dim=-1)])
        other = torch.linalg.svd(texts).Vh[-1]
        head.projection[-1].bias += 3 * other
        after = head.compare(queries).class_logits
    assert not torch.allclose(after, before, rtol=0.1)
    assert torch.allclose(F.normalize(after, dim=-1), F.normalize(before, dim=-1), atol=1e-4)


def test_text_directions_have_length_1_and_the_adapter_starts_as_nothing():
    head = small_head()
    scores = head.compare(draw(1, 5, 32))
    assert torch.allclose(scores.class_text.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert torch.allclose(scores.class_text, scores.plain_text, atol=1e-6)
    trained = open_gates(head).compare(draw(1, 5, 32))
    assert not torch.allclose(trained.class_text, trained.plain_text, atol=1e-2)


def test_what_all_classes_share_is_taken_away():
    text, common = random_text(), 50 * draw(48, seed=5)
    unit = F.normalize(text, dim=-1)
    assert F.cosine_similarity(unit[0, 0], unit[1, 0], dim=0) > 0.5
    plain = small_head(text + common).plain_text()
    assert (plain @ plain.T - torch.eye(3)).max() < 0.5


def test_a_single_class_keeps_its_own_text():
    head = small_head(random_text(1, 3))
    mean = F.normalize(random_text(1, 3), dim=-1).mean(dim=1)
    assert torch.allclose(class_text(head), F.normalize(mean, dim=-1), atol=1e-6)


def test_one_prompt_a_class_has_no_weights_to_learn():
    head = small_head(random_text(3, 1))
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == ["prompt_logits"]
    assert fuse(head, draw(1, 2, 3), draw(1, 2, 32)).isfinite().all()


@pytest.mark.parametrize("log_scale", [4.7, 20.0, 1000.0])
def test_scale_is_at_most_100_and_can_come_back(log_scale):
    head = small_head()
    assert head.scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        head.log_scale.fill_(log_scale)
    assert head.scale().item() == 100.0
    assert head.compare(draw(1, 20, 32)).class_logits.abs().max() <= 100.001
    head.scale().backward()
    assert head.log_scale.grad.item() == pytest.approx(100.0)


def test_scale_has_the_gradient_of_the_exponential_below_the_limit():
    head = small_head()
    head.scale().backward()
    assert head.log_scale.grad.item() == pytest.approx(1 / 0.07)


def test_cosines_times_the_scale_are_the_evidence_of_the_classes():
    head, features = open_gates(small_head()), draw(2, 4, 6, 32)
    cosines = head.cosines(features)
    assert cosines.shape == (2, 4, 6, 3)
    assert cosines.abs().max() <= 1 + 1e-6
    scores = head.compare(features.flatten(1, 2))
    assert torch.allclose(head.scale() * cosines.flatten(1, 2), scores.class_logits, atol=1e-4)


def test_text_travels_with_the_weights():
    trained = open_gates(small_head())
    state = trained.state_dict()
    assert {"text", "center"} <= set(state)
    other = small_head(random_text(seed=9), seed=9)
    other.load_state_dict(state)
    assert torch.equal(
        fuse(other, draw(1, 5, 3), draw(1, 5, 32)), fuse(trained, draw(1, 5, 3), draw(1, 5, 32))
    )


def test_every_parameter_is_in_one_group_with_its_rate():
    head = small_head()
    class_head = torch.nn.Linear(32, 3)
    groups = parameter_groups(head, class_head, RecipeOptions(lr=5e-5, weight_decay=1e-4))
    rates = {group["name"]: (group["lr"], group["flat_lr"], group["weight_decay"]) for group in groups}
    expected = {
        "text_layers": (5e-4, 5e-4, 1e-4),
        "text_layers_undecayed": (5e-4, 5e-4, 0.0),
        "background": (5e-4, 5e-4, 0.0),
        "scales": (1e-3, 1e-3, 0.0),
        "gate": (1e-2, 1e-2, 0.0),
        "class_head": (5e-5, 5e-5, 0.0),
    }
    assert {name: pytest.approx(rate) for name, rate in expected.items()} == rates
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in [*head.parameters(), *class_head.parameters()])
    by_name = {group["name"]: {id(p) for p in group["params"]} for group in groups}
    assert by_name["gate"] == {id(head.gate)}
    assert by_name["scales"] == {id(p) for p in (head.log_scale, head.bias, head.prompt_logits)}
    linear = [head.projection[1], head.projection[3], head.adapter[0], head.adapter[2]]
    assert by_name["text_layers"] == {id(layer.weight) for layer in linear}
    assert "class_head" not in {group["name"] for group in parameter_groups(head, None, RecipeOptions())}
    torch.optim.AdamW(groups)
