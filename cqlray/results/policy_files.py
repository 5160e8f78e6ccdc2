"""A policy's arrays as a file that other programs load: TorchScript, ONNX, safetensors.

A safetensors file holds arrays, all float32: observation_mean and observation_std
[observation_dim]; I.weight [in, out] and I.bias [out] of layer I = 0, 1, …, with layer norm also
I.norm_scale and I.norm_shift [out]; action_low and action_high [A]. Its metadata has one key,
`cqlray`: JSON that says whose policy it is and how to compute the action. `loading_code` returns
ten lines of numpy that do so.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cqlray.algorithms.policy import LAYER_NORM_EPSILON, Array, Arrays
from cqlray.errors import UserError
from cqlray.results.policies import LoadedPolicy
from cqlray.storage import checkpoint

# Old enough for every onnxruntime since 1.13; LayerNormalization came with opset 17.
OPSET, IR_VERSION = 17, 8

Act = Callable[[Array], Array]
"""[n, observation_dim] float32 -> [n, A] float32."""

_TORCHSCRIPT = """\
import torch

policy = torch.jit.load({file!r})
actions = policy(observations)  # a torch.float32 tensor, [{inputs}] or [n, {inputs}]
"""
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession({file!r})
# observations: numpy float32, [n, {inputs}]; one alone is observation[None]
(actions,) = session.run(["action"], {{"observation": observations}})
"""
_SAFETENSORS = """\
import numpy as np
from safetensors.numpy import load_file

arrays = load_file({file!r})

def policy(x):  # numpy float32, [{inputs}] or [n, {inputs}]
    assert x.shape[-1] == len(arrays["observation_mean"]), x.shape
    x = (x - arrays["observation_mean"]) / arrays["observation_std"]
    for i in range({layers}):
{layer}
    low, high = arrays["action_low"], arrays["action_high"]
    return np.clip(low + (np.tanh(x) + 1) * (high - low) / 2, low, high)

actions = policy(observations)
"""
_LAYER = '        x = (np.maximum(x, 0) if i else x) @ arrays[f"{i}.weight"] + arrays[f"{i}.bias"]'
_NORMALIZED_LAYER = """\
        x = x @ arrays[f"{i}.weight"] + arrays[f"{i}.bias"]
        if f"{i}.norm_scale" in arrays:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = np.maximum(x * arrays[f"{i}.norm_scale"] + arrays[f"{i}.norm_shift"], 0)"""


def policy_arrays(policy: LoadedPolicy) -> Arrays:
    """The arrays that the module's docstring lists: just what the deterministic action needs."""
    kept, actions = policy.policy.arrays, policy.policy.action_dim
    arrays = {
        name.removeprefix("policy."): array[0]
        for name, array in kept.items()
        if name.startswith("policy.")
    }
    last = num_layers(arrays) - 1
    for name in ("weight", "bias"):  # the outputs' second half is for the standard deviations
        arrays[f"{last}.{name}"] = arrays[f"{last}.{name}"][:, :actions]
    arrays = {
        name: array if name.endswith("weight") else array[0] for name, array in arrays.items()
    }
    arrays |= {name: kept[name] for name in ("observation_mean", "observation_std")}
    return {**arrays, "action_low": policy.scaling.low, "action_high": policy.scaling.high}


def num_layers(arrays: Arrays) -> int:
    """The number of the network's layers, output layer included."""
    return sum(name.endswith(".weight") for name in arrays)


