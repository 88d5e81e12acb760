// Argument checks shared by the stages: one message style, expected and received values.
#pragma once

#include <sstream>
#include <string>

#include "llava_fa/error.hpp"

namespace llava_fa {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <typename... Parts>
void require(bool condition, ErrorCode code, const Parts&... parts) {
  if (!condition) throw Error(code, concat(parts...));
}

template <typename... Parts>
void require_argument(bool condition, const Parts&... parts) {
  require(condition, ErrorCode::invalid_argument, parts...);
}

}  // namespace llava_fa
