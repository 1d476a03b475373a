"""Packed layers give what the plain ones give, and refuse what they cannot do."""

import peft
import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl

from hf_speech_ssl.modeling.cache import ConformerCache
from hf_speech_ssl.modeling.modeling_birq import BiRQModel
from hf_speech_ssl.modeling.modeling_chunkssl import ChunkSSLForCTC, ChunkSSLModel
from hf_speech_ssl.recognition.packing import PackedLayer, can_pack, pack_layers

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Weights, biases and norms far from their initial values, so that one left out would show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("hidden_act", ["silu", "relu", "gelu"])
@torch.inference_mode()
def test_streaming_steps_stay_the_same(hidden_act):
    model = shake(ChunkSSLForCTC(tiny_chunkssl(hidden_act=hidden_act)))
    features, mask = padded_features(96, 75)

    def steps() -> torch.Tensor:
        cache, pieces, masks = ConformerCache(), features.split(32, dim=1), mask.split(32, dim=1)
        outputs = [
            model(
                chunk,
                here,
                lookahead_features=ahead,
                lookahead_attention_mask=there,
                past_key_values=cache,
            ).logits
            for chunk, here, ahead, there in zip(pieces, masks, [*pieces[1:], None], [*masks[1:], None], strict=True)
        ]
        return torch.cat(outputs, dim=1)

    plain = steps()
    assert can_pack(model) and pack_layers(model) is model
    assert all(isinstance(layer, PackedLayer) for layer in model.encoder.layers)
    torch.testing.assert_close(steps(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunk_size", [0, 3])
@torch.inference_mode()
def test_whole_utterances_stay_the_same(attention, chunk_size):
    chunked = shake(ChunkSSLModel(tiny_chunkssl(attn_implementation=attention)))
    windowed = shake(BiRQModel(tiny_birq(attention_window=4, attn_implementation=attention)))
    features, mask = padded_features(50, 31)
    for model, inputs in ((chunked, {"chunk_size": chunk_size}), (windowed, {})):
        plain = model(features, attention_mask=mask, output_hidden_states=True, **inputs)
        packed = pack_layers(model)(features, attention_mask=mask, output_hidden_states=True, **inputs)
        assert len(packed.hidden_states) == len(plain.hidden_states) > 1
        real = plain.attention_mask.bool()
        torch.testing.assert_close(packed.last_hidden_state[real], plain.last_hidden_state[real], rtol=1e-5, atol=1e-5)


def test_a_packed_model_is_not_saved_without_its_weights(tmp_path):
    model = pack_layers(BiRQModel(tiny_birq()))
    with pytest.raises(ValueError, match="cannot be saved"):
        model.save_pretrained(tmp_path)


def test_packing_twice_is_packing_once():
    model = pack_layers(shake(BiRQModel(tiny_birq())))
    features, mask = padded_features(50, 31)
    layers, output = list(model.layers), model(features, attention_mask=mask, output_hidden_states=True)
    assert can_pack(model) and pack_layers(model) is model and list(model.layers) == layers
    again = model(features, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(again.last_hidden_state, output.last_hidden_state)
    assert len(again.hidden_states) == len(output.hidden_states) == 4


def test_layers_that_were_replaced_are_refused():
    """Packing them would leave out what replaced them."""
    quantized = torch.ao.quantization.quantize_dynamic(BiRQModel(tiny_birq()), {torch.nn.Linear})
    adapted = peft.get_peft_model(BiRQModel(tiny_birq()), peft.LoraConfig(target_modules=["qkv_proj"]))
    for model in (quantized, adapted.base_model.model):
        assert not can_pack(model)
        with pytest.raises(ValueError, match="plain float32 layers"):
            pack_layers(model)


def test_other_types_are_refused():
    model = BiRQModel(tiny_birq()).to(torch.bfloat16)
    assert not can_pack(model)
    with pytest.raises(ValueError, match="plain float32 layers"):
        pack_layers(model)
