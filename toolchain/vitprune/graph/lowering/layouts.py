"""Where the token rows of a batch lie: how many every image has, and how to go between pads and none."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitprune.graph import types
from vitprune.graph.emit import FLOAT, INT64, Emitter
from vitprune.graph.types import Tensor, dims


@dataclass(eq=False)
class Layout:
    """Rows of all images, [B,N,...] with pads or packed [T,...] without.

    Attributes:
        emit: where nodes go. keep: bool [B,K], the patch rows that are there; None = all rows of `like`. prefix: rows ahead of the patches.
        like: a tensor [B,N,...] of a layout in which all rows are there.
    """

    emit: Emitter
    keep: Tensor | None = None
    prefix: int = 0
    like: Tensor | None = None
    _made: dict[str, Tensor] = field(default_factory=dict)

    def live(self) -> Tensor:
        """int64 [B,N], 1 on rows that are there."""
        if "live" not in self._made:
            emit = self.emit
            if self.keep is None:
                shape = emit.op("Shape", [types.given(self.like)], "shape", dtype=INT64, start=0, end=2)
                live = emit.op("Expand", [emit.constant([1]), shape], "live", dtype=INT64)
            else:
                live = emit.op("Cast", [self.keep], "kept", dtype=INT64, to=7)
                if self.prefix:
                    ahead = emit.constant([0, self.prefix, 0, 0])
                    live = emit.op("Pad", [live, ahead, emit.constant(1)], "live", dtype=INT64)
            self._made["live"] = live
        return self._made["live"]

    def ends(self) -> Tensor:
        """int64 [B+1]: where the rows of an image begin and end."""
        if "ends" not in self._made:
            emit = self.emit
            counts = emit.op("ReduceSum", [self.live(), emit.constant([1])], "counts", dtype=INT64, keepdims=0)
            behind = emit.op("CumSum", [counts, emit.constant(0)], "behind", dtype=INT64)
            self._made["ends"] = emit.op("Concat", [emit.constant([0]), behind], "ends", dtype=INT64, axis=0)
        return self._made["ends"]

    def starts(self) -> Tensor:
        """int64 [B,1]: the first row of every image."""
        if "starts" not in self._made:
            emit = self.emit
            first = emit.slice(self.ends(), 0, -1, 0, "first", dtype=INT64)
            self._made["starts"] = emit.op("Unsqueeze", [first, emit.constant([1])], "starts", dtype=INT64)
        return self._made["starts"]

    def rows(self) -> Tensor:
        """int64 [T]: the rows that are there, numbered through [B*N]."""
        if "rows" not in self._made:
            emit = self.emit
            flat = emit.op("Reshape", [self.live(), emit.constant([-1])], "flat", dtype=INT64)
            found = emit.op("NonZero", [flat], "found", dtype=INT64)
            self._made["rows"] = emit.op("Squeeze", [found, emit.constant([0])], "rows", dtype=INT64)
        return self._made["rows"]

    def place(self) -> Tensor:
        """int64 [B,N]: the packed row of every row; that of a row before it on pads."""
        if "place" not in self._made:
            emit = self.emit
            flat = emit.op("Reshape", [self.live(), emit.constant([-1])], "flat/live", dtype=INT64)
            passed = emit.op("CumSum", [flat, emit.constant(0)], "passed", dtype=INT64)
            before = emit.op("Sub", [passed, emit.constant([1])], "before", dtype=INT64)
            shape = emit.op("Shape", [self.live()], "live/shape", dtype=INT64)
            self._made["place"] = emit.op("Reshape", [before, shape], "place", dtype=INT64)
        return self._made["place"]

    def pack(self, x: Tensor, rank: int, label: str) -> Tensor:
        """[T,...] of x [B,N,...]; rank: of x."""
        inner = [size for size in dims(x)[2:] if isinstance(size, int)]
        if len(dims(x)) == rank == len(inner) + 2:
            shape = self.emit.constant([-1, *inner])
        else:
            behind = self.emit.op("Shape", [x], f"{label}/inner", dtype=INT64, start=2)
            shape = self.emit.op("Concat", [self.emit.constant([-1]), behind], f"{label}/shape", dtype=INT64, axis=0)
        flat = self.emit.op("Reshape", [x, shape], f"{label}/joined", dtype=x.dtype or FLOAT)
        if self.keep is None:
            return flat
        return self.emit.op("Gather", [flat, self.rows()], f"{label}/packed", dtype=x.dtype or FLOAT, axis=0)

    def unpack(self, x: Tensor, label: str) -> Tensor:
        """[B,N,...] of x [T,...]; pads repeat a row before them."""
        return self.emit.op("Gather", [x, self.place()], f"{label}/padded", dtype=x.dtype or FLOAT, axis=0)
