import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from detect_ai.core.errors import InputError
from detect_ai.models import encoder as model
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.models.batch import Batch
from detect_ai.models.first_token import read_first_token
from detect_ai.models.masking import keep_mask
from detect_ai.release.shrinking import keep_layers, keep_neurons
from tests.unit.conftest import config_of


@pytest.fixture
def network(encoder):
    return model.build(config_of(encoder), 0).eval()


@pytest.fixture
def distilbert():
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=400, dim=32, n_layers=3, n_heads=2, hidden_dim=64, num_labels=2)
    network = DistilBertForSequenceClassification(config).eval()
    read_first_token(network)
    keep_mask(network)
    return network


def scores(network):
    ids = np.random.default_rng(0).integers(5, 200, (3, 16)).astype(np.int32)
    return TorchBackend(network, torch.device("cpu")).log_odds(Batch(ids, np.asarray([16, 9, 4], np.int32)))


def reloaded(network, folder):
    model.save(network, folder)
    return scores(model.load(folder))


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_the_first_layers_are_those_of_an_encoder_that_never_had_more(encoder, tmp_path, pooling):
    short = model.build(config_of(encoder, layers=1, pooling=pooling), 0)
    cut = model.build(config_of(encoder, pooling=pooling), 0)
    cut.classifier.load_state_dict(short.classifier.state_dict())
    if pooling == "encoder":  # the encoder's own file has one, drawn by the seed after other layers
        cut.base_model.pooler.load_state_dict(short.base_model.pooler.state_dict())
    keep_layers(cut, 1)
    np.testing.assert_allclose(scores(cut), scores(short), atol=1e-6)
    np.testing.assert_allclose(reloaded(cut, tmp_path), scores(short), atol=1e-6)


def test_the_last_layer_that_is_left_reads_the_first_token_alone(network, distilbert):
    for each in (network, distilbert):
        kind = type(each.base_model.encoder.layer[-1] if each is network else each.base_model.transformer.layer[-1])
        keep_layers(each, 1)
        layers = each.base_model.encoder.layer if each is network else each.base_model.transformer.layer
        assert [type(layer) for layer in layers] == [kind]


@pytest.mark.parametrize("count", [0, 2, 3])
def test_as_many_layers_as_there_are_or_none_are_refused(network, count):
    with pytest.raises(InputError, match=f"{count} layers: expected 1 to 1, fewer than the encoder has"):
        keep_layers(network, count)


def test_neurons_that_do_nothing_are_dropped_first(network, distilbert, tmp_path):
    for each, names in ((network, ("intermediate.dense", "output.dense")), (distilbert, ("ffn.lin1", "ffn.lin2"))):
        layers = each.base_model.encoder.layer if each is network else each.base_model.transformer.layer
        for layer in layers:
            out = layer.get_submodule(names[1])
            out.weight.data[:, ::2] = 0  # every other neuron is not listened to
        expected = scores(each)
        keep_neurons(each, 50)
        assert [layer.get_submodule(names[0]).out_features for layer in layers] == [32] * len(layers)
        np.testing.assert_allclose(scores(each), expected, atol=1e-6)
        np.testing.assert_allclose(reloaded(each, tmp_path / type(each).__name__), expected, atol=1e-6)


@pytest.mark.parametrize("percent", [0, 100])
def test_all_neurons_or_none_are_refused(network, percent):
    with pytest.raises(InputError, match=f"{percent}% of 64 neurons: expected 1 to 99%"):
        keep_neurons(network, percent)


def test_an_encoder_of_a_kind_that_we_do_not_know_is_refused():
    network = torch.nn.Module()
    network.base_model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="no list of layers that we know in Linear"):
        keep_layers(network, 1)
