#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Gets headers to compile against on a machine that has neither TensorRT nor ONNX Runtime's SDK, out of public packages that
# carry them: NVIDIA's TensorRT 10.14 headers (Apache-2.0) from a PyPI wheel, Microsoft's ONNX Runtime headers (MIT) from an
# npm package of 150 MB. Needs pip, unzip, npm and tar. Nothing is installed.
#
#   fetch_headers.sh DIR [tensorrt|onnxruntime]    then set TENSORRT_INCLUDE_DIR=DIR/tensorrt ORT_INCLUDE_DIR=DIR/onnxruntime
set -eu

if [ $# -lt 1 ]; then
    echo "usage: $0 DIR [tensorrt|onnxruntime]" >&2
    exit 2
fi
mkdir -p "$1"
target=$(cd "$1" && pwd)
part=${2:-both}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if [ "$part" != onnxruntime ] && [ ! -f "$target/tensorrt/NvInfer.h" ]; then
    python3 -m pip download --quiet --no-deps kernel-lens==2.0.1
    unzip -q kernel_lens-2.0.1-*.whl 'kernel_lens/include/tensorrt/*'
    cp -r kernel_lens/include/tensorrt "$target/"
fi

if [ "$part" != tensorrt ] && [ ! -f "$target/onnxruntime/onnxruntime_c_api.h" ]; then
    npm pack --silent com.github.asus4.onnxruntime@0.4.9 >/dev/null
    tar xzf com.github.asus4.onnxruntime-0.4.9.tgz --wildcards '*/ios-arm64_x86_64-simulator/*/Headers/*.h'
    mkdir -p "$target/onnxruntime"
    find package -name '*.h' -exec cp {} "$target/onnxruntime/" \;
fi

ls "$target"
