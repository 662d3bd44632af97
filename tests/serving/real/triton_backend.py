"""Stands in for Triton's ONNX Runtime backend, which the wheel of pytriton lacks.

The server reads the configuration and makes the batches; the file is run by the same
runtime.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, arguments):
        folder = os.path.join(arguments["model_repository"], arguments["model_version"])
        self.config = json.loads(arguments["model_config"])
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        names = [one["name"] for one in self.config["output"]]
        answers = []
        for request in requests:
            inputs = {
                one["name"]: triton.get_input_tensor_by_name(
                    request, one["name"]
                ).as_numpy()
                for one in self.config["input"]
            }
            tensors = [
                triton.Tensor(name, np.ascontiguousarray(array))
                for name, array in zip(
                    names, self.session.run(names, inputs), strict=True
                )
            ]
            answers.append(triton.InferenceResponse(output_tensors=tensors))
        return answers
