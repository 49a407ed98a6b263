"""The error of this package."""

from __future__ import annotations


class PluginError(RuntimeError):
    """The native library could not be found, built, loaded or used.

    Attributes:
        code: "VP2xx" for input that the operator refuses, "VP6xx" for the library itself.
        cause: what is wrong, one sentence.
        next_step: what to do about it.
    """

    def __init__(self, code: str, cause: str, next_step: str) -> None:
        super().__init__(f"{code}: {cause} {next_step}")
        self.code = code
        self.cause = cause
        self.next_step = next_step
