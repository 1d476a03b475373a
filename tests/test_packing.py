"""Packed linear layers give what the plain ones give, and refuse what they cannot do."""

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl

from hf_speech_ssl.modeling.chunking import ConformerCache
from hf_speech_ssl.modeling.modeling_birq import BiRQModel
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC
from hf_speech_ssl.packing import PackedLinear, can_pack, pack_linear_layers

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@torch.inference_mode()
def test_streaming_steps_stay_the_same():
    model = ChunkSSLForCTC(tiny_chunkssl()).eval()
    features = torch.randn(2, 96, 80)

    def steps() -> torch.Tensor:
        cache = ConformerCache()
        pieces = features.split(32, dim=1)
        ahead = [*pieces[1:], None]
        outputs = [model(a, lookahead_features=b, past_key_values=cache) for a, b in zip(pieces, ahead, strict=True)]
        return torch.cat([output.logits for output in outputs], dim=1)

    plain = steps()
    assert can_pack(model) and pack_linear_layers(model) is model
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    torch.testing.assert_close(steps(), plain, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_whole_utterances_stay_the_same():
    model = BiRQModel(tiny_birq()).eval()
    features, mask = padded_features(50, 31)
    plain = model(features, attention_mask=mask).last_hidden_state
    packed = pack_linear_layers(model)(features, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_a_packed_model_is_not_saved_without_its_weights(tmp_path):
    model = pack_linear_layers(BiRQModel(tiny_birq()))
    with pytest.raises(ValueError, match="cannot be saved"):
        model.save_pretrained(tmp_path)


def test_other_types_are_refused():
    model = BiRQModel(tiny_birq()).to(torch.bfloat16)
    assert not can_pack(model)
    with pytest.raises(ValueError, match="float32 models on a CPU"):
        pack_linear_layers(model)
