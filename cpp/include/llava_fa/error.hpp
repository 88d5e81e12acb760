// The one list of errors. Stages throw Error; language boundaries convert it once by its code.
#pragma once

#include <stdexcept>
#include <string>

namespace llava_fa {

enum class ErrorCode {
  invalid_argument,     // a parameter outside its documented range
  non_finite,           // NaN or infinity in a weight or a second moment
  inconsistent_format,  // stored tensors or header that contradict docs/format.md
  unavailable,          // a backend or instruction set that this machine does not offer
  device,               // a GPU that cannot be used, or that reported an error
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace llava_fa
