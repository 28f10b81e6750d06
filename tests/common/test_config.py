"""Strict files: every fault is one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from equipoise.common.config import override, read_yaml, validate
from equipoise.common.errors import StudyError
from equipoise.common.sitefile import Site, load_site
from equipoise.common.study import Study
from tests.tiny import make_study, site_file

GOOD_SITE = site_file("a").model_dump(mode="json")


def complaint(model: Any, value: Any) -> str:
    with pytest.raises(StudyError) as caught:
        validate(model, value, "file.yaml")
    text = str(caught.value)
    assert text.startswith("file.yaml: ")
    assert "\n" not in text
    assert "pydantic" not in text
    return text


def with_key(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    result: dict[str, Any] = {**value}
    place = result
    for parent in parents:
        place[parent] = {**place[parent]}
        place = place[parent]
    place[last] = new
    return result


def study_value(path: str | None = None, new: Any = None) -> dict[str, Any]:
    value = make_study().model_dump(mode="json", by_alias=True)
    return value if path is None else with_key(value, path, new)


def test_a_good_study_and_a_good_site_pass() -> None:
    assert validate(Study, study_value(), "file.yaml") == make_study()
    assert validate(Site, GOOD_SITE, "file.yaml") == site_file("a")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("metod", "did you mean 'method'?"),
        ("model.factry", "did you mean 'factory'?"),
        ("evaluation.gates.worst_group_auc_los", "did you mean 'worst_group_auc_loss'?"),
        ("sites.zzz", "known keys: "),
        ("inputs.colour", "known keys: "),
        ("privacy.epsilom", "did you mean 'epsilon'?"),
        ("privacy.split.tests", "did you mean 'test'?"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(path: str, hint: str) -> None:
    text = complaint(Study, study_value(path, 1))
    assert "unknown key" in text
    assert path.rpartition(".")[2] in text
    assert hint in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", "many"),
        ("seed", -1),
        ("seed", 1.5),
        ("study", "A Study!"),
        ("study", ""),
        ("model", "resnet"),
        ("model.factory", "os.system"),
        ("model.factory", "os:"),
        ("model.head", ""),
        ("model.weights", "vendor.safetensors"),
        ("model.weights", {"path": "x", "sha256": "abc"}),
        ("label", []),
        ("attributes", []),
        ("attributes", "sex"),
        ("inputs.kind", "text"),
        ("inputs.features", []),
        ("inputs.features", [{"name": "a", "range": [1, 1]}]),
        ("inputs.features", [{"name": "a", "range": [1, 2, 3]}]),
        ("inputs.features", [{"name": "a", "range": [0, float("inf")]}]),
        ("privacy.mode", "open"),
        ("evaluation.bins", 4),
        ("evaluation.margin", 0),
        ("evaluation.gates.balanced_accuracy", "base-x"),
        ("sites.minimum", 0),
        ("sites.quorum", 1.5),
        ("sites.deadline_s", 0),
        ("sites.declared_patients", {"a": -1}),
        ("sites.declared_patients", [3]),
        ("simulation", {"hospitals": {"kind": "mars"}}),
    ],
)
def test_a_wrong_value_is_named_with_its_key(path: str, value: Any) -> None:
    text = complaint(Study, study_value(path, value))
    assert path.partition(".")[0] in text


@pytest.mark.parametrize("key", ["study", "model", "inputs", "label", "attributes"])
def test_a_missing_key_is_named(key: str) -> None:
    value = study_value()
    del value[key]
    assert f"key '{key}' is missing" in complaint(Study, value)


@pytest.mark.parametrize(
    "attributes",
    [
        [{"name": "sex", "levels": ["f", "m"]}],  # none is primary
        [
            {"name": "sex", "levels": ["f", "m"], "primary": True},
            {"name": "age", "levels": ["a", "b"], "primary": True},
        ],
        [{"name": "sex", "levels": ["f", "m"], "primary": True}, {"name": "sex", "levels": ["a", "b"]}],
        [{"name": "sex", "levels": ["f"], "primary": True}],
        [{"name": "sex", "levels": ["f", "f"], "primary": True}],
        [{"name": "sex", "levels": ["f", "unknown"], "primary": True}],
        [{"name": "age", "kind": "cut", "levels": ["a", "b"], "primary": True}],
        [{"name": "age", "kind": "cut", "cuts": [60, 40], "primary": True}],
        [{"name": "age", "kind": "levels", "cuts": [60], "primary": True}],
    ],
)
def test_attributes_that_do_not_agree(attributes: Any) -> None:
    complaint(Study, study_value("attributes", attributes))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("site", "St Mary's"),
        ("data.splits", {"train": 0.5, "validation": 0.2, "test": 0.2}),
        ("data.splits", {"train": 0.6, "validation": 0.2, "test": 0.2}),  # no key
        ("data.split_key", "not hexadecimal"),
        ("data.synthetic", "perhaps"),
        ("caps.cohort_minimum", 0),
        ("caps.epsilon_limit", 3),
        ("caps.methods", "swift"),
        ("coding", ["F"]),
        ("allow_none", "all"),
    ],
)
def test_a_wrong_site_file(path: str, value: Any) -> None:
    complaint(Site, with_key(GOOD_SITE, path, value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "line 2: .*'a' is written twice"),
        ("b:\n  c: 1\n  d: 2\n  c: 3\n", "line 4: .*'c' is written twice"),
        ("a: [1, 2\n", "line 2: not valid YAML"),
        ("a: b: c\n", "line 1: not valid YAML"),
        ("\ta: 1\n", "line 1: not valid YAML"),
        ("a: !!python/object/apply:os.system ['touch x']\n", "line 1: not valid YAML"),
        ("- a\n- b\n", "expected a mapping of keys, found list"),
        ("", "expected a mapping of keys, found NoneType"),
        ("a: \x07\n", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(StudyError, match=words) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such file"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(StudyError, match="it is a folder; give the path of a YAML file"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(StudyError, match=r"cannot be read: .*; save it as UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


QUOTES = "expected text; put it in quotes, since YAML reads yes, no, on and off as true and false"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("coding: {disease: {yes: 1, no: 0}}", "coding.disease: key True: "),
        ("coding: {disease: {1: yes}}", "coding.disease.1=True: "),
        ("coding: {on: {a: b}}", "coding: key True: "),
    ],
)
def test_a_truth_in_a_site_file_is_no_word_of_the_manifest(tmp_path: Path, text: str, where: str) -> None:
    """As text it would be "True", which no cell says: all patients of the hospital would count as healthy."""
    file = tmp_path / "site.yaml"
    file.write_text(f"site: a\ndata: {{manifest: m.csv, splits: {{column: s}}}}\n{text}\n")
    with pytest.raises(StudyError) as caught:
        load_site(file)
    assert f"{file}: {where}{QUOTES}" in str(caught.value)
    file.write_text(file.read_text().replace(text, 'coding: {disease: {"yes": 1, "no": 0}}'))
    assert load_site(file).coding == {"disease": {"yes": "1", "no": "0"}}


@pytest.mark.parametrize("columns", [{"disease": True}, {True: "dis"}])
def test_a_truth_is_no_column(columns: dict[Any, Any]) -> None:
    assert QUOTES in complaint(Site, with_key(GOOD_SITE, "data.columns", columns))


@pytest.mark.parametrize(
    ("label", "where"),
    [
        ({"column": "disease", "positive": True}, "label.positive=True: "),
        ({"column": "disease", "positive": ["1", True]}, "label.positive.1=True: "),
        ({"column": "disease", "positive": "1", "negative": False}, "label.negative=False: "),
        ({"column": True, "positive": "1"}, "label.column=True: "),
    ],
)
def test_a_truth_in_a_study_is_no_label(label: dict[str, Any], where: str) -> None:
    assert where + QUOTES in complaint(Study, study_value("label", label))


def test_no_label_and_an_empty_one_are_none() -> None:
    assert "label.positive: " in complaint(Study, study_value("label", {"column": "disease", "positive": []}))
    assert "label.positive.0: expected text" in complaint(Study, study_value("label.positive", [None]))
    assert "coding.sex.f: expected text" in complaint(Site, with_key(GOOD_SITE, "coding", {"sex": {"f": None}}))
    assert validate(Study, study_value("label.positive", [1, 2.5]), "file.yaml").label.positive == ["1", "2.5"]


@pytest.mark.parametrize(
    ("model", "path", "value", "words"),
    [
        (Study, "model.arguments", {"a": [1]}, "model.arguments.a: expected true or false, a number or text"),
        (Study, "evaluation.gates.balanced_accuracy", [1], "expected a number or text"),
        (Site, "approve", 3, "approve=3: expected 'manual' or a list"),
        (Site, "approve", ["x"], "approve.0='x': expected 64 hexadecimal digits (0-9 a-f)"),
        (Site, "caps.methods", [3], "caps.methods.0=3: expected text; put it in quotes"),
        (Study, "study", "A study", "study='A study': expected up to 64 lower-case letters, digits"),
        (Site, "data.split_key", "xyz", "expected an even number of hexadecimal digits"),
        (Site, "peers", {"keys": {"b": "c"}}, "expected a public key as its site shows it, beginning with ed25519:"),
        (Study, "model.factory", "os.system", "model.factory='os.system': expected module:function"),
        (Study, "seed", 1.5, "seed=1.5: expected an integer"),
        (Study, "seed", True, "seed=True: expected an integer"),  # as YAML reads yes
        (Study, "sites.quorum", True, "sites.quorum=True: expected a number"),
        (Study, "sites.declared_patients", {"a": True}, "sites.declared_patients.a=True: expected an integer"),
        (Site, "caps.epsilon", True, "caps.epsilon=True: expected a number"),
        (Study, "simulation", {"hospitals": {"kind": "synthetic", "count": True}}, "count=True: expected an integer"),
    ],
)
def test_what_was_expected_is_said_in_words(model: Any, path: str, value: Any, words: str) -> None:
    good = study_value() if model is Study else GOOD_SITE
    text = complaint(model, with_key(good, path, value))
    assert words in text
    assert "more)" not in text  # kinds of one value are one fault
    assert "pattern" not in text


def test_overrides_change_a_copy() -> None:
    value = {"method": {"name": "swift", "rounds": {"head": 5}}, "seed": 1}
    changed = override(
        value, ["method.rounds.head=2", "method.lr=0.5", "sites.minimum=1", "seed=[1, 2]", "method.name=a=b"]
    )
    assert changed == {
        "method": {"name": "a=b", "rounds": {"head": 2}, "lr": 0.5},
        "sites": {"minimum": 1},
        "seed": [1, 2],
    }
    assert value == {"method": {"name": "swift", "rounds": {"head": 5}}, "seed": 1}


@pytest.mark.parametrize("assignment", ["seed", "seed.x=1", "method.lr=[1", "method.name.x=1"])
def test_an_override_that_makes_no_sense(assignment: str) -> None:
    with pytest.raises(StudyError, match="--set") as caught:
        override({"seed": 1, "method": {"name": "swift"}}, [assignment])
    assert "\n" not in str(caught.value)


def test_paths_of_a_site_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "site.yaml"
    file.write_text(
        "site: a\ndata: {manifest: m.csv, images: ../i.zip, splits: {column: s}}\ncoding: {sex: {1: F, ~: x}}\n"
    )
    site = load_site(file)
    assert site.data.manifest == str(tmp_path / "here" / "m.csv")
    assert site.data.images == str(tmp_path / "i.zip")
    assert site.coding == {"sex": {"1": "F", "": "x"}}
