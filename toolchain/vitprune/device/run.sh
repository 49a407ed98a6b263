#!/bin/sh
# Builds, validates and times this package's TensorRT engine on this device. Nothing is installed or downloaded.
#
#   ./run.sh              on the device                     VITPRUNE_PYTHON=/path/to/python3 chooses the interpreter
#   ./run.sh --rehearse   on any machine: ONNX Runtime in place of TensorRT, no engine
#   ./run.sh --verify     only the hashes                   ./run.sh --help for the rest
#
# Results: out/ (out-rehearsal/). Exit 0 fine, 1 a gate failed, 2 could not run.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 2
runtimes="tensorrt onnxruntime"
for argument in "$@"; do
    [ "$argument" = --rehearse ] && runtimes=onnxruntime
done

# An empty entry in PYTHONPATH stands for the current folder, from which nothing is to be imported.
PYTHONPATH=$(printf %s "${PYTHONPATH:-}" | sed 's/::*/:/g; s/^://; s/:$//')
if [ -n "$PYTHONPATH" ]; then export PYTHONPATH; else unset PYTHONPATH; fi
PYTHONSAFEPATH=1
export PYTHONSAFEPATH # Python 3.11 and newer; 3.10 is told in the scripts themselves

# works PYTHON MODULE...: whether that interpreter is recent enough and has the modules
works() {
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" - "$@" <<'PY' >/dev/null 2>&1
import sys
sys.path[:] = [entry for entry in sys.path if entry]
from importlib.util import find_spec
sys.exit(not (sys.version_info >= (3, 10) and all(find_spec(name) for name in sys.argv[2:])))
PY
}

candidates=${VITPRUNE_PYTHON:-"python3 /usr/bin/python3 python3.12 python3.10 python3.11 python3.13"}
[ -n "${VITPRUNE_PYTHON:-}" ] && separator='' || separator=' '
# first choice: an interpreter that has the runtime; last choice: any, which then says what is missing
for runtime in $runtimes json; do
    old_ifs=$IFS
    IFS=$separator
    for python in $candidates; do
        IFS=$old_ifs
        if [ "$runtime" = json ]; then works "$python"; else works "$python" numpy "$runtime"; fi &&
            exec "$python" -B "$here/run.py" "$@"
    done
    IFS=$old_ifs
done
echo "error VP237 there is no Python for this package" >&2
echo "  cause none of these is Python 3.10 or newer: $candidates" >&2
echo "  next  set VITPRUNE_PYTHON=/path/to/python3, or install python3 from the system's packages" >&2
exit 2
