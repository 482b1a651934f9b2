// Loads a SavedModel as TF Serving does, from C++ and with no Python anywhere, and answers requests.
//
//   native_loader SAVED_MODEL REQUEST ANSWERS
//
// REQUEST and ANSWERS are files in the machine's own byte order, written and read by native_loader.py:
//   REQUEST  uint32 number of requests; of each uint32 number of inputs, the inputs; uint32 number of outputs, their names
//   ANSWERS  double seconds of loading; for each request double seconds of the run, uint32 number of outputs, the outputs
//   text     uint32 length, bytes
//   input, output   text name ("operation:index"), int32 TF_DataType, uint32 rank, int64 sizes[rank], then the values:
//                   for strings of each uint64 length and bytes, else uint64 number of bytes, bytes
// What goes wrong is one line on the standard error; the exit status says where: 2 arguments and files, 3 loading, 4 run.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

namespace {

constexpr int kFileError = 2;
constexpr int kLoadError = 3;
constexpr int kRunError = 4;

[[noreturn]] void Fail(int status, std::string message) {
  for (char& character : message) {
    if (character == '\n') character = ' ';  // one line, the last one: TensorFlow's log stands before it
  }
  std::cerr << message << std::endl;
  std::exit(status);
}

void Check(const TF_Status* status, int exit_status) {
  if (TF_GetCode(status) != TF_OK) Fail(exit_status, TF_Message(status));
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    if (!file_) Fail(kFileError, std::string("cannot read ") + path);
  }

  template <typename T>
  T Number() {
    T value;
    Bytes(&value, sizeof value);
    return value;
  }

  std::string Text() {
    std::string text(Number<uint32_t>(), '\0');
    Bytes(&text[0], text.size());
    return text;
  }

  void Bytes(void* target, size_t size) {
    if (size != 0 && !file_.read(static_cast<char*>(target), size)) Fail(kFileError, "the request ends too early");
  }

 private:
  std::ifstream file_;
};

class Writer {
 public:
  explicit Writer(const char* path) : file_(path, std::ios::binary) {}

  template <typename T>
  void Number(T value) {
    Bytes(&value, sizeof value);
  }

  void Text(const std::string& text) {
    Number<uint32_t>(text.size());
    Bytes(text.data(), text.size());
  }

  void Bytes(const void* source, size_t size) { file_.write(static_cast<const char*>(source), size); }

  void Close() {
    file_.close();
    if (!file_) Fail(kFileError, "cannot write the answers");
  }

 private:
  std::ofstream file_;
};

TF_Output Find(TF_Graph* graph, const std::string& tensor) {
  const size_t colon = tensor.rfind(':');
  if (colon == std::string::npos) Fail(kFileError, tensor + " is not the name of a tensor");
  TF_Operation* operation = TF_GraphOperationByName(graph, tensor.substr(0, colon).c_str());
  if (operation == nullptr) Fail(kRunError, tensor + " is not in the graph");
  return {operation, std::atoi(tensor.c_str() + colon + 1)};
}

TF_Tensor* ReadTensor(Reader& reader) {
  const auto type = static_cast<TF_DataType>(reader.Number<int32_t>());
  std::vector<int64_t> sizes(reader.Number<uint32_t>());
  int64_t count = 1;
  for (int64_t& size : sizes) count *= size = reader.Number<int64_t>();
  if (type == TF_STRING) {
    TF_Tensor* tensor = TF_AllocateTensor(type, sizes.data(), sizes.size(), count * sizeof(TF_TString));
    auto* strings = static_cast<TF_TString*>(TF_TensorData(tensor));
    std::string value;
    for (int64_t i = 0; i < count; ++i) {
      value.resize(reader.Number<uint64_t>());
      reader.Bytes(&value[0], value.size());
      TF_StringInit(&strings[i]);
      TF_StringCopy(&strings[i], value.data(), value.size());
    }
    return tensor;
  }
  const auto bytes = reader.Number<uint64_t>();
  TF_Tensor* tensor = TF_AllocateTensor(type, sizes.data(), sizes.size(), bytes);
  reader.Bytes(TF_TensorData(tensor), bytes);
  return tensor;
}

void WriteTensor(Writer& writer, const std::string& name, const TF_Tensor* tensor) {
  writer.Text(name);
  writer.Number<int32_t>(TF_TensorType(tensor));
  writer.Number<uint32_t>(TF_NumDims(tensor));
  for (int i = 0; i < TF_NumDims(tensor); ++i) writer.Number<int64_t>(TF_Dim(tensor, i));
  if (TF_TensorType(tensor) == TF_STRING) {
    const auto* strings = static_cast<const TF_TString*>(TF_TensorData(tensor));
    for (int64_t i = 0; i < TF_TensorElementCount(tensor); ++i) {
      writer.Number<uint64_t>(TF_StringGetSize(&strings[i]));
      writer.Bytes(TF_StringGetDataPointer(&strings[i]), TF_StringGetSize(&strings[i]));
    }
    return;
  }
  writer.Number<uint64_t>(TF_TensorByteSize(tensor));
  writer.Bytes(TF_TensorData(tensor), TF_TensorByteSize(tensor));
}

// Reads a request, has it answered, and writes the answer.
void Answer(TF_Session* session, TF_Graph* graph, Reader& reader, Writer& writer) {
  TF_Status* status = TF_NewStatus();
  std::vector<TF_Output> inputs(reader.Number<uint32_t>());
  std::vector<TF_Tensor*> values;
  for (TF_Output& input : inputs) {
    input = Find(graph, reader.Text());
    values.push_back(ReadTensor(reader));
  }
  std::vector<TF_Output> outputs(reader.Number<uint32_t>());
  std::vector<std::string> names;
  for (TF_Output& output : outputs) {
    names.push_back(reader.Text());
    output = Find(graph, names.back());
  }

  std::vector<TF_Tensor*> answers(outputs.size());
  const auto start = std::chrono::steady_clock::now();
  TF_SessionRun(session, nullptr, inputs.data(), values.data(), inputs.size(), outputs.data(), answers.data(),
                outputs.size(), nullptr, 0, nullptr, status);
  Check(status, kRunError);
  writer.Number(SecondsSince(start));
  writer.Number<uint32_t>(answers.size());
  for (size_t i = 0; i < answers.size(); ++i) WriteTensor(writer, names[i], answers[i]);

  for (TF_Tensor* tensor : values) TF_DeleteTensor(tensor);
  for (TF_Tensor* tensor : answers) TF_DeleteTensor(tensor);
  TF_DeleteStatus(status);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) Fail(kFileError, "usage: native_loader SAVED_MODEL REQUEST ANSWERS");
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* const tags[] = {"serve"};

  const auto start = std::chrono::steady_clock::now();
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, nullptr, argv[1], tags, 1, graph, nullptr, status);
  Check(status, kLoadError);
  const double load_seconds = SecondsSince(start);

  Reader reader(argv[2]);
  Writer writer(argv[3]);
  writer.Number(load_seconds);
  for (auto requests = reader.Number<uint32_t>(); requests > 0; --requests) Answer(session, graph, reader, writer);
  writer.Close();

  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
