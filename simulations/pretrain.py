"""The vendor's training: how a simulation makes the classifier that a study starts from.

Adam (weight decay 1e-4) under a one-cycle learning rate, 8 epochs of batches of 64, random flips of images, and SWiFT's
class-weighted loss, whose weights are each batch's own. The vendor's data are the vendor's: nothing here is private,
and nothing of it runs at a hospital.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from equipoise.client.cohort import Split
from equipoise.common.errors import DataError
from equipoise.common.models import build, normalise
from equipoise.common.streams import stream_seed
from equipoise.common.study import ImageInputs, Inputs, ModelSpec
from equipoise.common.study_simulation import Recipe
from equipoise.common.threads import one_thread


def pretrain(model_spec: ModelSpec, inputs: Inputs, split: Split, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Train a classifier from random weights.

    Args:
        model_spec: the factory; weights that it names are the start.
        inputs: how rows are normalised.
        split: the vendor's patients; each row (image or visit) counts once, with its patient's label.
        recipe: epochs, largest learning rate, batch size, weight decay.
        seed: public; fixes the first weights, the order of the rows and the flips. On one machine the result repeats
            bit for bit, whatever the number of threads set outside: training runs on one.

    Returns:
        The model's state dict, on the CPU.

    Raises:
        ModelError: the factory or the device does not fit.
        DataError: the split has no rows, or one class only.
    """
    label = split.label[split.patient]
    if not 0 < int(label.sum()) < len(label):
        raise DataError(
            f"pretraining: {int(label.sum())} of the vendor's {len(label)} rows are positive; both classes are needed"
        )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "pretrain"))
        model = build(model_spec).train()
        device = next(model.parameters()).device
        optimizer = torch.optim.Adam(model.parameters(), weight_decay=recipe.weight_decay)
        steps = recipe.epochs * -(-len(label) // recipe.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
        for _ in range(recipe.epochs):
            for rows in torch.split(torch.randperm(len(label)), recipe.batch):
                batch = split.inputs[rows]
                if isinstance(inputs, ImageInputs):
                    batch = random_flips(batch).contiguous(memory_format=torch.channels_last)
                logit = model(normalise(inputs, batch.to(device)))
                optimizer.zero_grad()
                batch_weighted_bce(logit, label[rows].to(device)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def batch_weighted_bce(logit: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy in which each class weighs the share of the other, as SWiFT's code has it.

    L = (1/N) sum_i [ (Q/N) y_i log(1 + e^-z_i) + (P/N) (1 - y_i) log(1 + e^z_i) ], with P positives and Q negatives
    among the N rows of the batch; 0 where the batch holds one class only.

    Args:
        logit: (m,) float.
        label: (m,) in {0, 1}.

    Returns:
        A scalar.
    """
    y = label.to(logit.dtype)
    share = y.mean()
    return ((1 - share) * y * softplus(-logit) + share * (1 - y) * softplus(logit)).mean()


def random_flips(images: Tensor) -> Tensor:
    """Each image (m, C, H, W) mirrored or not along each axis, by torch's global generator."""
    for axis in (2, 3):
        flip = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(flip, images.flip(axis), images)
    return images
