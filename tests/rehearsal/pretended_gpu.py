"""A GPU that computes nothing: devices, shapes and number formats of all operations are checked as on a real one.

PyTorch's FakeTensorMode refuses an operation whose tensors lie on two devices, as CUDA does. Here it is taken a step
further, so that whole parts of the program run: numbers that Python reads from a tensor (`item`, `tolist`, `numpy`) are
ones, and autocast and gradient scaling, which PyTorch turns off without a GPU, are on.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
ROOM = 80 << 30  # bytes


PRODUCTS = {f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "convolution")}


class Ones(TorchDispatchMode):
    """Answers with one where Python asks for the number in a tensor without data.

    Refuses products of two number formats, which CUDA has not, and shapes alone do not show.

    Attributes:
        formats: of the products so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.formats = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        formats = {each.dtype for each in args if isinstance(each, torch.Tensor)}
        if func._schema.name in PRODUCTS:
            if len(formats) > 1:
                raise RuntimeError(f"{func._schema.name} of {', '.join(sorted(map(str, formats)))}: wanted one format")
            self.formats |= formats
        return func(*args, **(kwargs or {}))


def ones_of(tensor: torch.Tensor) -> np.ndarray:
    """What `numpy` gives of a tensor without data; raises what it raises of a real one that NumPy cannot take."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    if tensor.requires_grad:
        raise RuntimeError("can't call numpy() on a tensor that requires grad")
    if tensor.dtype == torch.bfloat16:  # NumPy may know it, from ml_dtypes; PyTorch does not hand it over
        raise TypeError("Got unsupported ScalarType BFloat16")
    return np.ones(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def move(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """What `Module.to` does, with new parameters: PyTorch would swap the old ones' data, and there are none."""
    for layer in module.modules() if recurse else [module]:
        for name, value in list(layer.named_parameters(recurse=False)):
            with torch.no_grad():
                setattr(layer, name, nn.Parameter(change(value), value.requires_grad))
        for name, value in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, change(value))
    return module


def gradients_of(node, inputs):
    """What a node of the graph gives of the gradients of its outputs: for each node that follows, its gradient."""
    if isinstance(node, BackwardCFunction):  # one written in Python has numbers and settings among its inputs
        outputs = node.apply(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [each for each, wanted in zip(outputs, node.needs_input_grad, strict=True) if wanted]
        return list(zip([edge for edge in node.next_functions if edge[0] is not None], outputs, strict=True))
    outputs = node(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [pair for pair in zip(node.next_functions, outputs, strict=True) if pair[0][0] is not None]


@torch.no_grad()
def backward(loss: torch.Tensor) -> None:
    """What `Tensor.backward` does, node by node: PyTorch's own engine wants a GPU's streams for tensors on one.

    As the engine does, it refuses gradients of another device than what they are of, and brings them to the latter's
    shape and format.
    """
    waiting: Counter = Counter()
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients = defaultdict(dict, {loss.grad_fn: {0: torch.ones_like(loss)}})
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        found = gradients.pop(node, {})
        inputs = [found.get(number) for number in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            value = node.variable
            value.grad = inputs[0] if value.grad is None else value.grad + inputs[0]
            continue
        for (following, number), gradient in gradients_of(node, inputs):
            if gradient is not None:
                wanted = following._input_metadata[number]
                assert gradient.device == wanted.device, f"{node}: {gradient.device}, wanted {wanted.device}"
                gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                sums = gradients[following]
                sums[number] = sums[number] + gradient if number in sums else gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Ones]:
    """Tensors made or moved within have no data, and may lie on `cuda:0` though there is none."""
    to_numpy, to_list = torch.Tensor.numpy, torch.Tensor.tolist
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patched.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patched.setattr(nn.Module, "_apply", move)
        patched.setattr(torch.Tensor, "backward", backward)
        patched.setattr(torch.cuda, "mem_get_info", lambda *_: (ROOM, ROOM))
        patched.setattr(
            torch.Tensor, "numpy", lambda of, **_: ones_of(of) if isinstance(of, FakeTensor) else to_numpy(of)
        )
        patched.setattr(
            torch.Tensor, "tolist", lambda of: ones_of(of.cpu()).tolist() if isinstance(of, FakeTensor) else to_list(of)
        )
        with FakeTensorMode(allow_non_fake_inputs=True), Ones() as ones:
            yield ones
