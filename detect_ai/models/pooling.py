"""An encoder with a linear head on the mean of its last states, where a model's own head reads its first token.

The mean over the tokens of a window carries over to other kinds of writing better: docs/experiments/essays.md.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledClassifier(PreTrainedModel):
    """Two classes from the mean of an encoder's last states over the tokens that are not padding.

    Args:
        config: of the encoder, with `num_labels`.
        encoder: pretrained; without one it is made from the config, for weights that are loaded afterwards.
    """

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True

    def __init__(self, config: PreTrainedConfig, encoder: PreTrainedModel | None = None) -> None:
        if encoder is None:
            encoder = AutoModel.from_config(deepcopy(config))  # chooses the attention that it has
        super().__init__(config)
        self.encoder = encoder
        self.encoder.pooler = None  # of encoders that have one: it reads the first token
        self.dropout = torch.nn.Dropout(getattr(config, "classifier_dropout", None) or 0.0)
        width: Any = getattr(config, "hidden_size", None) or getattr(config, "dim", None)
        self.classifier = torch.nn.Linear(int(width), config.num_labels or 2)
        self.post_init()
        torch.nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Logits of shape (rows, 2) for token ids and mask of shape (rows, length); without a mask none is padding."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        if attention_mask is None:
            pooled = states.mean(1)
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))
