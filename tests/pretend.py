"""Pretend that this machine has a GPU: tensors on the processor that say they are on `cuda:0` or `mps:0`.

They keep the rules of a real device, so that code which breaks a rule fails here, too: tensors of two devices do not
mix, except for single numbers in pointwise operations; generators and tensors do not mix, either; NumPy cannot read
them; a Mac's mps has no float64; the random state of a GPU is not that of a CPU. Values are those of the processor:
float32 stays float32, and mixed precision does what PyTorch does on a CPU. What only a real GPU can show (speed,
memory, rounding) is measured by benchmarks/gpu.py.

`python tests/pretend.py KIND SCRIPT ARGUMENTS...` runs a script in this way; KIND is cuda-bf16, cuda-fp16 (a GPU
without bf16, such as Colab's T4) or mps. It changes the whole process, in one thread, until the process ends.
"""

import runpy
import sys
from importlib import import_module

import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

KINDS = ("cuda-bf16", "cuda-fp16", "mps")
aten, WIDE = torch.ops.aten, (torch.float64, torch.complex128)
DEVICE = None  # the pretended one; `install` sets it
OWNERS = {}  # address of a generator, which is all that an operation sees of it -> its device

# These take arguments of both devices: copies must, and indices are brought to what they index.
MIX = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
HEAVY = {aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.addmm.default}
HEAVY |= {aten.bmm.default}
real_to, real_module_to, real_generator = torch.Tensor.to, torch.nn.Module.to, torch.Generator


class OnDevice(torch.Tensor):
    """A tensor that says it is on the pretended device; `held`, its values, is on the processor."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        like = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, held.shape, device="cpu", **like)
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: DEVICE.type == "cuda")
    is_mps = property(lambda self: DEVICE.type == "mps")
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"{repr(self.held)[:-1]}, device='{DEVICE}')"

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if self.dim() == 0 else object.__format__(self, how)

    def numpy(self, *args, **kwargs):
        """Refuse, as a GPU's tensors do."""
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> list:
        """Return the values, as a GPU's tensors may."""
        return self.held.detach().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def quantile(self, q: object, *args, **kwargs) -> torch.Tensor:
        """Do what Tensor.quantile does; its C++ code would create tensors on the processor."""
        return OnDevice(self.held.quantile(q, *args, **kwargs))

    def new_tensor(self, values: object, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype or self.dtype, device=DEVICE)

    def cpu(self, *args, **kwargs) -> torch.Tensor:
        return self.to("cpu")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


class Away(torch.autograd.Function):
    """Copy to the processor; the gradient goes the other way."""

    forward = staticmethod(lambda ctx, x: x.held.detach().clone())
    backward = staticmethod(lambda ctx, gradient: OnDevice(gradient))


class There(torch.autograd.Function):
    """Copy to the device; the gradient goes the other way."""

    forward = staticmethod(lambda ctx, x: OnDevice(x.detach().clone()))
    backward = staticmethod(lambda ctx, gradient: gradient.held)


