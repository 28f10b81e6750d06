"""docs/deploy.md, run as it stands: every command of the page, in order, on real processes with TLS and node keys.

What is asserted is what the page promises: a report at the coordinator, and the very sums that the same study gives in
one process.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from equipoise.client.ledger import Ledger
from equipoise.client.statement import statement
from equipoise.common.sitefile import load_site
from equipoise.simulations.loopback import ENVIRONMENT, ROOT, Process, free_port, listens, wait_for
from tests.e2e.deployed import equipoise, programs, short_folder, sums
from tests.e2e.failing import PLANTED, plant, traces
from tests.e2e.studies import TABLE, Desk

PAGE = ROOT / "docs" / "deploy.md"
SITES = ("cleveland", "hungarian", "switzerland", "va")
DATA = os.environ.get("EQUIPOISE_DATA")


def steps() -> list[tuple[str, str]]:
    """(where, command) of every line in the page's sh blocks."""
    found = re.findall(r"<!-- at: ([^>]*?) -->\n```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(found) == PAGE.read_text().count("```sh"), "a block without the place where it runs"
    return [(where, line) for where, block in found for line in block.splitlines()]


class Heart:
    """The UCI heart hospitals and a short study over them; made-up ones where the data are absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        study = yaml.safe_load((ROOT / "configs" / "heart.yaml").read_text())
        study["method"] |= {"rounds": {"extractor": 1, "head": 1}, "controls": []}
        if DATA:
            self._real(study)
        else:
            self._made_up(study)
        for site in SITES:
            plant(self.folder / "data" / site, "disease")
        sites = {"minimum": 3, "quorum": 0.8, "deadline_s": 300}
        self.study = {**study, "simulation": None, "sites": {**sites, "declared_patients": dict.fromkeys(SITES, 100)}}
        del self.study["simulation"]
        # Three releases with noise, on test patients alone.
        self.private = {key: value for key, value in self.study.items() if key != "method"}
        self.private |= {
            "study": "heart-private",
            "attributes": self.study["attributes"][:1],
            "privacy": {"mode": "local", "epsilon": 3, "delta": 1e-5, "public_pool": {"path": "pool.csv"}},
            "evaluation": {"threshold": {"rule": "fixed:0.5"}},
        }

    def write_pool(self, file: Path) -> None:
        """Unlabelled rows that are nobody's: draws from the declared ranges."""
        features, rng = self.study["inputs"]["features"], np.random.default_rng(0)
        rows = [{one["name"]: round(float(rng.uniform(*one["range"])), 2) for one in features} for _ in range(300)]
        with file.open("w", newline="") as pool:
            writer = csv.DictWriter(pool, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _real(self, study: dict[str, Any]) -> None:
        from equipoise.simulations.public import public_data_folder, write_heart

        write_heart(self.folder / "data", public_data_folder(), 0)
        short = ["--set", "simulation.pretrain.epochs=5"]
        equipoise("pretrain", "configs/heart.yaml", "--out", self.folder / "vendor.safetensors", *short)
        study["model"]["weights"] = {"path": "vendor.safetensors"}

    def _made_up(self, study: dict[str, Any]) -> None:
        desk = Desk(self.folder, TABLE, sites=SITES)
        (self.folder / "hospitals").rename(self.folder / "data")
        study.update({key: desk.value[key] for key in ("model", "inputs", "label", "attributes")})

    def site(self, name: str) -> dict[str, Any]:
        """The site file's content, with absolute paths; declared synthetic, so that mode none is allowed."""
        place = self.folder / "data" / name
        value: dict[str, Any] = yaml.safe_load((place / "site.yaml").read_text())
        value["data"] |= {"manifest": str(place / value["data"]["manifest"]), "synthetic": True}
        return {**value, "caps": {"cohort_minimum": 1, "split_minimum": 1, "epsilon": 8}}


@pytest.fixture
def folder() -> Iterator[Path]:
    yield from short_folder("deploy")


class Machine:
    """Runs the page's lines; ends what it started."""

    def __init__(self, folder: Path, heart: Heart) -> None:
        self.folder, self.heart = folder, heart
        self.port = free_port()
        self.ports = {site: free_port() for site in SITES}
        self.processes: list[Process] = []
        self.environment = {
            **ENVIRONMENT,
            "PATH": f"{programs(folder)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(self, where: str, line: str) -> None:
        if "for each other" in where:
            for site, peer in permutations(SITES, 2):
                self._run(line.replace("mercy", peer).replace("st-marys", site), site)
        elif "each hospital" in where:
            for site in SITES:
                self._run(line.replace("st-marys", site).replace("9094", str(self.ports[site])), site)
        else:
            self._run(line, "")

    def _run(self, line: str, site: str) -> None:
        line = line.replace("9443", str(self.port))
        if "HASH" in line:
            line = line.replace("HASH", self._pending(site))
        if line.endswith(" &"):
            script = self.folder / line.removesuffix(" &")
            log = self.folder / f"{script.parent.name}-{script.stem}.log"
            self.processes.append(Process(script, log, environment=self.environment, cwd=self.folder))
            self._up(script)
            return
        done = subprocess.run(
            shlex.split(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=500,
            check=False,
        )  # fmt: skip
        logs = "\n".join(f"== {p.log.name}\n{p.text()[-800:]}" for p in self.processes) if done.returncode else ""
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}\n{logs}"
        if " site init " in f" {line} ":
            (self.folder / site / "site.yaml").write_text(yaml.safe_dump(self.heart.site(site)))
            load_site(self.folder / site / "site.yaml")

    def _up(self, script: Path) -> None:
        if script.name == "start-superlink.sh":
            wait_for(lambda: listens(self.port), 90, "the SuperLink listens")
        if script.name == "start-supernode.sh":
            agent = self.folder / f"{script.parent.name}-start-agent.log"
            wait_for(lambda: "listens at" in agent.read_text(), 120, f"the agent before {script} is up")

    def wait_for_end(self, run: Path) -> None:
        """Wait until the run has ended, well or not."""
        state = run / "deployment" / "state.json"
        ended = ("finished", "failed")
        wait_for(lambda: json.loads(state.read_text())["state"] in ended, 900, f"{run.name} ends", self.processes)
        assert json.loads(state.read_text())["state"] == "finished", state.read_text()

    def _pending(self, site: str) -> str:
        """The hash of the latest study that was proposed; the one before it is decided on."""
        place = self.folder / site / "agent"
        known = len(list((self.folder / "coordinator" / "runs").iterdir()))

        def latest() -> str:
            found = sorted((place / "studies").glob("*.json"), key=lambda file: file.stat().st_mtime)
            return found[-1].stem if len(found) == known else ""

        return str(wait_for(latest, 200, f"a study waits at {site}"))


@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_the_page_leads_to_a_report_and_to_the_sums_of_one_process(folder: Path) -> None:
    heart = Heart(folder / "heart")
    machine = Machine(folder, heart)
    (folder / "vendor.safetensors").write_bytes((folder / "heart" / "vendor.safetensors").read_bytes())
    heart.write_pool(folder / "pool.csv")
    for name, study in {"study": heart.study, "private": heart.private}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    runs = folder / "coordinator" / "runs"
    began = time.monotonic()
    try:
        for where, line in steps():
            if line.startswith("equipoise status"):
                machine.wait_for_end(runs / "heart")
            machine.run(where, line)
        print(f"from init to report: {time.monotonic() - began:.0f} s")
        machine.run("coordinator", "equipoise evaluate private.yaml --coordinator coordinator")
        machine.run("each hospital", "equipoise site approve HASH --folder st-marys")
        machine.wait_for_end(runs / "heart-private")
    finally:
        for process in reversed(machine.processes):
            process.kill()
    assert (runs / "heart" / "report.html").stat().st_size > 10_000
    check_sums(machine, runs / "heart")
    check_costs(machine, runs / "heart-private")
    assert not traces([*runs.parent.rglob("*"), folder / "coordinator-start-superlink.log"], PLANTED)
    assert traces(folder.glob("*/site.yaml"), (b"planted-manifest",)), "the search finds what is there"


def simulated(machine: Machine, study: dict[str, Any], name: str) -> Path:
    """The run of a study in one process, over the same site files."""
    folder = machine.folder
    local = {**study, "simulation": {"hospitals": {"kind": "folders", "path": str(folder / "sites")}}}
    for site in SITES:
        (folder / "sites" / site).mkdir(parents=True, exist_ok=True)
        (folder / "sites" / site / "site.yaml").write_text((folder / site / "site.yaml").read_text())
    (folder / f"local-{name}.yaml").write_text(yaml.safe_dump(local))
    equipoise("simulate", folder / f"local-{name}.yaml", "--out", folder / "local" / name)
    return folder / "local" / name


def check_sums(machine: Machine, run: Path) -> None:
    """Without noise, the deployed sums and models are those of one process, byte for byte.

    Those came through the secure sum, which `submit` turns on; these did not.
    """
    alone = simulated(machine, machine.heart.study, "heart")
    assert secure(run)
    assert not secure(alone)
    deployed, here = sums(run), sums(alone)
    assert {name for name in deployed if "sums" in name} == {name for name in here if "sums" in name}
    assert deployed == {name: here[name] for name in deployed}


def secure(run: Path) -> bool:
    """Whether the run's study asked for the secure sum."""
    return bool(json.loads((run / "task.json").read_text())["study"]["privacy"]["secure_sum"])


def check_costs(machine: Machine, run: Path) -> None:
    """With noise, each site has asked for the same and paid the same; the sums are others, since the noise is."""
    here = simulated(machine, machine.heart.private, "heart-private")
    for site in SITES:
        deployed = costs(machine.folder / site / "agent" / "ledger.sqlite", "heart-private")
        assert deployed == costs(here / "sites" / site / "ledger.sqlite", "heart-private")
        epsilons, total = deployed
        assert len(epsilons) == 3
        assert all(epsilon is not None and epsilon > 0 for _, _, epsilon in epsilons)
        assert 2.5 < total < 4
    assert sums(run).keys() == sums(here).keys()
    assert sums(run) != sums(here)


def costs(file: Path, run: str) -> tuple[list[tuple[str, str, float | None]], float]:
    """Query, split and epsilon of each release of a run, and what the patients have spent at most."""
    ledger = Ledger(file)
    try:
        found = statement(ledger, 1e-5)
    finally:
        ledger.close()
    rows = [row for row in found["releases"] if row["run"].startswith(f"{run}/")]
    (account,) = (row for row in found["accounts"] if row["account"] == "main")
    return [(row["query"], row["split"], row["epsilon"]) for row in rows], account["epsilon"]
