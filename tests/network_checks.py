"""What the tests of all networks share: the same numbers and weights each time, and what to look for in a network."""

import torch
from torch import Tensor, nn

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps(*t: int) -> Tensor:
    return torch.tensor(t)


def made(part: type, *arguments, **options) -> nn.Module:
    """Build a part or a network, always with the same weights, and leave the global random numbers alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return part(*arguments, **options)


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def differ(a: Tensor, b: Tensor, by: float = 1e-3) -> bool:
    """Tell whether two results differ by more than rounding."""
    return (a - b).abs().max().item() > by


def all_differ(results) -> bool:
    """Tell whether no two of some results are alike."""
    return all(differ(one, other) for i, one in enumerate(results) for other in results[:i])


def watched(modules) -> list:
    """Return a list that fills with (inputs, output) of each module at its next call."""
    calls = []
    for module in modules:
        module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


def without_gradient(network: nn.Module) -> list[str]:
    """Return the names of the parameters that got no gradient, or hardly any."""
    return [path for path, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
