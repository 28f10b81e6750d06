"""The house: who may import whom, what is installed under which name, and what a command line must not load."""

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("common", "client", "server", "simulations")
# What each part may import of the others; the files of equipoise/ itself are the top (cli) or the ground (envelope).
ALLOWED = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "server", "client", "common"},
}
YARDSTICKS = "yardsticks"
GROUND = {"equipoise", "equipoise.envelope", "equipoise.quiet"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name; the symbolic links in equipoise/ are the folders themselves.

    Scripts in `yardsticks` are no modules: they run where equipoise is not installed, and must not import it.
    """
    found = {}
    for folder in (*FOLDERS, "equipoise"):
        # The links are passed by, and would be walked through by a recursive search.
        patterns = ("*.py", "commands/*.py") if folder == "equipoise" else ("**/*.py",)
        for file in sorted(file for pattern in patterns for file in (ROOT / folder).glob(pattern)):
            relative = file.relative_to(ROOT).with_suffix("")
            if relative.parent.name == YARDSTICKS:
                continue
            parts = list(relative.parts if folder == "equipoise" else ("equipoise", *relative.parts))
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports; of the package's own, the module itself where a name is one.

    Args:
        everywhere: also those inside functions and under TYPE_CHECKING, which are no imports at load time.
    """
    tree = ast.parse(file.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else str(node.module))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_dependencies_point_one_way(name: str) -> None:
    part = name.split(".")[1] if name.count(".") else ""
    for imported in imports(MODULES[name]):
        top, _, rest = imported.partition(".")
        assert top not in FOLDERS, f"{name} imports {imported}; write equipoise.{imported}"
        if part in ALLOWED and top == "equipoise" and imported not in GROUND:
            assert rest.split(".")[0] in ALLOWED[part], f"{name} imports {imported}"
        if part == "common":
            assert top not in ("flwr", "ray", "grpc"), f"{name} imports {imported}; common knows no network"


def test_no_circle_of_imports() -> None:
    graph = {name: {i for i in imports(file, everywhere=False) if i in MODULES} for name, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter, started in the checkout, where bare imports would work by accident."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_imported_under_its_bare_name() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    loaded = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(*sys.modules)"
    ).split()
    assert set(names) <= set(loaded)
    bare = {name for name in loaded if name.split(".")[0] in FOLDERS}
    assert not bare, f"loaded twice, under two names: {sorted(bare)}"


def test_common_loads_no_flower() -> None:
    names = [name for name in MODULES if name.startswith("equipoise.common")]
    loaded = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(*sys.modules)"
    ).split()
    assert not {name.split(".")[0] for name in loaded} & {"flwr", "ray"}


def test_a_study_without_noise_loads_neither_the_accountant_nor_statistics() -> None:
    names = ["equipoise.simulations.runner", "equipoise.server.verify", "equipoise.client.host"]
    loaded = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(*sys.modules)"
    ).split()
    assert not set(loaded) & {"dp_accounting", "mpmath", "scipy.stats", "scipy.optimize", "scipy.signal"}


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["simulate", "--help"]])
def test_the_command_line_is_light(arguments: list[str]) -> None:
    """Help and version are asked for on machines and in shells where torch takes seconds."""
    loaded = python(
        f"import sys\nsys.argv = ['equipoise', *{arguments!r}]\nfrom equipoise.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print()\nprint(*sys.modules)"
    )
    heavy = {name.split(".")[0] for name in loaded.splitlines()[-1].split()}
    assert not heavy & {"torch", "flwr", "ray", "scipy", "pyarrow", "torchmetrics", "opacus", "numpy"}


def test_the_client_app_loads_no_torch() -> None:
    """The stub runs in the SuperNode's process; what needs torch is behind the door."""
    loaded = python("import sys\nimport equipoise.client.app\nprint(*sys.modules)").split()
    assert "torch" not in loaded


def test_every_package_is_listed_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    there = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == there
    folders = {"equipoise", *(f"equipoise.{folder}" for folder in (*FOLDERS, "commands"))}
    assert set(project["tool"]["setuptools"]["package-dir"]) == folders


def test_every_file_that_is_no_python_is_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*"):
            if file.is_dir() or file.suffix in (".py", ".pyc") or file.parent.name == "results":
                continue  # figures of benchmarks are kept in the repository and not installed
            package = ".".join(("equipoise", *file.relative_to(ROOT).parent.parts))
            assert any(file.match(pattern) for pattern in listed.get(package, [])), f"{file}: not in package-data"


def test_every_dependency_is_pinned_at_a_version_that_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name: version for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))}
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        needed = Requirement(text)
        version = pins.get(canonicalize_name(needed.name))
        assert version is not None, f"{needed.name} is not in constraints.txt"
        assert needed.specifier.contains(version), f"{needed.name}=={version} is not {needed.specifier}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_are_linked_into_the_package(folder: str) -> None:
    link = ROOT / "equipoise" / folder
    assert link.is_symlink(), "a copy would go its own way"
    assert link.resolve() == ROOT / folder


def test_a_yardstick_imports_nothing_of_equipoise() -> None:
    scripts = [file for folder in FOLDERS for file in (ROOT / folder).rglob(f"{YARDSTICKS}/*.py")]
    assert len(scripts) >= 3
    for file in scripts:
        assert "equipoise" not in {name.partition(".")[0] for name in imports(file)}, file
