// ExecuTorch's kernels for language models sit in a library that also registers them with torch, for export. On the
// arm64 side there is no torch (430 MB, and it would fill the memory that is being measured): these are the functions
// that such a registration calls, doing nothing. The kernels call none of them. Declarations follow torch 2.13's
// torch/library.h; only names and sizes matter to the linker.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace c10 {
enum class DispatchKey : uint16_t {};
struct OperatorName;
template <typename T>
struct ArrayRef {
  const T* data;
  size_t size;
};
struct FunctionSchema {
  // As large as torch's. Zeros are what its destructor takes for empty strings, lists and pointers.
  uint64_t content[15] = {};
  FunctionSchema() {}
  ~FunctionSchema() {}
};
struct UndefinedTensorImpl {
  static char _singleton[256];
};
char UndefinedTensorImpl::_singleton[256] = {};
namespace detail::infer_schema {
struct ArgumentDef;
std::unique_ptr<FunctionSchema> make_function_schema(ArrayRef<ArgumentDef>, ArrayRef<ArgumentDef>) { return nullptr; }
}  // namespace detail::infer_schema
}  // namespace c10

namespace torch {
namespace headeronly {
enum class Tag {};
}
enum class _RegisterOrVerify {};
struct CppFunction {
  ~CppFunction();
};
CppFunction::~CppFunction() {}

struct Library {
  enum Kind {};
  Library(Kind, std::string, std::optional<c10::DispatchKey>, const char*, uint32_t);
  Library& _def(c10::FunctionSchema&&, c10::OperatorName*, const std::vector<headeronly::Tag>&, _RegisterOrVerify) &;
  Library& _impl(const char*, CppFunction&&, _RegisterOrVerify) &;
};
// The object lives in the library that is being initialised; its destructor takes zeros for empty members.
Library::Library(Kind, std::string, std::optional<c10::DispatchKey>, const char*, uint32_t) {}
Library& Library::_def(
    c10::FunctionSchema&&, c10::OperatorName*, const std::vector<headeronly::Tag>&, _RegisterOrVerify) & {
  return *this;
}
Library& Library::_impl(const char*, CppFunction&&, _RegisterOrVerify) & { return *this; }

namespace jit {
c10::FunctionSchema parseSchema(const std::string&, bool) { return {}; }
}  // namespace jit
}  // namespace torch
