"""The documentation says what the program does: commands, keys, defaults, exit codes, links, words."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
import torch
import typer.main
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from safetensors.torch import save_file
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.common import errors
from equipoise.common.config import override, read_yaml, validate
from equipoise.common.factory import load_factory
from equipoise.common.methods import METHOD_CONTROLS, METHODS, SIMULATION_CONTROLS, resolve
from equipoise.common.methods.whitened import Whitened
from equipoise.common.sitefile import Caps, Site
from equipoise.common.study import Study
from equipoise.common.study_file import load_study
from equipoise.simulations.preflight import check_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Everything that a user reads or runs besides the pages.
FILES = [*PAGES, *CONFIGS, *(ROOT / name for name in ("Makefile", "constraints.txt", ".ci/run", "CITATION.cff"))]
FILES += [ROOT / ".pre-commit-config.yaml", ROOT / "pyproject.toml"]

# Commands of the pages that no script and no test runs, and why; all others are run by .ci/run, `make` or below.
NOT_RUN = {
    ". .venv/bin/activate": "changes the reader's shell",
    "export EQUIPOISE_DATA=~/equipoise-data": "changes the reader's shell",
    "export PYTHONPATH=.": "changes the reader's shell",
    "equipoise simulate configs/demo.yaml": "make demo runs it, with --out",
    "equipoise simulate configs/demo.yaml --resume": "the resume tests run it",
    "equipoise simulate configs/demo.yaml --set method.beta=0.7 --set seed=2 --out runs/beta-0.7": "minutes; parsed",
    "equipoise simulate configs/demo.yaml --method fine_tune --set 'method.controls=[plain]' --out runs/fine-tune": (
        "minutes; parsed"
    ),
    "equipoise simulate configs/demo.yaml --format json --out runs/demo-json": "minutes; parsed",
    "equipoise simulate configs/demo.yaml --set method.granularity=channel --set sites.quorum=1.0 --out runs/channel": (
        "minutes; parsed"
    ),
    "equipoise simulate configs/heart.yaml": "make bench runs it where the data are",
    "equipoise pretrain configs/demo.yaml --out vendor.safetensors": "half a minute; the pretraining has its own tests",
    **{
        f"equipoise ledger {name} sites/st-marys/ledger.sqlite": "tests/e2e/test_ledger_command.py runs this line"
        for name in ("show", "verify", "export")
    },
    "equipoise compare configs/demo.yaml --methods swift,dfr,group_dro --seeds 3": "minutes; tests/e2e/test_compare.py",
    "equipoise compare configs/heart.yaml --methods all": "minutes, on public data",
    "equipoise evaluate configs/icu-scores.yaml --out runs/icu-scores": "tests/e2e/test_evaluate.py runs this file",
    "equipoise evaluate configs/icu-scores.yaml --coordinator coordinator --wait": "needs a deployment",
    'make demo PIP_ARGS="--find-links ~/wheels"': "needs a folder of wheels",
    "make bench": "minutes to an hour",
    "python -c 'import secrets; print(secrets.token_hex(32))'": "Python's own",
    ".venv/bin/pre-commit install": "changes the reader's checkout",
}
# Cheap enough to run here.
RUN_HERE = (
    "equipoise version",
    "equipoise methods",
    "equipoise plan configs/demo.yaml",
    "equipoise plan configs/demo.yaml --format json",
    "equipoise plan configs/private-head.yaml",
    "equipoise plan configs/icu-scores.yaml",
)


def blocks(page: Path, language: str) -> Iterator[str]:
    for found in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S):
        yield found[1]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in the pages' sh blocks."""
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.strip()
    ]


def test_every_command_is_run_by_something_or_listed_as_not_run() -> None:
    scripts = "\n".join((ROOT / name).read_text() for name in (".ci/run", "Makefile"))
    scripts = scripts.replace("$(BIN)/", "").replace("$(DEMO)", "runs/demo").replace("$(MAKE)", "make")
    run_by_a_script = {line.strip() for line in re.sub(r"timeout --foreground \d+ ", "", scripts).splitlines()}
    for page, command in commands():
        if page == "docs/deploy.md":
            continue  # tests/e2e/test_deploy.py runs the page's commands, every one, in their order
        known = command in NOT_RUN or command in RUN_HERE or command in run_by_a_script
        assert known, f"{page}: nothing runs {command!r}; run it in .ci/run or Makefile, or list it in NOT_RUN"
    written = {command for _, command in commands()}
    assert written >= {*NOT_RUN, *RUN_HERE}, "a listed command is on no page any more"


