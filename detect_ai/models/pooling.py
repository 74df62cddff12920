"""A classifier with a linear head on the mean of an encoder's last hidden states, instead of the encoder's own head.

Mean pooling generalises better to domains not in training: docs/experiments/log/2026-11-essays-results.md.

The architecture has its own `model_type`, so that other programs reject a checkpoint or bundle instead of loading it as
the plain encoder. Importing this module registers it: `AutoModelForSequenceClassification` and `pipeline` then load it.
`import detect_ai` imports this module only if transformers is already imported, because importing torch takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledConfig(PreTrainedConfig):
    """Configuration of `MeanPooledClassifier`, which contains the encoder's (an object, or values of `config.json`)."""

    model_type = "detect_ai_mean_pooled"

    def __init__(self, encoder: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.encoder = AutoConfig.for_model(**encoder) if isinstance(encoder, dict) else encoder
        super().__init__(**kwargs)


class MeanPooledClassifier(PreTrainedModel):
    """Classes from the mean of an encoder's last hidden states over the tokens that are not padding.

    Without a pretrained encoder, one is created from the configuration, for weights that are loaded afterwards.
    """

    config_class = MeanPooledConfig
    base_model_prefix = "encoder"

    def __init__(self, config: MeanPooledConfig, encoder: PreTrainedModel | None = None) -> None:
        encoder = encoder or AutoModel.from_config(config.encoder)
        super().__init__(config)
        self.encoder = encoder
        self.encoder.pooler = None  # some encoders have one, which reads the first token
        self.dropout = torch.nn.Dropout(getattr(config.encoder, "classifier_dropout", None) or 0.0)
        width: Any = getattr(config.encoder, "hidden_size", None) or getattr(config.encoder, "dim", None)
        self.classifier = torch.nn.Linear(int(width), config.num_labels or 2)
        self.post_init()
        torch.nn.init.normal_(self.classifier.weight, std=getattr(config.encoder, "initializer_range", 0.02))
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Logits of shape (rows, labels) for token ids and mask of shape (rows, length); no mask means no padding."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        if attention_mask is None:
            pooled = states.mean(1)
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


AutoConfig.register(MeanPooledConfig.model_type, MeanPooledConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MeanPooledConfig, MeanPooledClassifier, exist_ok=True)
