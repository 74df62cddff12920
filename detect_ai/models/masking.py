"""The mask of an encoder, made where nobody has to look at it.

transformers looks whether a mask hides anything, and drops it if not. That reads a value back from the device: at every
forward pass a GPU is waited for, and its queue runs dry. A mask of four dimensions is taken as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.distilbert.modeling_distilbert import DistilBertModel

_ENCODERS = (BertModel, DistilBertModel)  # those whose layers all attend by the same mask


def keep_mask(model: PreTrainedModel) -> None:
    """Let a model's encoder take masks as they are; models of other kinds stay as they are.

    Args:
        model: a classifier, whose caller goes on to hand it masks of shape (rows, length).
    """
    encoder: Any = model.base_model
    if isinstance(encoder, _ENCODERS) and encoder.config._attn_implementation == "sdpa":
        encoder.register_forward_pre_hook(_spread, with_kwargs=True)


def _spread(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The mask as (rows, 1, 1, length): the same for all heads and all queries."""
    mask = kwargs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return args, kwargs
    return args, {**kwargs, "attention_mask": mask[:, None, None, :].bool()}
