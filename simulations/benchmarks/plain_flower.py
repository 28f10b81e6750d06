"""Federated averaging as Flower's tutorial writes it: the yardstick of a deployed round trip.

Flower's `FedAvg`, `Grid` and ClientApp on Flower's own processes; a site gives back the arrays that it got, moved a
little, and loads neither torch nor data, so that what is timed is Flower alone.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The arrays, moved."""
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("expected arrays")
    moved = ArrayRecord([array + np.float32(0.01) for array in arrays.to_numpy_ndarrays()])
    return Message(RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Some rounds over all sites; the seconds of each go to the file that the configuration names."""
    sites, rounds = int(context.run_config["sites"]), int(context.run_config["rounds"])
    ends: list[float] = []

    def note(number: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    start = ArrayRecord([np.zeros(int(context.run_config["parameters"]), dtype=np.float32)])
    strategy.start(grid, start, num_rounds=rounds, evaluate_fn=note)
    seconds = [end - begin for begin, end in pairwise(ends)]
    Path(str(context.run_config["out"])).write_text(json.dumps(seconds))