class _Network(nn.Module):
    """The policy as a module that TorchScript can compile."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(num_layers(arrays)):
            weight = arrays[f"{index}.weight"]
            layers += [_with_values(nn.Linear(*weight.shape), weight.T, arrays[f"{index}.bias"])]
            if f"{index}.norm_scale" in arrays:
                norm = nn.LayerNorm(weight.shape[1], LAYER_NORM_EPSILON)
                layers += [
                    _with_values(norm, arrays[f"{index}.norm_scale"], arrays[f"{index}.norm_shift"])
                ]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Tanh())
        self.observation_dim = len(arrays["observation_mean"])
        self.observation_mean = nn.Buffer(torch.tensor(arrays["observation_mean"]))
        self.observation_std = nn.Buffer(torch.tensor(arrays["observation_std"]))
        self.action_low = nn.Buffer(torch.tensor(arrays["action_low"]))
        self.action_high = nn.Buffer(torch.tensor(arrays["action_high"]))
        self.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        """[observation_dim] or [n, observation_dim] -> [A] or [n, A], in the environment's
        bounds.
        """
        size = observations.shape[-1]
        if size != self.observation_dim:
            raise ValueError(
                f"observations have {size} numbers; they should have {self.observation_dim}"
            )
        unit = self.layers((observations - self.observation_mean) / self.observation_std)
        scaled = self.action_low + (unit + 1.0) * (self.action_high - self.action_low) * 0.5
        return torch.minimum(torch.maximum(scaled, self.action_low), self.action_high)


def _with_values(module: Any, weight: Array, bias: Array) -> nn.Module:
    module.load_state_dict(
        {"weight": torch.tensor(np.ascontiguousarray(weight)), "bias": torch.tensor(bias)}
    )
    return module  # type: ignore[no-any-return]


def _torchscript(arrays: Arrays, metadata: str) -> tuple[bytes, Act]:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # Torch recommends torch.export instead, but only the same version of torch reads its files.
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.script(_Network(arrays).eval()), sink, _extra_files={"cqlray.json": metadata}
        )
        loaded = torch.jit.load(io.BytesIO(sink.getvalue()))  # type: ignore[no-untyped-call]

    def act(observations: Array) -> Array:
        with torch.inference_mode():
            actions: Array = loaded(torch.from_numpy(observations)).numpy()
        return actions

    return sink.getvalue(), act


class _Chain:
    """ONNX nodes in a chain: each takes the output of the one before and then named constants."""

    def __init__(self, make_node: Callable[..., Any]) -> None:
        self.make_node = make_node
        self.nodes: list[Any] = []

    def add(self, operator: str, *constants: str, to: str = "", **attributes: Any) -> None:
        before = self.nodes[-1].output[0] if self.nodes else "observation"
        output = to or f"step_{len(self.nodes)}"
        self.nodes.append(self.make_node(operator, [before, *constants], [output], **attributes))


def _onnx_nodes(make_node: Callable[..., Any], arrays: Arrays) -> list[Any]:
    """The policy's computation, from `observation` to `action`."""
    chain = _Chain(make_node)
    chain.add("Sub", "observation_mean")
    chain.add("Div", "observation_std")
    for index in range(num_layers(arrays)):
        if index:
            chain.add("Relu")
        chain.add("Gemm", f"{index}.weight", f"{index}.bias")
        if f"{index}.norm_scale" in arrays:
            scale_and_shift = f"{index}.norm_scale", f"{index}.norm_shift"
            chain.add("LayerNormalization", *scale_and_shift, axis=-1, epsilon=LAYER_NORM_EPSILON)
    chain.add("Tanh")
    chain.add("Add", "one")
    chain.add("Mul", "action_range")
    chain.add("Mul", "half")
    chain.add("Add", "action_low")
    chain.add("Max", "action_low")
    chain.add("Min", "action_high", to="action")
    return chain.nodes


def _onnx(arrays: Arrays, metadata: str) -> tuple[bytes, Act]:
    onnx, runtime = (_module(name) for name in REQUIRED["onnx"])
    helper = onnx.helper
    values = {**arrays, "one": np.float32(1.0), "half": np.float32(0.5)}
    values["action_range"] = arrays["action_high"] - arrays["action_low"]
    sizes = {"observation": len(arrays["observation_mean"]), "action": len(arrays["action_low"])}
    ends = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in sizes.items()
    }
    constants = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in sorted(values.items())  # so that the same policy gives the same bytes
    ]
    nodes = _onnx_nodes(helper.make_node, arrays)
    graph = helper.make_graph(nodes, "policy", [ends["observation"]], [ends["action"]], constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="cqlray"
    )
    helper.set_model_props(model, {"cqlray": metadata})
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda observations: session.run(["action"], {"observation": observations})[0]


def _safetensors(arrays: Arrays, metadata: str) -> tuple[bytes, Act]:
    data = checkpoint.encode(arrays, json.loads(metadata))
    read, _ = checkpoint.decode(data)

    def act(observations: Array) -> Array:
        x = (observations - read["observation_mean"]) / read["observation_std"]
        for index in range(num_layers(read)):
            x = (np.maximum(x, 0) if index else x) @ read[f"{index}.weight"] + read[f"{index}.bias"]
            if f"{index}.norm_scale" in read:
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
                    x.var(-1, keepdims=True) + LAYER_NORM_EPSILON
                )
                x = x * read[f"{index}.norm_scale"] + read[f"{index}.norm_shift"]
        low, high = read["action_low"], read["action_high"]
        actions: Array = np.clip(low + (np.tanh(x) + 1) * (high - low) / 2, low, high)
        return actions

    return data, act


FORMATS: dict[str, tuple[str, Callable[[Arrays, str], tuple[bytes, Act]]]] = {
    "torchscript": (".pt", _torchscript),
    "onnx": (".onnx", _onnx),
    "safetensors": (".safetensors", _safetensors),
}
REQUIRED = {
    "torchscript": ("torch",),
    "onnx": ("onnx", "onnxruntime"),
    "safetensors": ("safetensors",),
}


def loading_code(format: str, file: str, arrays: Arrays) -> str:
    """Python code that computes `actions` from `observations` with a file in the working directory
    and without cqlray.
    """
    template = {"torchscript": _TORCHSCRIPT, "onnx": _ONNX, "safetensors": _SAFETENSORS}[format]
    layer = _NORMALIZED_LAYER if "0.norm_scale" in arrays else _LAYER
    return template.format(
        file=file, inputs=len(arrays["observation_mean"]), layers=num_layers(arrays), layer=layer
    )


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f'ONNX files need {name}, which is not installed: pip install "cqlray[export]"'
        ) from None
