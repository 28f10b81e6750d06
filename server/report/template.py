"""Fills a page's template: escaped by default, and an error where a name is missing."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from equipoise.server.report.blocks import Figure


def fill(template: str, **values: object) -> str:
    """The page of one of this folder's templates, given `values` and `style`, the style sheet of all pages."""
    loader = PackageLoader("equipoise.server", "report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["figure"] = lambda block: isinstance(block, Figure)
    style = Markup(loader.get_source(environment, "style.css")[0])  # noqa: S704 (our own file)
    return environment.get_template(template).render(**values, style=style)
