"""The exception tree.

    VitpruneError                 exit 2
      RecipeError        VP1xx    recipe and usage
      TargetError        VP2xx    environment and target
      ExportError        VP3xx    export and surgery
      PreflightError     VP4xx    static checks for a target
      BuildError         VP5xx    engine builds
      LoadError          VP6xx    bundles, engines, runtimes
      GateError          VP7xx    a gate failed, exit 1
      TrainError         VP8xx    training cannot go on

Every error says what happened, why, and what to type next.
"""

from __future__ import annotations


class VitpruneError(Exception):
    """Base of all errors meant for the user.

    Attributes:
        code: stable identifier such as "VP104".
        message: what happened, one sentence.
        cause: why, or "".
        next_step: what to do or type next, or "".
    """

    family = 0
    exit_code = 2

    def __init__(self, number: int, message: str, *, cause: str = "", next_step: str = "") -> None:
        if self.family and number // 100 != self.family:
            raise ValueError(f"{type(self).__name__} takes codes {self.family}xx, not {number}")
        self.code = f"VP{number}"
        self.message = message
        self.cause = cause
        self.next_step = next_step
        super().__init__(f"{self.code}: {message}")

    def document(self) -> dict[str, str]:
        """The error as a JSON-ready mapping."""
        return {"code": self.code, "message": self.message, "cause": self.cause, "next_step": self.next_step}


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, its type where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class RecipeError(VitpruneError):
    """The recipe or the command line is wrong."""

    family = 1


class TargetError(VitpruneError):
    """The environment or the target cannot do what was asked."""

    family = 2


class ExportError(VitpruneError):
    """The model or graph cannot be exported or rewritten."""

    family = 3


class PreflightError(VitpruneError):
    """A static check for a target blocks the build."""

    family = 4


class BuildError(VitpruneError):
    """An engine could not be built."""

    family = 5


class LoadError(VitpruneError):
    """A bundle, engine or data file cannot be used."""

    family = 6


class GateError(VitpruneError):
    """A validation gate failed."""

    family = 7
    exit_code = 1


class TrainError(VitpruneError):
    """Training cannot start or go on."""

    family = 8
