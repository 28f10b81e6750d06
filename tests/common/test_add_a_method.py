"""docs/add-a-method.md: the method that it shows is complete, can be registered, and does what the page says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import save

from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, StudyError
from equipoise.common.factory import load_factory
from equipoise.common.methods import METHODS, control_of, resolve
from equipoise.common.methods.method import Method, Outcome
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study

PAGE = Path(__file__).resolve().parents[2] / "docs/add-a-method.md"


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Method:
    """The page's method, loaded from the page and registered."""
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert code is not None
    module = ModuleType("equipoise.common.methods.recentre")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    found = module.METHOD
    assert isinstance(found, Method)
    monkeypatch.setitem(METHODS, found.name, found)
    return found


def study(**parameters: object) -> Study:
    return Study.model_validate(
        {
            "study": "toy",
            "model": {"factory": "equipoise.common.models:mlp", "arguments": {"features": 4}},
            "inputs": {"kind": "table", "features": [{"name": n, "range": [0, 1]} for n in ("u", "v")]},
            "label": {"column": "sick", "positive": 1},
            "attributes": [{"name": "sex", "levels": ["female", "male"], "primary": True}],
            "method": {"name": "recentre", **parameters},
            "sites": {"declared_patients": {"north": 60, "south": 40}},
        }
    )


def classifier() -> Classifier:
    network = load_factory("equipoise.common.models:mlp", {"features": 4})
    return Classifier.of(save(network.state_dict()), network, "head.")


def answer(query: Query, patients: list[list[float]], scores: list[list[float]]) -> Sum:
    """The sum that sites would release, written by hand."""
    return Sum(query, ("north", "south"), query.encode({"patients": np.array(patients), "scores": np.array(scores)}))


# Groups female, male, unknown; labels 0, 1: 30 of 100 patients are positive, whose mean score is 0.5.
PATIENTS = [[40.0, 10.0], [28.0, 18.0], [2.0, 2.0]]
SCORES = [[18.0, 7.0], [12.0, 11.0], [1.0, 1.0]]
# logit(0.3) - logit(0.5)
MOVE = -0.8472978603872037


def test_it_moves_the_head_by_the_numbers_and_nothing_else(method: Method) -> None:
    start, toy = classifier(), study(rounds=1)
    steps = method.run(toy, start)
    query = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(answer(query, PATIENTS, SCORES))
    outcome = end.value.value
    assert isinstance(outcome, Outcome)
    assert outcome.notes == {"moves": [pytest.approx(MOVE, abs=1e-12)]}
    moved = {name for name, value in outcome.classifier.state.items() if not np.array_equal(value, start.base[name])}
    assert moved == {"head.bias"}
    change = outcome.classifier.state["head.bias"] - start.base["head.bias"]
    np.testing.assert_allclose(change, [MOVE], rtol=1e-6)
    assert outcome.classifier.state["head.bias"].dtype == np.float32


def test_a_smaller_step_goes_a_part_of_the_way_and_the_next_round_sees_the_moved_model(method: Method) -> None:
    start, toy = classifier(), study(rounds=2, step=0.25)
    steps = method.run(toy, start)
    first = next(steps)
    second = steps.send(answer(first, PATIENTS, SCORES))
    assert "model.head" not in first.inputs
    np.testing.assert_allclose(
        second.inputs["model.head"]["head.bias"] - start.base["head.bias"], [MOVE / 4], rtol=1e-5
    )


def test_what_it_asks_is_its_plan(method: Method) -> None:
    toy, model = study(rounds=3), classifier()
    planned = method.plan(toy, model)
    steps = method.run(toy, model)
    asked = [next(steps)]
    for _ in planned[1:]:
        asked.append(steps.send(answer(asked[-1], PATIENTS, SCORES)))
    assert [query.public for query in asked] == [query.public for query in planned]
    with pytest.raises(StopIteration):
        steps.send(answer(asked[-1], PATIENTS, SCORES))


def test_patients_of_one_class_are_an_error_with_a_remedy(method: Method) -> None:
    steps = method.run(study(), classifier())
    query = next(steps)
    with pytest.raises(DataError, match=r"one class; check label\.positive"):
        steps.send(answer(query, [[50.0, 0.0], [50.0, 0.0], [0.0, 0.0]], SCORES))


def test_once_registered_it_resolves_with_its_parameters_and_controls(method: Method) -> None:
    assert resolve(study(rounds=2, controls=["head"])) is method
    control = control_of(study(), "head")
    assert control is not None
    assert control.method.name == "fine_tune"
    resolve(control)
    with pytest.raises(StudyError, match="did you mean 'rounds'"):
        resolve(study(round=2))
    with pytest.raises(StudyError, match="no meaning for method 'recentre'"):
        resolve(study(controls=["no_mask"]))


def test_it_is_registered_by_nothing_but_the_page(method: Method) -> None:
    text = PAGE.read_text()
    assert f"`{method.name}.METHOD,`" in text
    assert f"common/methods/{method.name}.py" in text
