"""Tensors of a Hugging Face model under the names that the installed transformers gives them.

Between its versions modules were renamed, and ``save_pretrained`` writes the older names of some
models, such as ViT: what reads them back is transformers itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.quiet import quiet


def in_current_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a saved model under the names that ``model`` has for them.

    Args:
        tensors: as read from the checkpoint; those that the model does not know stay as they are.
        model: any model; for other than those of transformers nothing is renamed.
    """
    transformers: Any = sys.modules.get("transformers")  # whoever built such a model imported it
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return dict(tensors)
    with quiet(transformers), torch.random.fork_rng():
        try:
            loaded, report = type(model).from_pretrained(
                None, config=model.config, state_dict=dict(tensors), output_loading_info=True
            )
        except Exception:  # it refuses other shapes; who checks the names says so in a sentence
            return dict(tensors)
    # What the checkpoint lacks has a new random value there.
    found = {
        name: value
        for name, value in loaded.state_dict().items()
        if name not in report["missing_keys"]
    }
    return found | {name: tensors[name] for name in report["unexpected_keys"] if name in tensors}
