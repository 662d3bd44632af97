"""Model repositories of Triton."""

import onnx
import pytest

from kgen.export import to_triton


@pytest.fixture
def file(onnx_file):
    return onnx_file.path


def test_a_repository_holds_the_file_and_its_shapes(file, tmp_path):
    version = to_triton(file, tmp_path)
    assert version == tmp_path / "vae" / "1"
    assert (version / "model.onnx").read_bytes() == file.read_bytes()
    text = (tmp_path / "vae" / "config.pbtxt").read_text()
    assert text == (
        'name: "vae"\nbackend: "onnxruntime"\nmax_batch_size: 64\n'
        "dynamic_batching { max_queue_delay_microseconds: 2000 }\n"
        'input {\n  name: "seeds"\n  data_type: TYPE_INT64\n  dims: [1]\n'
        "  reshape { shape: [] }\n}\n"
        'input {\n  name: "labels"\n  data_type: TYPE_INT32\n  dims: [1]\n'
        "  reshape { shape: [] }\n}\n"
        'output {\n  name: "images"\n  data_type: TYPE_FP32\n  dims: [4, 4, 1]\n}\n'
    )


def test_versions_count_up_and_names_are_plain(file, tmp_path):
    to_triton(file, tmp_path, "a")
    assert to_triton(file, tmp_path, "a") == tmp_path / "a" / "2"
    (tmp_path / "b.nchw.onnx").write_bytes(file.read_bytes())
    assert to_triton(tmp_path / "b.nchw.onnx", tmp_path).parent.name == "b_nchw"


def test_rows_of_any_length_are_said_to_be_so(tmp_path):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT32, ["batch", None])
    graph = onnx.helper.make_graph([], "g", [x], [x])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    to_triton(tmp_path / "m.onnx", tmp_path)
    assert "TYPE_INT32\n  dims: [-1]\n" in (tmp_path / "m/config.pbtxt").read_text()


def test_a_file_that_is_missing_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        to_triton(tmp_path / "none.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
