// Loads a SavedModel, calls `generate` for seeds, and prints all values.
#include <cstdlib>
#include <iostream>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"

int main(int count, char** arguments) {
  tensorflow::SavedModelBundle bundle;
  auto status = tensorflow::LoadSavedModel({}, {}, arguments[1], {"serve"}, &bundle);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  const auto& signature = bundle.GetSignatures().at("generate");
  tensorflow::Tensor seeds(tensorflow::DT_INT64, {count - 2});
  for (int i = 2; i < count; ++i)
    seeds.vec<int64_t>()(i - 2) = std::atoll(arguments[i]);
  std::vector<tensorflow::Tensor> outputs;
  status = bundle.session->Run({{signature.inputs().at("seeds").name(), seeds}},
                               {signature.outputs().at("images").name()}, {}, &outputs);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  std::cout.precision(9);
  const auto values = outputs[0].flat<float>();
  for (int i = 0; i < values.size(); ++i) std::cout << values(i) << "\n";
}
