// Runs a .pte with ExecuTorch's own aarch64 libraries, driven through a pipe.
//
//   arm64_runner MODEL.pte THREADS
//
// All numbers are little-endian; tokens and counts are int32.
//   at once        0                     nothing is loaded yet
//   first request  0                     loads; answer: 0, context, vocabulary, most tokens of one call
//   request        count, tokens...      answer: rows, rows x vocabulary floats
//   request        0                     forgets the conversation; answer: 0
//   failure        -1, length, text      in place of any answer
// runtimes/arm64_worker.py speaks the same.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

// The wheel has these in its library and not among its headers.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::EValue;

namespace {

void put(const void* data, size_t size) {
  if (std::fwrite(data, 1, size, stdout) != size) std::exit(1);
}

void put_number(int32_t value) { put(&value, sizeof value); }

[[noreturn]] void fail(const std::string& text) {
  put_number(-1);
  put_number(static_cast<int32_t>(text.size()));
  put(text.data(), text.size());
  std::fflush(stdout);
  std::exit(0);
}

int32_t ask(Module& module, const char* name) {
  const auto answer = module.execute(name);
  if (!answer.ok()) fail(std::string(name) + ": " + executorch::runtime::to_string(answer.error()));
  return static_cast<int32_t>(answer->at(0).toInt());
}

bool read_tokens(std::vector<int64_t>& tokens) {
  int32_t count = 0;
  if (std::fread(&count, sizeof count, 1, stdin) != 1) return false;
  std::vector<int32_t> narrow(static_cast<size_t>(count));
  if (count && std::fread(narrow.data(), sizeof(int32_t), narrow.size(), stdin) != narrow.size()) return false;
  tokens.assign(narrow.begin(), narrow.end());
  return true;
}

void serve(Module& module, int32_t vocabulary) {
  std::vector<int64_t> tokens;
  int64_t position = 0;
  while (read_tokens(tokens)) {
    if (tokens.empty()) {
      position = 0;  // what is left in the cache is never looked at
      put_number(0);
      std::fflush(stdout);
      continue;
    }
    const auto ids = from_blob(
        tokens.data(), {1, static_cast<int32_t>(tokens.size())}, executorch::aten::ScalarType::Long);
    const auto start = from_blob(&position, {1}, executorch::aten::ScalarType::Long);
    const auto outputs = module.forward({EValue(ids), EValue(start)});
    if (!outputs.ok()) fail(std::string("forward: ") + executorch::runtime::to_string(outputs.error()));
    const auto logits = outputs->at(0).toTensor();
    put_number(static_cast<int32_t>(logits.numel() / vocabulary));
    put(logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel()) * sizeof(float));
    std::fflush(stdout);
    position += static_cast<int64_t>(tokens.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  put_number(0);
  std::fflush(stdout);
  std::vector<int64_t> none;
  if (!read_tokens(none)) return 0;
  try {
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(
        static_cast<uint32_t>(std::atoi(argv[2])));
    Module module(argv[1], Module::LoadMode::File);
    const auto loaded = module.load_method("forward");
    if (loaded == executorch::runtime::Error::MemoryAllocationFailed) fail("out of memory");
    if (loaded != executorch::runtime::Error::Ok) fail(std::string("load: ") + executorch::runtime::to_string(loaded));
    const int32_t vocabulary = ask(module, "get_vocab_size");
    for (const int32_t number : {0, ask(module, "get_max_context_len"), vocabulary, ask(module, "get_max_seq_len")})
      put_number(number);
    std::fflush(stdout);
    serve(module, vocabulary);
  } catch (const std::bad_alloc&) {
    fail("out of memory");
  }
}
