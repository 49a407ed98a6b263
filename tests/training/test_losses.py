from __future__ import annotations

import math

import pytest
import torch

from vitprune.methods.asvit.training import straight_through
from vitprune.methods.evit.training import ramped
from vitprune.training import losses
from vitprune.training.policy import EPS, policy_softmax


def test_cross_entropy_smooths_labels_but_not_mixed_targets():
    logits = torch.tensor([[2.0, 0.0]])
    log = logits.log_softmax(-1)[0]
    assert losses.cross_entropy(logits, torch.tensor([0]), 0.2) == pytest.approx(float(-(0.9 * log[0] + 0.1 * log[1])))
    assert losses.cross_entropy(logits, torch.tensor([[0.3, 0.7]]), 0.2) == pytest.approx(float(-(0.3 * log[0] + 0.7 * log[1])))


def test_distillation_is_the_divergence_from_the_teacher():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    assert losses.distillation(student, teacher) == pytest.approx(
        0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5), rel=1e-6
    )


def test_token_distillation_counts_kept_patches_only():
    student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    assert losses.token_distillation(student, teacher, torch.tensor([[1.0, 0.0]])) == pytest.approx(5.0)


def test_budget_and_ratio_by_hand():
    assert losses.budget(torch.tensor([4.0, 8.0]), 5.0, 10.0) == pytest.approx(0.1)
    kept = [torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), torch.zeros(2, 4)]
    assert losses.keep_ratio(kept, [0.5, 0.25]) == pytest.approx((0.0625 / 2 + 0.0625) / 2)


def test_official_depth_target_is_the_published_one_and_no_distribution():
    target = losses.depth_target(12, 8, 1.0, official=True)
    assert target[6:12].tolist() == pytest.approx([0.176, 0.789, 1.301, 0.789, 0.176, 0.0145], abs=1e-3)
    assert float(target.sum()) == pytest.approx(3.26, abs=0.01)
    assert float(losses.depth_target(12, 8, 1.0, official=False).sum()) == pytest.approx(1.0)


def test_depth_prior_is_zero_at_the_target_and_positive_elsewhere():
    target = losses.depth_target(4, 2, 1.0, official=False)
    assert float(losses.depth_prior(target * 7, target, official=False)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.depth_prior(target.flip(0), target, official=False)) > 0.1
    share = torch.tensor([0.25, 0.25, 0.25, 0.25])
    by_hand = float((target * (target.log() - share.log())).sum()) / 4
    assert float(losses.depth_prior(share, target, official=True)) == pytest.approx(by_hand, rel=1e-5)


def test_straight_through_is_hard_forwards_and_soft_backwards():
    score, theta = torch.tensor([[0.10, 0.20, 0.30]]), torch.tensor(0.2, requires_grad=True)
    mask = straight_through(score, theta, 0.05)
    assert mask.tolist() == [[0.0, 0.0, 1.0]]  # equal is dropped
    mask.sum().backward()
    soft = ((score - 0.2) / 0.05).sigmoid()
    assert float(theta.grad) == pytest.approx(float(-(soft * (1 - soft)).sum() / 0.05), rel=1e-5)


def test_policy_softmax_by_its_definition():
    logits = torch.tensor([[[[1.0, 2.0, 3.0]] * 3]])
    found = policy_softmax(logits, torch.tensor([[1.0, 1.0, 0.0]]))[0, 0]
    e = [math.exp(v - 3) for v in (1, 2, 3)]
    seen = e[0] + e[1]
    assert found[0].tolist() == pytest.approx(
        [(e[0] + EPS / 3) / (seen + EPS), (e[1] + EPS / 3) / (seen + EPS), EPS / 3 / (seen + EPS)]
    )
    assert float(found[2, 2]) == pytest.approx((e[2] + EPS / 3) / (seen + e[2] + EPS))  # a masked row sees itself
    torch.testing.assert_close(policy_softmax(logits, None), logits.softmax(-1))


def test_keep_rate_falls_along_a_cosine():
    assert [ramped(0.5, epoch, 2, 6) for epoch in (0, 2, 4, 6, 9)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
