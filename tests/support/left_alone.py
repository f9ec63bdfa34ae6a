"""What scoring must leave as it was."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


def state(model: nn.Module) -> list[object]:
    """Everything about the caller's model and process that must stay."""
    return [*state_of_model(model), *state_of_process()]


def state_of_model(model: nn.Module) -> list[object]:
    """Modes, hooks, attributes, parameters with their gradients, and buffers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.modules())
    parameters = list(model.parameters())
    return [
        [module.training for module in modules],
        [[list(getattr(module, hook)) for hook in hooks] for module in modules],
        [sorted(vars(module)) for module in modules],
        [(id(p), p.requires_grad, id(p.grad), p.is_leaf) for p in parameters],
        [list((p._backward_hooks or {}).keys()) for p in parameters],
        [p.detach().numpy().tobytes() for p in parameters],
        [p.grad.numpy().tobytes() for p in parameters if p.grad is not None],
        [(id(b), b.numpy().tobytes()) for b in model.buffers()],
    ]


def state_of_process() -> list[object]:
    """Random numbers to come, and switches of torch."""
    return [
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        [str(part) for part in np.random.get_state()],  # noqa: NPY002
        (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
        (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        torch.are_deterministic_algorithms_enabled(),
    ]
