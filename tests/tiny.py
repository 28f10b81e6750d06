"""A study small enough to be run many times: two tiny networks, made-up patients, agents in memory.

Tests import it as `tests.tiny`; its factories are what the tests' site files allow under `caps.models`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.client.agent import SiteAgent
from equipoise.client.bundles import BundleStore
from equipoise.client.cohort import Split
from equipoise.client.computations import COMPUTATIONS, Workplace
from equipoise.client.ledger import Charge, Ledger
from equipoise.client.policy import check_query
from equipoise.client.release import release as through_the_door
from equipoise.client.request import Request
from equipoise.client.scores import ScoreCache
from equipoise.common.canonical import digest_arrays, digest_json, sha256
from equipoise.common.classifier import Classifier
from equipoise.common.query import SPLITS, Query, Sum
from equipoise.common.sitefile import Site
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import split_bundles, unpack
from equipoise.server.release import Delivered, PlainRelease
from equipoise.server.transport import Reply

FEATURES = 5
WIDTH = 2 * FEATURES  # each feature brings its missing flag
SEX = ("female", "male")


class Small(nn.Module):
    """A multilayer perceptron of 149 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extractor(x)).squeeze(1)


class Conv(nn.Module):
    """Two convolutions with a group norm, for 8 x 8 colour images."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extractor(x).mean(dim=(2, 3))).squeeze(1)


class Scaled(Small):
    """`Small` with a parameter without dimensions, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.temperature


def small() -> nn.Module:
    """The table network."""
    return Small()


def conv() -> nn.Module:
    """The image network."""
    return Conv()


def scaled() -> nn.Module:
    """The table network with a scalar parameter."""
    return Scaled()


