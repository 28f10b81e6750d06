"""Flower's SecAgg+, driven in memory stage by stage, and a plain sum by Flower's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from numpy.typing import NDArray

from equipoise.common.secure_sum.threshold import threshold
from equipoise.simulations.benchmarks.meter import Meter, Spent

MODULUS, QUANTISED, CLIP, WEIGHT = 2**32, 2**22, 8.0, 1000.0  # SecAgg+'s defaults


def secagg_plus(drawn: Callable[[int], NDArray[np.float32]], count: int, size: int) -> tuple[Spent, NDArray[Any]]:
    """One round of Flower's SecAgg+ in which nobody drops out; every site has the same weight."""
    meter, needed, sent = Meter(), threshold(count), 0
    asked: dict[str, Any] = {
        Key.SAMPLE_NUMBER: count, Key.SHARE_NUMBER: count, Key.THRESHOLD: needed, Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: QUANTISED, Key.MOD_RANGE: MODULUS, Key.MAX_WEIGHT: WEIGHT,
    }  # fmt: skip
    states = {node: SecAggPlusState() for node in range(1, count + 1)}
    keys: dict[str, Any] = {}
    for node, state in states.items():
        state.nid = node
        setup = meter.run("site", _setup, state, ConfigRecord(asked))
        keys[str(node)] = [setup[Key.PUBLIC_KEY_1], setup[Key.PUBLIC_KEY_2]]
    forwarded: dict[int, list[tuple[int, bytes]]] = {node: [] for node in states}
    for node, state in states.items():
        dealt: Any = meter.run("site", _share_keys, state, ConfigRecord(keys))
        for to, sealed in zip(dealt[Key.DESTINATION_LIST], dealt[Key.CIPHERTEXT_LIST], strict=True):
            forwarded[to].append((node, sealed))
            sent += len(sealed)
    total: list[NDArray[Any]] = []
    for node, state in states.items():
        parameters = ndarrays_to_parameters([drawn(node - 1)])
        mine: dict[str, Any] = {Key.SOURCE_LIST: [src for src, _ in forwarded[node]],
                Key.CIPHERTEXT_LIST: [sealed for _, sealed in forwarded[node]]}  # fmt: skip
        masked: Any = meter.run("site", _collect_masked_vectors, state, ConfigRecord(mine), int(WEIGHT), parameters)
        blobs = masked[Key.MASKED_PARAMETERS]
        sent += sum(map(len, blobs))
        total = meter.run("server", _add_flower, total, blobs)
    total = meter.run("server", parameters_mod, total, MODULUS)
    shares: dict[int, list[bytes]] = {node: [] for node in states}
    lists: dict[str, Any] = {Key.ACTIVE_NODE_ID_LIST: list(states), Key.DEAD_NODE_ID_LIST: []}
    for state in states.values():
        given: Any = meter.run("site", _unmask, state, ConfigRecord(lists))
        for owner, share in zip(given[Key.NODE_ID_LIST], given[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
            sent += len(share)
    mean = meter.run("server", _unmask_flower, total, list(shares.values()), count)
    return Spent(meter.spent["site"], meter.spent["server"], sent, 0), mean


def _add_flower(total: list[NDArray[Any]], blobs: list[bytes]) -> list[NDArray[Any]]:
    arrays = [bytes_to_ndarray(blob) for blob in blobs]
    return parameters_addition(total, arrays) if total else arrays


def _unmask_flower(total: list[NDArray[Any]], shares: list[list[bytes]], count: int) -> NDArray[Any]:
    """What SecAggPlusWorkflow.unmask_stage does with the shares where nobody has dropped out: the mean."""
    for owned in shares:
        mask = pseudo_rand_gen(combine_shares(owned), MODULUS, [array.shape for array in total])
        total = parameters_subtraction(total, mask)
    ratio, found = factor_extract(parameters_mod(total, MODULUS))
    vector: NDArray[Any] = dequantize(found, CLIP, QUANTISED)[0]
    vector -= (count - 1) * CLIP
    vector *= QUANTISED / ratio
    return vector


def _add_plain_flower(total: NDArray[np.float32], data: bytes, count: int) -> None:
    total += bytes_to_ndarray(data) / count


def plain_flower(drawn: Callable[[int], NDArray[np.float32]], count: int, size: int) -> Spent:
    """The same numbers, as Flower packs and unpacks them, weighted and added."""
    meter, sent = Meter(), 0
    total = np.zeros(size, dtype=np.float32)
    for number in range(count):
        values = drawn(number)
        data = meter.run("site", ndarray_to_bytes, values)
        sent += len(data)
        meter.run("server", _add_plain_flower, total, data, count)
    return Spent(meter.spent["site"], meter.spent["server"], sent, 0)
