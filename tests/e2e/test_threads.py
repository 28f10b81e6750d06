"""One thread wherever last bits reach a transcript."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info

from equipoise.common.threads import one_thread
from equipoise.server import run as runs
from tests.e2e.studies import Desk
from tests.e2e.terminal import Run


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_torch_and_blas_take_one_thread_meanwhile() -> None:
    before, pools = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert blas_threads() == {1}
        assert torch.get_num_threads() == 2
        assert blas_threads() == pools
    finally:
        torch.set_num_threads(before)


def test_a_run_and_its_verification_derive_everything_in_one_thread(
    desk: Desk, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    @contextmanager
    def counted() -> Iterator[None]:
        with one_thread():
            entered.append(torch.get_num_threads())
            yield

    monkeypatch.setattr(runs, "one_thread", counted)
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    arms = len([*Path(desk.run).glob("controls/*/model.safetensors"), "the method"])
    assert len(entered) >= arms + 1  # each, and the evaluation
    entered.clear()
    assert equipoise("verify", desk.run).code == 0
    assert len(entered) >= arms + 1
    assert set(entered) == {1}
