"""A last layer for the first token alone gives the logits and the gradients of the whole layer."""

from copy import deepcopy

import pytest
import torch
from transformers import BertConfig, DistilBertConfig, RobertaConfig
from transformers import BertForSequenceClassification as Bert
from transformers import DistilBertForSequenceClassification as DistilBert
from transformers import RobertaForSequenceClassification as Roberta

from detect_ai.models import encoder as model
from detect_ai.models import first_token
from detect_ai.models.first_token import last_layer, read_first_token, used_once_a_row
from tests.unit.conftest import config_of

SMALL = {"vocab_size": 60, "max_position_embeddings": 40}
BERT = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, **SMALL)
DISTILBERT = DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=48, **SMALL)


def pair(kind, config):
    """A model as transformers has it, and the same one with our last layer."""
    torch.manual_seed(0)
    plain = kind(config).eval()
    ours = deepcopy(plain)
    read_first_token(ours)
    return plain, ours


def batch(padded):
    torch.manual_seed(1)
    lengths = torch.tensor([20, 7, 1, 13] if padded else [20] * 4)
    mask = (torch.arange(20)[None] < lengths[:, None]).long()
    return {"input_ids": torch.randint(5, 60, (4, 20)), "attention_mask": mask}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("kind", "config"), [(Bert, BERT), (DistilBert, DISTILBERT)])
def test_logits_and_gradients_are_those_of_the_whole_layer(kind, config, padded):
    found = []
    for network in pair(kind, config):
        logits = network(**batch(padded)).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
        found.append((logits.detach(), {name: p.grad for name, p in network.named_parameters()}))
    (plain, expected), (ours, gradients) = found
    assert torch.allclose(ours, plain, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


@pytest.mark.parametrize(("kind", "config"), [(Bert, BERT), (DistilBert, DISTILBERT)])
def test_the_last_layer_works_on_one_token(kind, config):
    plain, ours = pair(kind, config)
    shapes = []
    for network in (plain, ours):
        last_layer(network).register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
        network(**batch(padded=True))
    assert shapes == [(4, 20, 32), (4, 1, 32)]
    assert used_once_a_row(plain) == []
    assert sum(p.numel() for p in used_once_a_row(ours) if p.ndim == 2) == 2 * 32 * 32 + 2 * 32 * 48


@pytest.mark.parametrize(("kind", "config"), [(Bert, BERT), (DistilBert, DISTILBERT)])
def test_on_a_gpu_the_layer_is_whole(kind, config, monkeypatch):
    plain, ours = pair(kind, config)
    worked_on = []
    last_layer(ours).attention.register_forward_hook(
        lambda _, inputs, output: worked_on.append(output[0].shape if isinstance(output, tuple) else output.shape)
    )
    monkeypatch.setattr(first_token, "_on_gpu", lambda tensor: True)
    assert torch.allclose(ours(**batch(padded=True)).logits, plain(**batch(padded=True)).logits, atol=1e-6)
    assert worked_on == [(4, 20, 32)]
    assert used_once_a_row(ours) == []


@pytest.mark.parametrize(("kind", "config"), [(Bert, BERT), (DistilBert, DISTILBERT)])
def test_dropout_of_attention_is_drawn_in_training_alone(kind, config):
    ours, inputs = pair(kind, config)[1], batch(padded=True)
    attention = last_layer(ours).attention
    getattr(attention, "self", attention).dropout.p = 0.5
    assert torch.equal(ours(**inputs).logits, ours(**inputs).logits)
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout) and module.p != 0.5:
            module.p = 0.0
    assert not torch.equal(ours(**inputs).logits, ours(**inputs).logits)


def test_weights_have_the_names_that_transformers_gives_them():
    plain, ours = pair(Bert, BERT)
    assert plain.state_dict().keys() == ours.state_dict().keys()


def test_other_models_and_other_kinds_of_attention_stay_as_they_are():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ours = pair(Roberta, RobertaConfig(**small, **SMALL))[1]
    assert used_once_a_row(ours) == []
    eager = pair(Bert, BertConfig(**small, **SMALL, attn_implementation="eager"))[1]
    assert used_once_a_row(eager) == []


def test_models_that_are_built_and_loaded_have_it_unless_their_head_reads_all_tokens(encoder, tmp_path):
    for pooling, has in (("encoder", True), ("mean", False)):
        config = config_of(encoder)
        config.pooling = pooling
        network = model.build(config, seed=0)
        assert bool(used_once_a_row(network)) is has
        model.save(network, tmp_path / pooling)
        assert bool(used_once_a_row(model.load(tmp_path / pooling))) is has
