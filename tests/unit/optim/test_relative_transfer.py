"""LAMB and LARS: with the rate's scale for their kind a step changes a matrix's outputs by the same share at every width."""

import pytest
import torch

from bessemer.core import registry
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_scales


def moved(name, width, rate):
    draw = torch.Generator().manual_seed(width)
    weight = torch.nn.Parameter(torch.randn(width, width, generator=draw) / width**0.5)
    inputs, slopes = torch.randn(width, generator=draw), torch.randn(width, generator=draw)
    before = weight.detach() @ inputs
    weight.grad = torch.outer(slopes, inputs)
    registry.choose("optim", {"name": name, "lr": rate, "weight_decay": 0.0})([{"params": [weight]}]).step()
    return float((weight.detach() @ inputs - before).norm() / before.norm())


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_step_changes_outputs_by_the_same_share_at_every_width(name):
    narrow, wide = (Decoder(16, 0, depth=4, width=width, heads=2, ffn=64, length=8) for width in (256, 1024))
    matrix = "blocks.0.mlp.gate_up.weight"
    scales = [parameter_scales(model, "relative")[matrix] for model in (narrow, wide)]
    scaled = [moved(name, width, 0.01 * scale) for width, scale in zip((256, 1024), scales, strict=True)]
    assert scaled[1] == pytest.approx(scaled[0], rel=0.15)
    plain = [moved(name, width, 0.01) for width in (256, 1024)]
    assert plain[1] > 1.7 * plain[0]
    assert registry.find("optim", name).transfer == "relative"
