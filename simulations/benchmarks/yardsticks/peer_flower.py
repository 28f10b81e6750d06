"""Federated averaging in Flower's simulation with Ray, as its tutorial for PyTorch writes it: a yardstick. FROZEN.

`FedAvg`, a `ServerApp`, a `ClientApp` that loads the arrays into its network, trains and gives them back; one CPU an
actor. A site's data are read once by each actor.

    python peer_flower.py HOSPITALS VENDOR.safetensors OUT.safetensors --rounds 20
"""

# mypy: ignore-errors
# It runs in an environment of its own, which the type checker does not see.

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peer_plain import Network, arguments, order, read, train, write
from safetensors.torch import load_file

ACTORS = 2


def main() -> None:
    """Read, train, evaluate, write."""
    given = arguments()
    sites, vendor = read(given.hospitals), load_file(given.vendor)
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train_site(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        state = message.content["arrays"].to_torch_state_dict()
        model = Network()
        model.load_state_dict(state)
        sites = read(given.hospitals)
        site = list(sites)[int(context.node_config["partition-id"])]
        number = int(message.content["config"]["server-round"])
        images, label = sites[site]["train"]
        train(model, images, label, order(site, number, len(label)))
        metrics = MetricRecord({"num-examples": len(label)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(sites), min_available_nodes=len(sites))
        result = strategy.start(grid, ArrayRecord(vendor), num_rounds=given.rounds, train_config=ConfigRecord())
        write(given.out, vendor, result.arrays.to_torch_state_dict(), sites)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(sites),
        backend_config={"init_args": {"num_cpus": ACTORS}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
