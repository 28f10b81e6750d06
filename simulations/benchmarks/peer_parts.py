"""Where the CPU seconds of a simulated study go: one run of a study with clocks at the joints.

python -m equipoise.simulations.benchmarks.peer_parts OUT.json STUDY.yaml RUN KEY=VALUE ...
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from equipoise.client import agent, computations, workplace
from equipoise.client.agent import SiteAgent
from equipoise.client.ledger import Ledger
from equipoise.common.study_file import load_study
from equipoise.server.engine import Engine
from equipoise.simulations import runner
from equipoise.simulations.grid import InProcessGrid
from equipoise.simulations.wire_form import WireForm


class Clocks:
    """CPU seconds by part. A part that is called from another one's time stops that one's clock."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = threading.local()

    def put_on(self, owner: Any, name: str, part: str) -> None:
        """Count what `owner.name` takes, less what parts within it take, for `part`."""
        setattr(owner, name, self.clocked(getattr(owner, name), part))

    def clocked(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`work`, whose time is counted for `part`."""

        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner: list[float] = self._inner.__dict__.setdefault("seconds", [])
            inner.append(0.0)
            begun = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.thread_time() - begun
                self.seconds[part] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return timed


def main() -> None:
    """Run the study and write the seconds by part; what no part claims is `everything else`."""
    out, study, run, *sets = sys.argv[1:]
    clocks = Clocks()
    clocks.put_on(computations, "train_locally", "local training")
    clocks.put_on(workplace, "network", "local training")
    for name in ("begin_study", "recall", "reserve", "seal", "end_run"):
        clocks.put_on(Ledger, name, "ledger and sealed replies")
    for name in ("of", "message"):
        clocks.put_on(WireForm, name, "messages through Flower's protobuf")
    for name in ("pack", "unpack", "release"):
        clocks.put_on(agent, name, "integers, and their containers")
    clocks.put_on(Engine, "_ask", "the coordinator")
    clocks.put_on(InProcessGrid, "_work", "messages through Flower's protobuf")
    clocks.put_on(SiteAgent, "_entry", "checks of study and plan")
    clocks.put_on(SiteAgent, "_study", "checks of study and plan")
    for name, work in computations.COMPUTATIONS.items():
        part = "local training" if name == "local_training" else "counts and evaluation at the sites"
        computations.COMPUTATIONS[name] = clocks.clocked(work, part)
    clocks.put_on(runner, "_census", "reading the hospitals")
    clocks.put_on(runner, "build_report", "report")
    imported = time.process_time()
    runner.simulate(load_study(Path(study), sets), Path(run))
    total = time.process_time()
    parts = {"imports": imported, **clocks.seconds}
    parts["everything else"] = total - sum(parts.values())
    Path(out).write_text(json.dumps({"total_s": total, "parts": parts}))


if __name__ == "__main__":
    main()
