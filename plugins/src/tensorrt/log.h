// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace vitprune {

constexpr const char* kNamespace = "vitprune";
constexpr const char* kVersion = "1";
constexpr const char* kSiteName = "PruneSite";

inline const char* plugin_name(bool fused) { return fused ? "TokenScoreSample" : "TokenSample"; }

// Reports an error to the logger of the process that loaded the library, to stderr when it gave none.
void log_error(const std::string& message);

}  // namespace vitprune
