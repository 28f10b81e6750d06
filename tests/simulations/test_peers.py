"""The benchmark beside its peers: its meter, the same work on our side and in the plain script, its page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from equipoise.common.models import resnet_small
from equipoise.simulations.benchmarks import peers
from equipoise.simulations.benchmarks.peers_page import page
from equipoise.simulations.benchmarks.process_tree import spend_tree

BUSY = "import time; x = bytearray(100 * 2**20)\nwhile time.process_time() < {seconds}: pass"
SMALL = "simulation.hospitals={kind: synthetic, count: 3, patients: 25, validation: 0, test: 120}"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the meter reads /proc")


def started(code: str, after: str) -> list[str]:
    """A command that starts another in a session of its own, then does `after` and ends."""
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
    return [sys.executable, "-c", f"{start}; {after}"]


@linux
def test_a_daemon_that_nobody_waits_for_is_counted(tmp_path: Path) -> None:
    spent = spend_tree(started(BUSY.format(seconds=3.0), "pass"), os.environ, tmp_path)
    assert spent.waited_s >= 3.0
    assert spent.cpu_s == max(spent.waited_s, spent.seen_s)
    assert spent.wall_s < 3.0  # of the command itself
    assert spent.peak_mib > 100


@linux
def test_a_child_whose_parent_lets_the_kernel_clear_it_away_is_counted(tmp_path: Path) -> None:
    ignoring = "import signal, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN); time.sleep(8)"
    spent = spend_tree(started(BUSY.format(seconds=1.0), ignoring), os.environ, tmp_path)
    assert spent.waited_s < 0.5
    assert spent.cpu_s == spent.seen_s > 0.5
    assert spent.processes == 2


@linux
def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no good"):
        spend_tree([sys.executable, "-c", "import sys; sys.exit('no good')"], os.environ, tmp_path)


@linux
def test_our_side_and_the_plain_script_do_the_same_work(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_file(resnet_small().state_dict(), tmp_path / "vendor.safetensors")
    peers.prepare(tmp_path, SMALL)
    compared = peers.side_by_side(tmp_path, 2, 1, dict.fromkeys(("equipoise", "plain"), sys.executable))
    (row,) = compared["rows"]
    assert 0 < row["difference"]["equipoise"] == compared["difference"] < peers.BOUNDS["difference"]
    assert row["moved"] > 1e-4
    assert compared["ratios"]["plain"]["median"] == row["spent"]["equipoise"]["cpu_s"] / row["spent"]["plain"]["cpu_s"]
    decided = json.loads((tmp_path / "plain.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for model, ((_, false), (missed, found)) in decided.items():
        rates = report["models"]["base" if model == "base" else "fine_tune"]["points"]["rule"]
        assert rates["tpr"]["value"] == pytest.approx(found / (missed + found))
        assert rates["fpr"]["value"] == pytest.approx(false / rates["fpr"]["n"])
    # A round less is another result, and would be seen.
    plain = load_file(tmp_path / "plain.safetensors")
    peers.run_side(tmp_path, 1, "plain", sys.executable)
    farther = peers.difference(tmp_path / "plain.safetensors", tmp_path / "equipoise.safetensors") / row["moved"]
    assert farther > 2 * peers.BOUNDS["difference"]
    assert plain.keys() == load_file(tmp_path / "plain.safetensors").keys()


def test_the_page_is_written_from_the_figures() -> None:
    result = json.loads((peers.HERE / "results" / "peers.json").read_text())
    assert (peers.ROOT / "docs" / "benchmarks-peers.md").read_text() == page(result)


def test_the_kept_figures_are_of_the_same_work_on_all_sides() -> None:
    result = json.loads((peers.HERE / "results" / "peers.json").read_text())
    assert result["bounds"] == peers.BOUNDS
    assert result["compared"]["difference"] <= peers.BOUNDS["difference"]
    assert [row["sites"] for row in result["many_sites"]["rows"]] == list(peers.COUNTS)
    for row in result["compared"]["rows"]:
        assert set(row["spent"]) == {"equipoise", "plain", *peers.PINS}
        assert row["spent"]["flower"]["processes"] > 3  # Ray's daemons and workers were seen
