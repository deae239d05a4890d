"""What runs on a device reports to nobody: official builds of onnxruntime do, unless told not to before they load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

CODE = """
import sys
from pathlib import Path
from fedsplit.edge.runner import open_session
open_session(Path(sys.argv[1]))
import os
sys.exit(os.environ["ORT_DISABLE_TELEMETRY"] != "1")
"""


def test_a_session_leaves_no_identifier_of_the_device(tmp_path: Path) -> None:
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CODE, str(tmp_path / "g.onnx")]
    subprocess.run(command, env=environment, check=True, timeout=240)
    assert list(home.rglob("*")) == []