@pytest.mark.parametrize(("page", "command"), [row for row in commands() if row[1].startswith("equipoise ")])
def test_a_command_parses(page: str, command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    with click.Context(group, info_name="equipoise") as context:
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            name, *arguments = arguments
            found = found.get_command(context, name)
        assert found is not None, f"{page}: there is no command {name!r}"
        parsed = found.make_context(name, arguments, parent=context)
    study = parsed.params.get("study_file")
    if study is not None:
        sets = list(parsed.params.get("sets") or [])
        changed = validate(Study, override(read_yaml(ROOT / study), sets), command)
        method = parsed.params.get("method")
        resolve(changed if method is None else changed.with_method(method, controls=changed.method.controls))


@pytest.mark.parametrize(("page", "command"), [row for row in commands() if row[1].startswith("make ")])
def test_a_make_target_exists(page: str, command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target}:.*## \S", (ROOT / "Makefile").read_text(), re.M), f"{page}: no target {target}"


@pytest.mark.parametrize("command", RUN_HERE)
def test_a_cheap_command_runs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout


def sections(page: Path) -> dict[str, str]:
    """Heading (of any level) -> what stands below it, up to the next heading."""
    parts = re.split(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_column(text: str) -> list[str]:
    """What stands in backticks in the first column of the tables of `text`."""
    return re.findall(r"^\| `([^`]+)`", text, re.M)


def test_commands_page_lists_every_command_and_option() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    page = sections(ROOT / "docs/commands.md")
    documented = {name.removeprefix("equipoise ") for name in page if name.startswith("equipoise ")}
    assert documented == set(group.commands)
    for name, command in group.commands.items():
        text = page[f"equipoise {name}"]
        if isinstance(command, click.Group):
            assert set(first_column(text)) == set(command.commands), f"docs/commands.md, equipoise {name}"
            options = {p.opts[0] for c in command.commands.values() for p in c.params if p.param_type_name == "option"}
            assert set(re.findall(r"`(--[a-z-]+)`", text)) == options, f"docs/commands.md, equipoise {name}"
            continue
        names = set()
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            names.add(parameter.opts[0] if is_option else parameter.make_metavar(click.Context(command)))
        assert set(first_column(text)) == names, f"docs/commands.md, equipoise {name}"


def test_commands_page_lists_every_exit_code() -> None:
    documented = {
        int(code) for code in re.findall(r"^\| (\d+) \|", sections(ROOT / "docs/commands.md")["Exit codes"], re.M)
    }
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert documented == {0, 130, *(kind.exit_code for kind in kinds if hasattr(kind, "exit_code"))}


REQUIRED = object()


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside an annotation, below `Annotated`, unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) if not isinstance(part, str) for model in models_in(part)]


