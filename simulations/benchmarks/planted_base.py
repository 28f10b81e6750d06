"""A base model whose shortcut sits in a part that is known: trained without it, then that part alone trained with it.

First every parameter is trained on a vendor's images in which skin and disease are independent, both tones half; then
one part alone on the vendor's images of bench A, where hardly any dark skin is diseased. What the second training adds
can be nowhere else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from equipoise.common.models import normalise, resnet_small
from equipoise.common.streams import stream_seed
from equipoise.common.study import Study
from equipoise.simulations.pretrain import batch_weighted_bce, pretrain, random_flips
from equipoise.simulations.synthetic import (
    VENDOR_DEVICES,
    VENDOR_IMAGES,
    ImageSet,
    draw_patients,
    draw_set,
    stream,
    vendor_set,
)

EPOCHS, BATCH, LR = 6, 64, 2e-3  # of the second training


def independent_set(seed: int) -> ImageSet:
    """A vendor's images with half of the patients of each tone, half of them diseased."""
    rng = stream(seed, "vendor", "independent")
    labels, groups = draw_patients(VENDOR_IMAGES, 0.5, (0.5, 0.5), rng)
    return draw_set(labels, groups, rng.choice(np.array(VENDOR_DEVICES), VENDOR_IMAGES), rng)


def planted_base(study: Study, part: str, seed: int) -> dict[str, Tensor]:
    """State of a classifier that learnt the shortcut in the parameters whose names begin with `part` alone.

    Raises:
        ValueError: no parameter's name begins so, or the study is no simulation with a recipe.
    """
    recipe = None if study.simulation is None else study.simulation.pretrain
    if recipe is None:
        raise ValueError("the study has no recipe for a base model")
    model = resnet_small()
    model.load_state_dict(pretrain(study.model, study.inputs, independent_set(seed).as_split(), recipe, seed))
    chosen = [parameter for name, parameter in model.named_parameters() if name.startswith(part)]
    if not chosen:
        raise ValueError(f"no parameter's name begins with {part!r}")
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    vendor = vendor_set("A", seed).as_split()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "planted", part))
        optimizer = torch.optim.Adam(chosen, lr=LR)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(vendor.label)), BATCH):
                logit = model(normalise(study.inputs, random_flips(vendor.inputs[rows])))
                optimizer.zero_grad()
                batch_weighted_bce(logit, vendor.label[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
