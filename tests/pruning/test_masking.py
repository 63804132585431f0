"""Pruned weights and their moments are exactly zero after every step."""

import pytest
import torch

from lth_scale.distributed.ddp import replicated
from lth_scale.pruning import masking

NO_OPTIMIZER = torch.optim.SGD([torch.zeros(1)])
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, momentum=0.9),
    "sgd_nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=True
    ),
}


def masked_layer(seed: int = 0):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(12, 9)
    masks = {"w": (torch.rand(9, 12) > 0.7).view(-1)}
    masking.apply(pieces(layer), masks)
    return layer, masks


def pieces(layer, optimizer=NO_OPTIMIZER):
    return {"w": replicated(layer.weight, optimizer)}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.01])
def test_thirty_steps_leave_weights_and_moments_at_exact_zero(name, clip):
    layer, masks = masked_layer()
    optimizer = OPTIMIZERS[name](layer.parameters())
    for _ in range(30):
        layer(torch.randn(5, 12)).pow(2).sum().backward()
        masking.mask_gradients(pieces(layer), masks)
        if clip:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        piece = pieces(layer, optimizer)
        assert masking.is_held(piece, masks)
        moments = piece["w"].moments().values()
        assert moments and all(not moment[~masks["w"]].any() for moment in moments)
        assert layer.weight.view(-1)[masks["w"]].all()


def test_the_clipped_norm_is_that_of_the_masked_gradient():
    layer, masks = masked_layer()
    layer(torch.randn(5, 12)).sum().backward()
    expected = torch.cat([layer.weight.grad.flatten() * masks["w"], layer.bias.grad]).norm()
    masking.mask_gradients(pieces(layer), masks)
    assert torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0) == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_the_trajectory_is_that_of_a_layer_which_multiplies_by_its_mask():
    layer, masks = masked_layer()
    twin = torch.nn.Linear(12, 9)
    twin.load_state_dict(layer.state_dict())
    ours, theirs = (
        torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1) for m in (layer, twin)
    )
    for _ in range(20):
        x = torch.randn(5, 12)
        layer(x).pow(2).sum().backward()
        masking.mask_gradients(pieces(layer), masks)
        torch.nn.functional.linear(x, twin.weight * masks["w"].view(9, 12), twin.bias).pow(
            2
        ).sum().backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(layer.weight, twin.weight, atol=1e-6)


def test_a_pruned_weight_is_positive_zero():
    layer = torch.nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[-3.0, -0.0, 2.0]])
    masking.apply(pieces(layer), {"w": torch.tensor([False, False, True])})
    assert layer.weight.tolist() == [[0.0, 0.0, 2.0]] and not torch.signbit(layer.weight).any()


def test_a_nonzero_pruned_weight_is_detected():
    layer, masks = masked_layer()
    with torch.no_grad():
        layer.weight.view(-1)[~masks["w"]] += 1e-30
    assert not masking.is_held(pieces(layer), masks)


def test_a_nonzero_moment_of_a_pruned_weight_is_detected():
    layer, masks = masked_layer()
    optimizer = OPTIMIZERS["adamw"](layer.parameters())
    layer(torch.randn(5, 12)).sum().backward()
    optimizer.step()  # nobody masked the gradient
    masking.apply(pieces(layer), masks)
    assert not masking.is_held(pieces(layer, optimizer), masks)


def test_a_missing_gradient_stays_none():
    layer, masks = masked_layer()
    masking.mask_gradients(pieces(layer), masks)
    assert layer.weight.grad is None