def keys_of(model: type[BaseModel], prefix: str = "", default: Any = None) -> Iterator[tuple[str, Any]]:
    """Every key path below `model` with its default (a JSON value) or REQUIRED."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        value = getattr(default, name) if isinstance(default, BaseModel) else default_of(field)
        inner = models_in(field.annotation)
        is_list = get_origin(field.annotation) is list
        # A part that is always there is known by its keys; one that can be left out has a line of its own.
        if not inner or is_list or value is None or (len(inner) > 1 and value is not REQUIRED):
            yield path, value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for part in inner:
            own = value if isinstance(value, BaseModel) and isinstance(value, part) and len(inner) == 1 else None
            yield from keys_of(part, f"{path}[]." if is_list else f"{path}.", own)


def default_of(field: FieldInfo) -> Any:
    return REQUIRED if field.is_required() else field.get_default(call_default_factory=True)


def table(text: str) -> dict[str, Any]:
    """Key -> default of the tables with the columns key, default, means."""
    rows = re.findall(r"^\| `([^`]+)` \| (?:`([^`]*)`|required) \| ", text, re.M)
    assert len(rows) == len(first_column(text)), "a row without a default in backticks, or `required`"
    return {key: REQUIRED if not value else yaml.safe_load(value) for key, value in rows}


def folded(documented: dict[str, Any], keys: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """`keys`, where a part that the page gives as `whitened` stands for its keys: what it changes of their defaults."""
    plain, parts = Whitened(), {}
    for path, value in keys:
        name, _, key = path.partition(".")
        if name.startswith("whitened") and key and name in documented:
            changed = parts.setdefault(name, {})
            if value != getattr(plain, key):
                changed[key] = value
        else:
            yield path, value
    yield from parts.items()


def check_table(documented: dict[str, Any], model: type[BaseModel]) -> None:
    there: dict[str, list[Any]] = {}
    for path, value in folded(documented, keys_of(model)):
        there.setdefault(path, []).append(value)
    assert sorted(documented) == sorted(there)
    for path, value in documented.items():
        assert value in there[path] or str(value) in map(str, there[path]), f"{path}: the default is {there[path]}"


def test_study_file_page_lists_every_key_and_its_default() -> None:
    documented = table((ROOT / "docs/study-file.md").read_text())
    check_table(documented, Study)


def test_site_file_page_lists_every_key_and_its_default() -> None:
    check_table(table((ROOT / "docs/site-file.md").read_text()), Site)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("1.5 Parameters of swift", METHODS["swift"].parameters),
        ("Parameters of the whitened rounds", Whitened),
        *((f"Parameters of {name}", METHODS[name].parameters) for name in METHODS if name not in ("audit", "swift")),
    ],
)
def test_methods_page_lists_every_parameter_and_its_default(heading: str, model: type[BaseModel]) -> None:
    check_table(table(sections(ROOT / "docs/methods.md")[heading]), model)


def test_methods_page_knows_every_method_and_control() -> None:
    page = sections(ROOT / "docs/methods.md")
    trained = [name for name in METHODS if name != "audit"]  # which has no parameters, and a page of its own
    assert {f"Parameters of {name}" for name in trained} <= {re.sub(r"^[\d.]+ ", "", name) for name in page}
    assert first_column(page["Controls"]) == [*METHOD_CONTROLS, *SIMULATION_CONTROLS]


@pytest.mark.parametrize(
    "file", sorted({*ROOT.glob("common/**/*.py"), *ROOT.glob("client/**/*.py")}), ids=lambda f: f.name
)
def test_a_reference_into_the_methods_page_leads_somewhere(file: Path) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    for section, step in re.findall(r"docs/methods\.md, SWiFT (\d\.\d)(?:, step (\d+))?", file.read_text()):
        start = text.index(f"## {section} ")
        below = text[start : text.find("\n## ", start + 1)]
        assert not step or f"\n{step}. **" in below, f"{file.name} refers to SWiFT {section}, step {step}"


MINIMAL_STUDY: dict[str, Any] = {
    "study": "s",
    "model": {"factory": "equipoise.common.models:resnet_small"},
    "inputs": {"kind": "image", "size": 32},
    "label": {"column": "y", "positive": 1},
    "attributes": [{"name": "a", "levels": ["x", "y"], "primary": True}],
    "method": {"name": "swift"},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_in_the_pages_is_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        value = yaml.safe_load(block)
        if page.name == "site-file.md":
            validate(Site, value, page.name)
        elif set(value) == {"caps"}:
            validate(Caps, value["caps"], page.name)
        else:
            whole = {**MINIMAL_STUDY, **value} if block.startswith("# part of a study") else value
            resolve(validate(Study, whole, page.name))


def test_the_model_of_the_quickstart_fits_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/quickstart.md"
    (code,) = blocks(page, "python")
    (tmp_path / "mymodels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (part,) = (yaml.safe_load(block) for block in blocks(page, "yaml") if "mymodels" in block)
    part["model"]["weights"]["path"] = str(tmp_path / "vendor.safetensors")
    study = validate(Study, {**MINIMAL_STUDY, **part}, page.name)
    torch.manual_seed(0)
    save_file(load_factory(study.model.factory, study.model.arguments).state_dict(), tmp_path / "vendor.safetensors")
    check_study(study)
    assert isinstance(load_factory("mymodels:Risk", study.model.arguments), torch.nn.Module)
    assert "-> nn.Module:" in code
    (tmp_path / "unannotated.py").write_text(code.replace("-> nn.Module:", ":"))
    with pytest.raises(errors.ModelError, match="is no model factory"):
        load_factory("unannotated:build", study.model.arguments)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_study_in_configs_is_valid(config: Path) -> None:
    study = load_study(config)
    resolve(study)
    assert study.study == config.stem, "a study is called like its file, and runs into runs/<study>"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            headings = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in sections(file)}
            assert anchor in headings, f"{target}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        todo += [(page.parent / link).resolve() for link in links if not link.startswith("https://")]
    assert {page.resolve() for page in PAGES} <= seen


MACHINE = re.compile(r"(?<![\w.~)$}])/(?:root|home|work|opt|tmp|Users|mnt|srv)/|[A-Z]:\\")
# Hosts that packages come from; where pip finds them is the reader's own configuration.
REGISTRY = re.compile(
    r"pypi|pythonhosted|anaconda|download\.pytorch|whl/cpu|ghcr\.io|docker\.io|huggingface|index-url", re.I
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_machine_path_and_no_registry_host(file: Path) -> None:
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        assert not MACHINE.search(line), f"{file.name}:{number}: a path of one machine: {line}"
        assert not REGISTRY.search(line), f"{file.name}:{number}: the host of a registry: {line}"


VERDICTS = re.compile(r"\b(fair|unbiased|compliant|anonymous|debiased|guaranteed)\b|\bEOdds\b", re.I)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_called_fair(page: Path) -> None:
    text = page.read_text()
    if page.name == "CONTRIBUTING.md":  # states the rule
        text = text.replace("fair,\nunbiased, compliant or anonymous", "")
    assert not (found := VERDICTS.search(text)), f"{page.name}: {found[0]!r}"
