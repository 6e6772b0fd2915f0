"""Master weights: the float32 weights that the optimizer steps, of a model in bfloat16.

A bfloat16 has 8 significant bits: a step of less than 1/512 of a weight is lost in it, however
often it is taken. So what adds up is float32, and the model gets it rounded (Micikevicius et al.
2018, https://arxiv.org/abs/1710.03740, section 3.1).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tuneloop.learner.models.world import World, local_tensor


class MasterWeights:
    """The masters of named parameters; of one that has 32 bits or more it is the parameter itself.

    Gradients are float32 too, from each backward pass on: of many that are summed in bfloat16, one
    smaller than 1/512 of the sum so far is lost.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        """Begin with the parameters as they are."""
        self.tensors: dict[str, nn.Parameter] = {}
        self._rounded: dict[str, nn.Parameter] = {}
        """The parameters that are not their own masters."""
        for name, parameter in named.items():
            self.tensors[name] = parameter
            if torch.finfo(parameter.dtype).bits < 32:
                parameter.grad_dtype = torch.float32
                self._rounded[name] = parameter
                self.tensors[name] = nn.Parameter(parameter.detach().float())

    def take_gradients(self) -> None:
        """Move the parameters' gradients to their masters."""
        for name, parameter in self._rounded.items():
            self.tensors[name].grad, parameter.grad = parameter.grad, None

    def clear_gradients(self) -> None:
        """Clear the gradients of masters and parameters."""
        for tensor in (*self.tensors.values(), *self._rounded.values()):
            tensor.grad = None

    @torch.no_grad()
    def round(self) -> None:
        """Give the parameters the masters' values, rounded."""
        for name, parameter in self._rounded.items():
            parameter.copy_(self.tensors[name])

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set masters and parameters to other values by name; all of them are given."""
        for name, tensor in self.tensors.items():
            tensor.copy_(values[name])
        self.round()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin again with the parameters as they are: the model's weights were replaced."""
        for name, parameter in self._rounded.items():
            self.tensors[name].copy_(parameter)

    def finite(self, world: World) -> bool:
        """Return whether all parameters are finite on every rank; masters may round to inf."""
        named = self.tensors | self._rounded
        finite = torch.stack([local_tensor(p).isfinite().all() for p in named.values()])
        return world.all_true(bool(finite.all()), finite.device)
