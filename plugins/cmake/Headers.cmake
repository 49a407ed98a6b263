# SPDX-License-Identifier: Apache-2.0

# Looks for the TensorRT headers; sets VITPRUNE_TENSORRT_DIR and VITPRUNE_TENSORRT_VERSION, both empty when there are none
# that will do. Only headers are needed: TensorRT itself is in the process that loads the library.
function(vitprune_find_tensorrt)
  find_path(VITPRUNE_TENSORRT_DIR NvInfer.h
    HINTS ${TENSORRT_INCLUDE_DIR} ENV TENSORRT_INCLUDE_DIR
    PATHS /usr/include /usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu /usr/local/tensorrt/include /opt/tensorrt/include)
  set(version "")
  if(VITPRUNE_TENSORRT_DIR)
    file(READ "${VITPRUNE_TENSORRT_DIR}/NvInferVersion.h" text)
    foreach(part MAJOR MINOR PATCH)
      # 10.x writes the number behind NV_TENSORRT_*, later headers behind TRT_*_ENTERPRISE.
      if(text MATCHES "#define (NV_TENSORRT_${part}|TRT_${part}_ENTERPRISE) ([0-9]+)")
        list(APPEND version ${CMAKE_MATCH_2})
      endif()
    endforeach()
    list(JOIN version "." version)
    if(version VERSION_LESS 10.0)
      message(STATUS "vitprune: TensorRT ${version} headers in ${VITPRUNE_TENSORRT_DIR} are too old, 10.0 is needed")
      set(VITPRUNE_TENSORRT_DIR "" CACHE PATH "TensorRT headers" FORCE)
      set(version "")
    endif()
  endif()
  set(VITPRUNE_TENSORRT_VERSION "${version}" PARENT_SCOPE)
endfunction()

# Looks for ONNX Runtime's C header; sets VITPRUNE_ORT_DIR and VITPRUNE_ORT_API, both empty when there is none.
function(vitprune_find_onnxruntime)
  find_path(VITPRUNE_ORT_DIR onnxruntime_c_api.h
    HINTS ${ORT_INCLUDE_DIR} ENV ORT_INCLUDE_DIR
    PATHS /usr/include /usr/local/include
    PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  set(api "")
  if(VITPRUNE_ORT_DIR)
    file(STRINGS "${VITPRUNE_ORT_DIR}/onnxruntime_c_api.h" line REGEX "#define ORT_API_VERSION [0-9]+")
    string(REGEX MATCH "[0-9]+" api "${line}")
    if(api LESS 16)
      message(STATUS "vitprune: ONNX Runtime API ${api} in ${VITPRUNE_ORT_DIR} is too old, 16 is needed")
      set(VITPRUNE_ORT_DIR "" CACHE PATH "ONNX Runtime headers" FORCE)
      set(api "")
    endif()
  endif()
  set(VITPRUNE_ORT_API "${api}" PARENT_SCOPE)
endfunction()
