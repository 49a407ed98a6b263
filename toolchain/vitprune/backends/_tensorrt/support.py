"""Which TensorRT versions are supported and what differs between them."""

from __future__ import annotations

from vitprune.support.versions import Version

OLDEST = Version.parse("10.3")
BEYOND = Version.parse("12")
# Before this the parser makes a loop of CumSum, and its operator table lists CumSum for floating point alone.
CUMULATIVE_LAYER = Version.parse("10.8")
# From here on every network is strongly typed and the flag for it does nothing.
ALWAYS_TYPED = Version.parse("11")


def unsupported(version: str) -> str:
    """Why a TensorRT version cannot be used, or ""."""
    found = Version.find(version)
    if found is None:
        return f"tensorrt says its version is '{version}'"
    if found < OLDEST:
        return f"TensorRT {found} is older than {OLDEST}, which is the first with all of the plugin interface that is used"
    return f"TensorRT {found} is newer than what was looked at (below {BEYOND})" if found >= BEYOND else ""


def engine_mismatch(built: str, here: str, version_compatible: bool) -> str:
    """Why an engine built by one TensorRT version cannot be loaded by another, or "".

    A plan belongs to the exact release (three numbers). A version-compatible one loads in any later release of the same major.
    """
    old, new = Version.find(built), Version.find(here)
    if old is None or new is None:
        return "" if built == here else f"built by TensorRT '{built}', here is '{here}'"
    if version_compatible:
        if old.numbers[0] == new.numbers[0] and new.minor() >= old.minor():
            return ""
        return f"it loads in TensorRT {old.minor()} and later releases of {old.numbers[0]}.x; here is {new}"
    same = (*old.numbers, 0, 0)[:3] == (*new.numbers, 0, 0)[:3]
    return "" if same else f"it was built by TensorRT {old}, here is {new}; a plan belongs to one release"
