"""Which release a coordinator asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """Which release of which run, as the coordinator names it."""

    study: str
    run: str  # of one arm, "<run>/<arm>"
    number: int
    head: str  # of the coordinator's transcript
    attempt: int = 0  # at a release through the secure sum, whose contributions are made anew

    @property
    def whole_run(self) -> str:
        """The run that the arm belongs to."""
        return self.run.partition("/")[0]

    @property
    def place(self) -> tuple[str, str, int, int]:
        """Key of the release."""
        return self.study, self.run, self.number, self.attempt
