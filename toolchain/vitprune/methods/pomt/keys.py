"""Recipe keys and site options of POMT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vitprune.methods.base import MethodParams

if TYPE_CHECKING:
    pass


class Params(MethodParams):
    """Recipe keys of POMT.

    stages: the one block after whose attention tokens leave. remove: R, by how many tokens the sequence gets shorter; R + 1
    patches leave and their mean comes in, so R = 0 changes nothing but the order of tokens.
    """

    method: Literal["pomt"] = "pomt"
    stages: list[int] = Field(default=[3], min_length=1, max_length=1)
    remove: int = Field(default=56, ge=0, le=65536)
