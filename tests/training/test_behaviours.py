from __future__ import annotations

import pytest
import torch
from training_support import PRUNE, SIDE, recipe

from vitprune import methods
from vitprune.training.behaviour import Teacher
from vitprune.training.reduction import Reduction


def made(method, train=None, **prune):
    one = recipe(method, train, **prune)
    kind = methods.get(method).training or Reduction
    module = kind.load(one, None, pretrained=False, seed=1, weights=None).module
    for block in getattr(module, "blocks", []):  # uneven attention, so that patches differ
        block.attn.qkv.weight.data[:64] *= 8
    torch.manual_seed(0)
    return kind(module, one)


def step(behaviour, seed=0):
    torch.manual_seed(seed)
    images, labels = torch.randn(6, 1, SIDE, SIDE), torch.arange(6) % 3
    teacher = Teacher(torch.randn(6, 3), torch.randn(6, 17, 32)) if behaviour.wants_teacher else None
    terms = behaviour(images, labels, teacher)
    torch.stack(list(terms.values())).sum().backward()
    return {name: value.detach() for name, value in terms.items()}


def test_there_is_a_behaviour_for_every_method():
    assert set(PRUNE) == set(methods.names())
    own = {name for name in methods.names() if methods.get(name).training is not None}
    assert {"asvit", "avit", "dvt", "dynamicvit", "evit"} <= own


@pytest.mark.parametrize("method", sorted(PRUNE))
def test_gradients_reach_embedding_blocks_and_head(method):
    behaviour = made(method)
    terms = step(behaviour)
    assert all(bool(value.isfinite()) for value in terms.values())
    missing = [name for name, p in behaviour.named_parameters() if p.grad is None or not bool(p.grad.abs().sum())]
    # The bias of the keys moves all logits of a row alike, and the last block's patches never reach the class token's logits.
    assert not [name for name in missing if "patch_embed" in name or ".mlp." in name or "head" in name or "qkv.weight" in name]


def test_asvit_thresholds_fall_when_the_budget_is_higher_than_the_cost():
    behaviour = made("asvit", {"budget": 1.0, "temperature": 0.02, "budget_weight": 1e4})
    step(behaviour)
    assert float(behaviour.thresholds.grad) > 0  # gradient descent lowers it, more patches stay
    dearer = made("asvit", {"budget": 0.05, "temperature": 0.02, "budget_weight": 1e4})
    step(dearer)
    assert float(dearer.thresholds.grad) < 0


def test_asvit_masked_training_forward_is_the_pruned_model():
    behaviour = made("asvit", thresholds=[0.055])
    images = torch.randn(4, 1, SIDE, SIDE)
    pruned = behaviour.pruned()
    with torch.no_grad():
        logits, _ = behaviour.logits_and_terms(images, None)
        found = pruned(images)
    counts = (pruned.kept[0] >= 0).sum(1)
    assert 0 < int(counts.min()) < 16
    torch.testing.assert_close(logits, found, atol=1e-4, rtol=1e-4)


def test_asvit_budget_in_giga_macs_is_the_released_code_s():
    one, other = made("asvit"), made("asvit", {"budget_unit": "giga"})
    assert float(step(other)["budget"]) == pytest.approx(float(step(one)["budget"]) * one.dense_macs / 1e9, rel=1e-4)


def test_avit_ponder_is_the_mean_of_depth_and_remainder():
    behaviour = made("avit", {"ponder_weight": 1.0})
    terms = step(behaviour)
    rule = behaviour.oracle[0].steps
    assert float(terms["ponder"]) == pytest.approx(float(rule.ponder.detach().mean()), rel=1e-6)
    assert 1.0 <= float(terms["ponder"]) <= 5.0
    assert not behaviour.oracle[0].steps.params.cls_exit


def test_avit_official_prior_leaves_out_the_first_image_and_counts_halted_tokens():
    official = made("avit", {"prior": "official"})
    step(official)
    rule = official.oracle[0].steps
    assert len(rule.means) == 4
    torch.manual_seed(3)
    images = torch.randn(3, 1, SIDE, SIDE)
    with torch.no_grad():
        official.logits_and_terms(images, None)
        first = rule.means.clone()
        images[0] = 5.0
        official.logits_and_terms(images, None)
    torch.testing.assert_close(rule.means, first)
    corrected = made("avit")
    with torch.no_grad():
        torch.testing.assert_close(corrected.logits_and_terms(images, None)[0], official.logits_and_terms(images, None)[0])


def test_dynamicvit_predictor_with_everything_kept_is_the_exported_score():
    from vitprune.methods.dynamicvit import rule as dynamicvit
    from vitprune.training.behaviour import _plain

    behaviour = made("dynamicvit")
    patches = torch.randn(2, 16, 32)
    with torch.no_grad():
        trained = behaviour.score_predictor[0](patches, torch.ones(2, 16))[..., 0]
    torch.testing.assert_close(trained, dynamicvit.score(patches, _plain(behaviour.score_predictor[0])))


def test_dvt_starts_from_the_dense_model():
    from vitprune.vit import loading

    one = recipe("dvt")
    dense = loading.load(one.model, pretrained=False, seed=1).module
    behaviour = made("dvt")
    images = torch.randn(2, 1, SIDE, SIDE)
    last = behaviour.model.members[-1]
    torch.testing.assert_close(last.patch_embed(images), dense.patch_embed(images))
    torch.testing.assert_close(last.blocks[0].attn.qkv.weight, dense.blocks[0].attn.qkv.weight)
    assert not last.relation_reuse_conv[-1].weight.detach().any()
    terms = step(behaviour)
    assert set(terms) == {"ce_exit1", "ce_exit2", "ce_exit3"}


def test_evit_ramp_changes_the_sites():
    behaviour = made("evit", {"ramp": [0, 1]})
    behaviour.start_epoch(0)
    assert [site.limit for site in behaviour.oracle[0].sites] == [16, 16]
    behaviour.start_epoch(1)
    assert behaviour.oracle[0].sites[0].limit == 12
