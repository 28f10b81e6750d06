"""docs/deploy.md, run as it stands: every command of the page, in order, on real processes with TLS and node keys.

What is asserted is what the page promises: a report at the coordinator, and the very sums that the same study gives in
one process.
"""

from __future__ import annotations

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

import pytest
import yaml

from equipoise.common.sitefile import load_site
from equipoise.simulations.loopback import ENVIRONMENT, ROOT, Process, free_port, listens, wait_for
from tests.e2e.deployed import equipoise, programs, short_folder, sums
from tests.e2e.studies import TABLE, Desk

PAGE = ROOT / "docs" / "deploy.md"
SITES = ("cleveland", "hungarian", "switzerland", "va")
PLANTED = "planted-patient"
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
        sites = {"minimum": 3, "quorum": 0.8, "deadline_s": 300}
        self.study = {**study, "simulation": None, "sites": {**sites, "declared_patients": dict.fromkeys(SITES, 100)}}
        del self.study["simulation"]

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
        return {**value, "caps": {"cohort_minimum": 1}}


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
        line = line.replace("8443", str(self.port))
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

    def _pending(self, site: str) -> str:
        place = self.folder / site / "agent" / "studies"
        return wait_for(lambda: [f.stem for f in place.glob("*.json")], 200, f"a study waits at {site}")[0]


@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_the_page_leads_to_a_report_and_to_the_sums_of_one_process(folder: Path) -> None:
    heart = Heart(folder / "heart")
    machine = Machine(folder, heart)
    (folder / "study.yaml").write_text(yaml.safe_dump(heart.study))
    (folder / "vendor.safetensors").write_bytes((folder / "heart" / "vendor.safetensors").read_bytes())
    run = folder / "coordinator" / "runs" / "heart"
    began = time.monotonic()
    try:
        for where, line in steps():
            if line.startswith("equipoise status"):
                state = run / "deployment" / "state.json"
                wait_for(
                    lambda s=state: json.loads(s.read_text())["state"] in ("finished", "failed"), 900, "the run ends"
                )
            machine.run(where, line)
    finally:
        for process in reversed(machine.processes):
            process.kill()
    assert (run / "report.html").stat().st_size > 10_000
    deployed = sums(run)
    print(f"from init to report: {time.monotonic() - began:.0f} s")
    # The same study in one process, over the same site files.
    local = {**heart.study, "simulation": {"hospitals": {"kind": "folders", "path": str(folder / "sites")}}}
    for site in SITES:
        (folder / "sites" / site).mkdir(parents=True)
        (folder / "sites" / site / "site.yaml").write_text((folder / site / "site.yaml").read_text())
    (folder / "local.yaml").write_text(yaml.safe_dump(local))
    equipoise("simulate", folder / "local.yaml", "--out", folder / "local" / "heart")
    here = sums(folder / "local" / "heart")
    assert {name for name in deployed if "sums" in name} == {name for name in here if "sums" in name}
    assert deployed == {name: here[name] for name in deployed}
