// SPDX-License-Identifier: Apache-2.0
//
// Nodes whose tensors are named in two attributes. A node of TensorRT has no empty inputs or outputs: those that a site has stand behind
// each other without gaps, and inputs="x,query,key" and outputs="rows,kept,count" say which they are, in the order of a table.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace vitprune {

// Position of a role, -1 where the site has none.
template <typename Role>
int32_t position_of(const std::vector<Role>& roles, Role role) {
    const auto found = std::find(roles.begin(), roles.end(), role);
    return found == roles.end() ? -1 : static_cast<int32_t>(found - roles.begin());
}

// Names behind each other, each from the table and behind the one before it there; false for anything else.
template <typename Role, typename Kind, size_t Count>
bool read_roles(const std::string& text, const Kind (&table)[Count], std::vector<Role>& roles) {
    roles.clear();
    size_t next = 0;
    for (size_t at = 0; at <= text.size();) {
        const size_t end = std::min(text.find(',', at), text.size());
        const std::string name = text.substr(at, end - at);
        while (next < Count && name != table[next].name) ++next;
        if (next == Count) return false;
        roles.push_back(static_cast<Role>(next++));
        at = end + 1;
    }
    return true;
}

// The text that names roles; kind_of(role).name is found where the role is.
template <typename Role>
std::string role_names(const std::vector<Role>& roles) {
    std::string text;
    for (const Role role : roles) text += (text.empty() ? "" : ",") + std::string(kind_of(role).name);
    return text;
}

}  // namespace vitprune
