"""What a run shows on the terminal while it goes: phase, round, sites, time left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from equipoise.common.query import Query
    from equipoise.server.engine import Finished


class ProgressBars:
    """A watcher that draws one bar over the releases of the present run and one over the sites of a release."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            # In a file or a pipe a bar would be an empty line.
            disable=not console.is_terminal,
        )
        self._run = self._progress.add_task("connecting", total=None)
        self._sites = self._progress.add_task("hospitals", total=None, visible=False)

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Name a step that is not a release."""
        self._progress.update(self._run, description=text, total=None, completed=0)
        self._progress.update(self._sites, visible=False)

    def began(self, run: str, query: Query, number: int, planned: int, sites: Sequence[str]) -> None:
        """Show where the run is."""
        self._progress.update(self._run, description=f"{run}: {query.phase}", total=planned, completed=number)
        # Drawn at once: a short phase would be over before the next regular drawing.
        self._progress.update(self._sites, visible=True, total=len(sites), completed=0, refresh=True)

    def answered(self, site: str) -> None:
        """One more hospital."""
        self._progress.advance(self._sites)

    def finished(self, run: str, release: Finished) -> None:
        """One more release."""
        self._progress.update(self._run, description=f"{run}: {release.query.phase}", completed=release.number + 1)