def pretended(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def move(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    changes = {"memory_format": layout} if layout is not None else {}
    here = isinstance(self, OnDevice)
    there = here if device is None else pretended(device)
    if here and not there:  # first to the processor, where a Mac's float32 may become float64
        self = Away.apply(self)
    if changes or copy or dtype not in (None, self.dtype):
        self = real_to(self, dtype or self.dtype, copy=copy, **changes)
    return There.apply(check(self)) if there and not here else self


def check(out: object) -> object:
    """Return an operation's results, or raise TypeError if the device does not have their type."""
    if DEVICE.type == "mps" and any(each.dtype in WIDE for each in tensors_of((out,))):
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
            "Please use float32 instead."
        )
    return out


def each_of(change, values: object) -> object:
    """Apply `change` to each of an operation's arguments or results, also inside lists, and return all."""
    if isinstance(values, list | tuple):
        return type(values)([each_of(change, value) for value in values])
    return change(values)


def tensors_of(args: tuple) -> list[torch.Tensor]:
    found = []
    each_of(lambda value: found.append(value) if isinstance(value, torch.Tensor) else None, args)
    return found


def refuse_mixing(func, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise RuntimeError if an operation gets tensors of both devices."""
    if func in INDEX and isinstance(args[0], OnDevice):
        tensors = tensors_of((args[0], *args[2:]))
    elif func in INDEX:
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    numbers_may = torch.Tag.pointwise in func.tags or func in INDEX or "_foreach" in func.name()
    if any(not isinstance(each, OnDevice) and not (numbers_may and each.dim() == 0) for each in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu: {func}")


def refuse_generator(func, generator: torch.Generator, there: bool) -> None:
    """Raise RuntimeError if an operation on one device uses a generator of the other."""
    owner = OWNERS.get(generator._cdata, torch.device("cpu"))
    if pretended(owner) != there:
        expected = DEVICE if there else "cpu"
        raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{owner}': {func}")


def in_float32(func, args: tuple, kwargs: dict) -> object:
    """Do an operation in float32 and round its results, as a GPU does; in fp16 a CPU is fifty times slower."""
    low = {each.dtype for each in tensors_of(args)} & {torch.half, torch.bfloat16}

    def change(values: object, old: torch.dtype, new: torch.dtype) -> object:
        return each_of(lambda x: x.to(new) if isinstance(x, torch.Tensor) and x.dtype == old else x, values)

    for dtype in low:  # there is one, or none
        return change(func(*change(args, dtype, torch.float), **kwargs), torch.float, dtype)
    return func(*args, **kwargs)


def operate(func, args: tuple, kwargs: dict) -> object:
    """Do an operation on the values; its results are on the device where a real one would leave them."""
    if func is aten._fused_sdp_choice.default:
        return 0  # attention by its formula: the other implementations need a real device
    given = (args, tuple(kwargs.values()))
    tensors = tensors_of(given)
    there = any(isinstance(each, OnDevice) for each in tensors)
    if there and func not in MIX and not all(isinstance(each, OnDevice) for each in tensors):
        refuse_mixing(func, args, tensors)
    # PyTorch's C++ code believes that our tensors are the processor's, and names it when it creates others.
    there = there or pretended(kwargs.get("device"))
    if kwargs.get("generator") is not None:
        refuse_generator(func, kwargs["generator"], there)
    here, named = each_of(lambda x: x.held if isinstance(x, OnDevice) else x, given)
    named = dict(zip(kwargs, named, strict=True))
    if named.get("device") is not None:
        named |= {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in named else {})
    out = in_float32(func, here, named) if func in HEAVY else func(*here, **named)
    if func._schema.is_mutable and not any(value.alias_info is None for value in func._schema.returns):
        first = kwargs["out"] if "out" in kwargs else args[0]  # in place: the result is the argument
        if out is not None and out.shape != first.shape:
            raise NotImplementedError(f"{func} changes a shape in place; do it another way, or add it to {__file__}")
        return first if out is not None else None
    return each_of(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, check(out)) if there else out


def grouped(group) -> object:
    """Return a function of C++, which believes that our tensors are the processor's, as one that names our device."""

    def group_by_device(*args, **kwargs) -> dict:
        def place(lists: list) -> torch.device:
            return tensors_of(lists)[0].device

        return {(place(found[0]), dtype): found for (_, dtype), found in group(*args, **kwargs).items()}

    return group_by_device


def from_values(make) -> object:
    """Return `make`, for example torch.tensor, as a function that makes its tensor here and then moves it there."""

    def made(*args, device: torch.device | str | None = None, **kwargs) -> torch.Tensor:
        return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)

    return made


def jvp(function, primals: tuple, tangents: tuple) -> tuple:
    """Do what torch.func.jvp does, whose transforms take our tensors apart, by a gradient of a gradient."""
    return torch.autograd.functional.jvp(function, primals, tangents, create_graph=True)


class Everywhere(TorchDispatchMode):
    """Catch operations without tensors, such as torch.zeros(3, device="cuda"), too."""

    _should_skip_dynamo = classmethod(lambda cls: False)  # no compiler around each operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


class Generator(real_generator):
    """A source of random numbers that knows its device."""

    def __new__(cls, device: torch.device | str = "cpu"):
        made = real_generator.__new__(cls, "cpu")
        OWNERS[made._cdata] = DEVICE if pretended(device) else torch.device("cpu")
        return made

    device = property(lambda self: OWNERS[self._cdata])


class Autocast(torch.autocast):
    """Mixed precision, with the lists of operations of the processor."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


def move_module(self: torch.nn.Module, *args, **kwargs) -> torch.nn.Module:
    """Do what Module.to does; a module on the device stays as it is, because its optimizer holds its parameters."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    tensors = [*self.parameters(), *self.buffers()]
    there = all(isinstance(each, OnDevice) for each in tensors)
    stays = tensors and there and pretended(device) and dtype is None
    return self if stays and layout is None else real_module_to(self, *args, **kwargs)


def written(save) -> object:
    """Return `save`, for example torch.save, as a function that gets tensors on the processor."""

    def save_held(value: object, *args, **kwargs) -> object:
        held = tree_map(lambda each: each.held.detach() if isinstance(each, OnDevice) else each, value)
        return save(held, *args, **kwargs)

    return save_held


def install(kind: str) -> None:
    """Change PyTorch in this process, for good."""
    global DEVICE
    import torch._dynamo  # optimizers load it later, and it would notice what is changed below

    DEVICE = torch.device(kind.partition("-")[0], 0)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Tensor.to, torch.nn.Module.to, torch.Generator = move, move_module, Generator
    torch.save, safetensors.torch.save = written(torch.save), written(safetensors.torch.save)
    torch.tensor, torch.as_tensor = from_values(torch.tensor), from_values(torch.as_tensor)
    for name in ("torch.optim.optimizer", "torch.nn.utils.clip_grad"):
        module = import_module(name)
        module._group_tensors_by_device_and_dtype = grouped(module._group_tensors_by_device_and_dtype)
    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast
    torch.func.jvp = jvp
    accelerator = torch.accelerator
    accelerator.is_available, accelerator.current_accelerator = (lambda: True), (lambda *a, **k: DEVICE)
    accelerator.synchronize = lambda *args: None
    for check_of_graphs in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, check_of_graphs):
            setattr(torch.optim.Optimizer, check_of_graphs, lambda self: None)
    if DEVICE.type == "cuda":
        install_cuda(bf16=kind == "cuda-bf16")
    else:
        torch.mps.manual_seed = lambda seed: None
    from accelerate import PartialState

    PartialState(cpu=True)
    PartialState._shared_state["device"] = DEVICE
    Everywhere().__enter__()


def install_cuda(bf16: bool) -> None:
    """Let torch.cuda report one GPU, with or without bf16."""
    cuda = torch.cuda
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.device_count, cuda.current_device = (lambda: 1), (lambda: 0)
    cuda.is_bf16_supported = lambda including_emulation=True: including_emulation or bf16
    cuda.get_device_name, cuda.get_device_capability = (lambda *a: "a pretended GPU"), (lambda *a: (9, 0))
    cuda.get_rng_state_all, cuda.set_rng_state_all = (lambda: [torch.zeros(16, dtype=torch.uint8)]), take_state
    cuda._lazy_init = cuda.set_device = cuda.synchronize = cuda.manual_seed_all = lambda *args: None
    cuda.is_current_stream_capturing = lambda: False


def take_state(states: list[torch.Tensor]) -> None:
    """Do what torch.cuda.set_rng_state_all does: refuse a state of another size."""
    if [len(state) for state in states] != [16]:
        raise RuntimeError(f"RNG state is wrong size: {[len(state) for state in states]}")


if __name__ == "__main__":
    install(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
