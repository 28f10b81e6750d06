"""Federated averaging on Apple's pfl, written as its own benchmark of CIFAR-10 is: a yardstick. FROZEN.

`SimulatedBackend`, `FederatedAveraging` and `torch.optim.SGD` on both sides, in one process.

    python peer_pfl.py HOSPITALS VENDOR.safetensors OUT.safetensors --rounds 20
"""

# mypy: ignore-errors
# It runs in an environment of its own, which the type checker does not see.

from __future__ import annotations

from collections import Counter

import torch
from peer_plain import BATCH, LR, Network, arguments, loss, order, read, write
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from safetensors.torch import load_file
from torch import Tensor


class Model(Network):
    """The network with the two functions that pfl calls."""

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy of a batch."""
        return loss(self, images, label)

    def metrics(self, images: Tensor, label: Tensor) -> dict[str, Weighted]:
        """Nothing, at no cost: pfl evaluates the first round whatever it is told."""
        return {"nothing": Weighted(0.0, len(label))}


def main() -> None:
    """Read, train, evaluate, write."""
    given = arguments()
    torch.set_num_threads(1)
    sites = read(given.hospitals)
    names, vendor = list(sites), load_file(given.vendor)
    network = Model()
    network.load_state_dict(vendor)
    trained: Counter[int] = Counter()

    def site(index: int) -> PyTorchTensorDataset:
        trained[index] += 1
        images, label = sites[names[index]]["train"]
        rows = order(names[index], trained[index], len(label))
        return PyTorchTensorDataset((images[rows], label[rows]), user_id=names[index])

    users = FederatedDataset(site, get_user_sampler("minimize_reuse", list(range(len(names)))))
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=given.rounds,
            train_cohort_size=len(names),
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByUser()]),
        model=model,
        model_train_params=NNTrainHyperParams(local_learning_rate=LR, local_num_epochs=1, local_batch_size=BATCH),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
    )
    if set(trained.values()) != {given.rounds}:
        raise SystemExit("pfl left a site out of a round")
    write(given.out, vendor, network.state_dict(), sites)


if __name__ == "__main__":
    main()
