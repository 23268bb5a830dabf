"""The network that a study's arms share: a backbone from scratch stands beside a pretrained one."""

from __future__ import annotations

import pytest

from colorgan.errors import UsageError
from colorgan.study.arms import network_of_recipe, shared_network


def test_scratch_has_the_backbone_of_the_generators() -> None:
    backbone = network_of_recipe({"network.encoder": "alexnet", "network.image_size": 48})
    assert backbone["encoder"] == "alexnet" and backbone["image_size"] == 48
    assert shared_network({"a": backbone, "b": backbone}) == backbone
    # Recipes of the U-Net are those of older studies.
    assert "encoder" not in network_of_recipe({})


def test_generators_of_two_backbones_are_not_compared_with_one_scratch() -> None:
    unet = network_of_recipe({})
    backbone = network_of_recipe({"network.encoder": "alexnet"})
    for first, second in ((unet, backbone), (backbone, unet)):
        with pytest.raises(UsageError, match=r"a has encoder (unet|alexnet), b has (unet|alexnet)"):
            shared_network({"a": first, "b": second})
