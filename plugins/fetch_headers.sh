#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Gets headers to compile against on a machine that has neither TensorRT nor ONNX Runtime's SDK, out of public packages that
# carry them: NVIDIA's TensorRT 10.14 headers (Apache-2.0) from a PyPI wheel, Microsoft's ONNX Runtime headers (MIT) from an
# npm package of 150 MB, and type stubs of TensorRT's Python interface (MIT). Needs pip, unzip, npm and tar. Nothing is installed:
# the stubs' own dependencies are gigabytes, and their folder `tensorrt` would pass for TensorRT itself.
#
#   fetch_headers.sh DIR [tensorrt|onnxruntime|stubs]
#
# then set TENSORRT_INCLUDE_DIR=DIR/tensorrt ORT_INCLUDE_DIR=DIR/onnxruntime VITPRUNE_TENSORRT_STUBS=DIR/stubs
set -eu

if [ $# -lt 1 ]; then
    echo "usage: $0 DIR [tensorrt|onnxruntime|stubs]" >&2
    exit 2
fi
case ${2:-all} in
all | tensorrt | onnxruntime | stubs) part=${2:-all} ;;
*)
    echo "$0: '$2' is none of tensorrt, onnxruntime, stubs" >&2
    exit 2
    ;;
esac
mkdir -p "$1"
target=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

wanted() {
    [ "$part" = all ] || [ "$part" = "$1" ]
}

if wanted tensorrt && [ ! -f "$target/tensorrt/NvInfer.h" ]; then
    python3 -m pip download --quiet --no-deps kernel-lens==2.0.1
    unzip -q kernel_lens-2.0.1-*.whl 'kernel_lens/include/tensorrt/*'
    cp -r kernel_lens/include/tensorrt "$target/"
fi

if wanted onnxruntime && [ ! -f "$target/onnxruntime/onnxruntime_c_api.h" ]; then
    npm pack --silent com.github.asus4.onnxruntime@0.4.9 >/dev/null
    tar xzf com.github.asus4.onnxruntime-0.4.9.tgz --wildcards '*/ios-arm64_x86_64-simulator/*/Headers/*.h'
    mkdir -p "$target/onnxruntime"
    find package -name '*.h' -exec cp {} "$target/onnxruntime/" \;
fi

if wanted stubs && [ ! -f "$target/stubs/tensorrt/__init__.pyi" ]; then
    python3 -m pip download --quiet --no-deps tensorrt-stubs==10.13.0.35.1
    unzip -q tensorrt_stubs-10.13.0.35.1-*.whl 'tensorrt/*' 'tensorrt_bindings/*' -d stubs
    cp -r stubs "$target/"
fi

ls "$target"
