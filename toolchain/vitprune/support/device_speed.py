"""What a device can do by its data sheet, for the launch model; constants stand in the target files, each with its source."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# Data sheets state bf16 with fp16 and fp8 with int8 wherever the hardware has them.
_SAME_RATE = {"bf16": "fp16", "fp8": "int8"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LaunchTime(_Section):
    """Microseconds that the host or the GPU spends beside the work itself.

    kernel_us: to start a kernel from a stream. captured_us: the same inside a CUDA graph. copy_us: a count that is copied to the host and
    waited for, as a data-dependent shape asks for at every site.
    """

    kernel_us: float = Field(gt=0)
    captured_us: float = Field(gt=0)
    copy_us: float = Field(gt=0)


class Speed(_Section):
    """Peaks of a module's data sheet: memory in GB/s, dense (not sparse) arithmetic in 10^12 operations a second by number type."""

    memory_gbs: float = Field(gt=0)
    tera_ops: dict[str, float]

    def macs_per_second(self, mode: str) -> float | None:
        """Multiply-accumulates a second in a number type (two operations each), None where the data sheet has none."""
        found = self.tera_ops.get(mode, self.tera_ops.get(_SAME_RATE.get(mode, "")))
        return None if found is None else found * 1e12 / 2