def network(factory: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with weights large enough that scores differ between patients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = {"small": small, "conv": conv, "scaled": scaled}[factory]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.normal_(0.0, 0.6)
    return model.to(dtype).eval()


def weights_file(factory: str = "small", seed: int = 0, dtype: torch.dtype = torch.float32) -> bytes:
    """The network's weights as the vendor's file."""
    return save(network(factory, seed, dtype).state_dict())


def table_inputs() -> dict[str, Any]:
    return {"kind": "table", "features": [{"name": f"f{i}", "range": [-3, 3]} for i in range(FEATURES)]}


def make_study(
    method: Mapping[str, Any] | None = None, file: bytes | None = None, factory: str = "small", **changes: Any
) -> Study:
    """The tiny study; `file` is the vendor's weights, `method` its method keys."""
    file = weights_file(factory) if file is None else file
    inputs = {"kind": "image", "size": 8} if factory == "conv" else table_inputs()
    return Study.model_validate(
        {
            "study": "tiny",
            "seed": 7,
            "model": {"factory": f"tests.tiny:{factory}", "weights": {"path": "vendor", "sha256": sha256(file)}},
            "inputs": inputs,
            "label": {"column": "disease", "positive": 1},
            "attributes": [
                {"name": "sex", "levels": list(SEX), "primary": True},
                {"name": "age", "kind": "cut", "column": "age", "cuts": [60]},
            ],
            "method": method or {"name": "swift", "rounds": {"extractor": 2, "head": 1}},
            "evaluation": {"bins": 64, "threshold": {"rule": "fixed:0.5"}},
            "sites": {"minimum": 1, "quorum": 1.0, "deadline_s": 60},
            **changes,
        }
    )


def private_study(
    method: Mapping[str, Any] | None = None, privacy: Mapping[str, Any] | None = None, **changes: Any
) -> Study:
    """The tiny study under noise: the head re-fitted in four rounds, epsilon 3."""
    method = {"name": "private_head", "rounds": 4, "directions": 5, **(method or {})}
    evaluation = {"threshold": {"rule": "fixed:0.5"}, "bins": 8}
    return make_study(
        method, privacy={"mode": "local", "epsilon": 3, **(privacy or {})}, **{"evaluation": evaluation, **changes}
    )


def declare(study: Study, patients: Mapping[str, int]) -> Study:
    """The study with the sites' declared numbers of patients."""
    return study.model_copy(update={"sites": study.sites.model_copy(update={"declared_patients": dict(patients)})})


def classifier_of(study: Study, file: bytes) -> Classifier:
    """The vendor's classifier."""
    name = study.model.factory.partition(":")[2]
    return Classifier.of(file, {"small": small, "conv": conv, "scaled": scaled}[name](), study.model.head)


@dataclass(frozen=True)
class People:
    """Made-up patients, some with several rows; `groups` count `unknown` last."""

    rows: tuple[Tensor, ...]
    label: NDArray[np.int64]
    sex: NDArray[np.int64]
    age: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def split(self, chosen: Sequence[int]) -> Split:
        """The chosen patients as a site holds them."""
        kept = [self.rows[i] for i in chosen]
        index = np.asarray(chosen, dtype=np.int64)
        like = self.rows[0]
        return Split(
            inputs=torch.cat(kept) if kept else torch.zeros((0, *like.shape[1:]), dtype=like.dtype),
            patient=torch.repeat_interleave(
                torch.arange(len(kept)), torch.tensor([len(rows) for rows in kept], dtype=torch.int64)
            ),
            label=torch.from_numpy(self.label[index]),
            groups={"sex": torch.from_numpy(self.sex[index]), "age": torch.from_numpy(self.age[index])},
        )


def draw_people(count: int, seed: int, *, images: bool = False, most_rows: int = 3, unknown: float = 0.1) -> People:
    """`count` patients with 1 to `most_rows` rows each; a share `unknown` of them has no known sex."""
    rng = np.random.default_rng(seed)
    label = (rng.random(count) < 0.4).astype(np.int64)
    sex = np.where(rng.random(count) < unknown, 2, (rng.random(count) < 0.65).astype(np.int64))
    age = (rng.random(count) < 0.5).astype(np.int64)
    rows = []
    for i in range(count):
        many = int(rng.integers(1, most_rows + 1))
        if images:
            pixels = rng.integers(0, 200, (many, 3, 8, 8)) + 40 * label[i] + 15 * (sex[i] == 0)
            rows.append(torch.from_numpy(pixels.astype(np.uint8)))
        else:
            values = np.clip(rng.normal(0.5 * label[i] - 0.3 * (sex[i] == 0), 0.6, (many, FEATURES)), -1, 1)
            flags = np.zeros((many, FEATURES))
            rows.append(torch.from_numpy(np.concatenate([values, flags], axis=1).astype(np.float32)))
    return People(tuple(rows), label, sex, age)


@dataclass
class Memory:
    """A cohort in memory: the same patients in every split, or one set a split."""

    splits: dict[str, Split]

    @classmethod
    def everywhere(cls, split: Split) -> Memory:
        """The same patients in all three splits."""
        return cls(dict.fromkeys(("train", "validation", "test"), split))

    @property
    def patients(self) -> int:
        return sum(split.patients for split in self.splits.values())

    @property
    def bytes_held(self) -> int:
        return sum(split.inputs.nbytes for split in self.splits.values())

    @property
    def fingerprint(self) -> str:
        return digest_json(
            {
                name: digest_arrays(
                    {
                        "inputs": split.inputs.numpy(),
                        "patient": split.patient.numpy(),
                        "label": split.label.numpy(),
                        **{f"group {attribute}": group.numpy() for attribute, group in split.groups.items()},
                    }
                )
                for name, split in self.splits.items()
            }
        )

    def split(self, name: str) -> Split:
        return self.splits[name]

    def split_patients(self, name: str) -> int:
        return self.splits[name].patients

    def members(self) -> list[tuple[str, str]]:
        """Each split's patients have names of their own, whoever they are: splits are disjoint."""
        return [(f"{name}-{i}", name) for name, split in self.splits.items() for i in range(split.patients)]


def site_file(name: str, **changes: Any) -> Site:
    """A hospital's own file that allows the tests' factories."""
    value: dict[str, Any] = {
        "site": name,
        "data": {"manifest": f"/secret/{name}/cohort.csv", "splits": {"column": "split"}, "synthetic": True},
        "caps": {"cohort_minimum": 1, "models": ["tests.tiny:*", "equipoise.common.models:*"]},
    }
    return Site.model_validate({**value, **changes})


def make_agent(
    name: str, cohort: Any, state: Path, studies: Sequence[Study], site: Site | None = None, **options: Any
) -> SiteAgent:
    """A site agent over a cohort in memory that has approved `studies`."""
    return SiteAgent(
        site or site_file(name),
        state / name,
        approved=frozenset(study.hash for study in studies),
        bundles=options.pop("bundles", None) or BundleStore(),
        open_cohort=lambda study, site: cohort,
        scratch=options.pop("scratch", True),
        **options,
    )


@dataclass
class Post:
    """A line to agents in memory that counts its messages; stands for `equipoise.server.transport.Transport`.

    Attributes:
        agents: site -> anything that answers bytes with bytes, or None for a site that is silent.
        order: in which order the replies come; by default that of the requests.
        sent: (site, request) of every message, in order.
    """

    agents: dict[str, Any]
    order: Any = None
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    plans: dict[str, StudyPlan] = field(default_factory=dict)  # those sent with the requests, by digest

    @property
    def nodes(self) -> dict[str, int]:
        return {site: number for number, site in enumerate(self.agents)}

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[Reply]:
        sites = list(requests) if self.order is None else self.order(list(requests))
        for site in sites:
            self.sent.append((site, requests[site]))
            agent = self.agents[site]
            down = len(requests[site])
            if agent is None:
                yield Reply(site, None, "timeout", down, 0, deadline_s)
            else:
                payload = agent.answer(requests[site])
                yield Reply(site, payload, None, down, len(payload), 0.0)

    def asked(self) -> list[str]:
        """Names of the queries that were asked, one entry a message; messages that end a run are left out."""
        return [query.name for query in self.queries()]

    def queries(self) -> list[Query]:
        """The queries themselves, as the plan that a request names has them."""
        found = []
        for _, request in self.sent:
            header, arrays = unpack(request)
            if header.get("close"):
                continue
            if header["plan"] not in self.plans and f"{header['plan']}/json" in arrays:
                self.plans[header["plan"]] = StudyPlan.from_bundle(split_bundles(arrays)[header["plan"]])
            found.append(self.plans[header["plan"]].entries[header["index"]].query)
        return found


def any_plan(site: Site, study: Study, plan: StudyPlan, scratch: bool) -> None:
    """A hospital that lets queries be asked outside a study's plan; each must still be known and allowed there."""
    for entry in plan.entries:
        check_query(site, entry.query)


def request_for(
    study: Study,
    plan: StudyPlan,
    query: Query,
    *,
    site: str = "a",
    number: int = 0,
    head: str = "head",
    run: str = "run",
    delivered: Delivered | None = None,
) -> bytes:
    """The coordinator's request for a query with its inputs, which stands in `plan`; `run` is without its arm."""
    entry = next(e for e in plan.entries if e.query.template == query.template)
    placed = entry.query.with_inputs(**query.inputs)
    asked = PlainRelease(
        study, plan, placed, f"{run}/{entry.arm}", number, head, [site], Delivered() if delivered is None else delivered
    )
    return asked.requests()[site]


def charge_for(query: Query) -> Charge:
    """Leave to release `query` once, from a ledger of its own."""
    request = Request("study", "run/arm", 0, "head")
    ledger = Ledger(Path(":memory:"), durable=False)
    plans = {split: [query.plan] if split == query.split and query.private else [] for split in SPLITS}
    ledger.begin_study(request.study, request.whole_run, "main", "plan", plans, None)
    charge = ledger.reserve(request, query, "main")
    ledger.close()
    return charge


def contribution(study: Study, query: Query, split: Split, site: str = "site", release: int = 0) -> dict[str, Any]:
    """The integers that one site sends, through the last step of its door."""
    place = Workplace(study, site, query, split, ScoreCache(), release)
    return through_the_door(charge_for(query), query, COMPUTATIONS[query.name](place))


def add_up(query: Query, contributions: Sequence[Mapping[str, NDArray[np.int64]]]) -> Sum:
    """The sum over sites."""
    points = {
        name: sum((one[name] for one in contributions), np.zeros(block.shape, dtype=np.int64))
        for name, block in query.blocks.items()
    }
    return Sum(query, tuple(str(i) for i in range(len(contributions))), points)


def write_hospital(folder: Path, name: str, people: People, chosen: Sequence[int], tag: str = "p") -> Path:
    """A hospital's folder with its manifest and site file; a third of the patients in each split. The site file."""
    place = folder / name
    place.mkdir(parents=True)
    rows = []
    for position, i in enumerate(chosen):
        split = ("train", "validation", "test")[position % 3]
        for row in people.rows[i]:
            values = [f"{3 * float(value):.9g}" for value in row[:FEATURES]]
            sex = (*SEX, "unknown")[people.sex[i]]
            rows.append([f"{tag}{i:04d}", *values, sex, 40 + 30 * int(people.age[i]), int(people.label[i]), split])
    with (place / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", *(f"f{i}" for i in range(FEATURES)), "sex", "age", "disease", "split"])
        writer.writerows(rows)
    content = {
        "site": name,
        "data": {"manifest": "manifest.csv", "splits": {"column": "split"}, "synthetic": True},
        "caps": {"cohort_minimum": 1, "models": ["tests.tiny:*"]},
    }
    (place / "site.yaml").write_text(yaml.safe_dump(content))
    return place / "site.yaml"


def write_study(folder: Path, hospitals: Path, method: Mapping[str, Any], workers: int = 1, **changes: Any) -> Path:
    """A study file over hospitals' folders, with the vendor's weights beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vendor.safetensors").write_bytes(weights_file())
    study = make_study(method)
    value = json.loads(study.model_dump_json(by_alias=True))
    value["model"]["weights"] = {"path": "vendor.safetensors"}
    value["simulation"] = {"hospitals": {"kind": "folders", "path": str(hospitals)}, "workers": workers}
    value.update(changes)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(value))
    return path
