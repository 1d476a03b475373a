"""Codebook distillation and the second label set: loss, gradient, replacement, and all that a quantizer must keep."""

import copy
from functools import partial

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from test_learned_quantizer import DIM, FEATURES, frames, free_port
from torch import distributed, multiprocessing
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_speech_ssl import BiRQForCTC, BiRQForPreTraining, ChunkSSLForPreTraining
from hf_speech_ssl.modeling.distilled_quantization import Distillation, DistilledQuantizer, similarity_error
from hf_speech_ssl.modeling.learned_quantization import QuantizerLearning

# The projection is estimated in 2 updates, the entries move once after 2 more; then 2 replacements.
LEARNING = {
    "projection_kind": "whitened",
    "projection_updates": 2,
    "codebook_distance": "euclidean",
    "codebook_refinements": 1,
    "codebook_refinement_interval": 2,
}
DISTILLATION = {"distillation_loss_weight": 0.5, "distillation_kmeans_weight": 0.1, "codebook_replacements": [6, 8]}
SECOND = {"second_codebook_size": 10}
MODELS = {
    "best-rq": partial(tiny_birq, enhanced_loss_weight=0.0, unmasked_loss_weight=1.0),
    "birq": tiny_birq,
    "chunkssl": partial(tiny_chunkssl, label_kind="random_projection", codebook_size=24, codebook_dim=4),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def quantizer(num_codebooks: int = 2, distance: str = "euclidean", error: str = "squared") -> DistilledQuantizer:
    learning = QuantizerLearning(codebook_distance=distance)
    distillation = Distillation(0.5, error, codebook_replacements=[1])
    return DistilledQuantizer(distillation, learning, FEATURES, 12, DIM, num_codebooks, 3)


def example(length: int = 15) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames, states, and which frames are shown, of two utterances."""
    generator = torch.Generator().manual_seed(4)
    vectors = frames(2 * length, seed=1).view(2, length, FEATURES)
    states = torch.randn(2, length, 9, generator=generator)
    return vectors, states, torch.rand(2, length, generator=generator) < 0.7


def slow_error(quantized: torch.Tensor, states: torch.Tensor, shown: torch.Tensor, error: str) -> torch.Tensor:
    pairs = [(s, t) for s in shown.nonzero()[:, 0] for t in shown.nonzero()[:, 0] if s != t]
    gaps = [
        F.cosine_similarity(quantized[s], quantized[t], 0) - F.cosine_similarity(states[s], states[t], 0)
        for s, t in pairs
    ]
    return sum(gap.abs() if error == "absolute" else gap**2 for gap in gaps) / len(pairs)


@pytest.mark.parametrize("error", ["squared", "absolute"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_losses_equal_slow_ones(error: str, distance: str):
    module, (vectors, states, shown) = quantizer(2, distance, error), example()
    with torch.no_grad():
        module.codebook_offset.normal_(std=0.3)
    errors, kmeans = module.distillation_losses(vectors, states, shown)
    for row in range(2):
        wanted, distances = [], []
        for projection, codebook in zip(module.projection, module.codebook + module.codebook_offset, strict=True):
            points = vectors[row] @ projection
            if distance == "cosine":
                points, codebook = F.normalize(points, dim=-1), F.normalize(codebook, dim=-1)
            chosen = codebook[torch.cdist(points, codebook).argmin(-1)]
            wanted.append(slow_error(chosen, states[row], shown[row], error))
            distances.append((points - chosen)[shown[row]].square().mean())
        torch.testing.assert_close(errors[row], torch.stack(wanted).mean())
        torch.testing.assert_close(kmeans[row], torch.stack(distances).mean())


@pytest.mark.parametrize("error", ["squared", "absolute"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradient_equals_finite_differences(error: str, distance: str):
    module, (vectors, states, shown) = quantizer(2, distance, error), example(9)
    for name, values in module._buffers.items():
        module._buffers[name] = values.double()
    offset = torch.randn(module.codebook_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    del module._parameters["codebook_offset"]

    def losses(offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        module.codebook_offset = offset
        return module.distillation_losses(vectors.double(), states.double(), shown)

    assert torch.autograd.gradcheck(losses, (0.2 * offset).requires_grad_())


def test_gradients_reach_the_chosen_entries_alone():
    module, (vectors, states, shown) = quantizer(1), example()
    states.requires_grad_()
    module.distillation_losses(vectors, states, shown)[0].sum().backward()
    chosen = module.labels(vectors[shown])[:, 0].unique()
    moved = module.codebook_offset.grad[0].abs().sum(-1).nonzero()[:, 0]
    assert states.grad is None and torch.equal(moved, chosen) and len(chosen) < 12


@pytest.mark.parametrize("length", [0, 1])
def test_utterances_without_a_pair_have_no_loss(length: int):
    vectors, states, shown = example()
    shown[1] = torch.arange(15) < length
    module = quantizer()
    errors, kmeans = module.distillation_losses(vectors, states, shown)
    (errors + kmeans).sum().backward()
    assert errors[1] < 1e-9 < errors[0] and module.codebook_offset.grad.isfinite().all()


def test_large_and_small_states_count_alike():
    quantized, states, shown = torch.randn(1, 9, 3), torch.randn(1, 9, 4), torch.ones(1, 9, dtype=torch.bool)
    scales = torch.rand(1, 9, 1) + 0.1
    wanted = similarity_error(quantized, states, shown, "squared")
    torch.testing.assert_close(similarity_error(quantized * scales, states * 7, shown, "squared"), wanted)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_replaced_codebook_keeps_the_meaning_of_labels(distance: str):
    module = quantizer(2, distance)
    old, noise = module.codebook.clone(), torch.randn(2, 12, DIM, generator=torch.Generator().manual_seed(8))
    orders = [torch.randperm(12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    near = old + 0.05 * noise
    copies = torch.stack([entries[order] for entries, order in zip(near, orders, strict=True)])
    with torch.no_grad():
        module.codebook_offset.copy_(copies - old)
    module.update()
    assert torch.equal(module.codebook, old), "no replacement is due before the first update"
    module.update()
    torch.testing.assert_close(module.codebook, near)
    torch.testing.assert_close(module.codebook + module.codebook_offset, copies)
    kept = module.codebook.clone()
    module.update()
    assert torch.equal(module.codebook, kept), "it was the last"


def build(kind: str, **fields) -> torch.nn.Module:
    torch.manual_seed(7)
    config = MODELS[kind](**{**LEARNING, **DISTILLATION, **SECOND, **fields})
    return (ChunkSSLForPreTraining if kind == "chunkssl" else BiRQForPreTraining)(config).train()


def batches(model: torch.nn.Module, count: int) -> list[dict[str, torch.Tensor]]:
    """Batches of four utterances, with their masks."""
    torch.manual_seed(5)
    made = []
    for _ in range(count):
        features, mask = padded_features(80, 64, 80, 72)
        real = mask[:, :: model.config.frame_stacking]
        mask_time_indices = (torch.rand(real.shape) < 0.4) & real
        made.append(
            {"input_features": features, "attention_mask": mask.long(), "mask_time_indices": mask_time_indices}
        )
    return made


def cropped(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without the padding that all its utterances have."""
    length = int(batch["attention_mask"].sum(1).max())
    masked = batch["mask_time_indices"]
    shown = {name: batch[name][:, :length] for name in ("input_features", "attention_mask")}
    return shown | {"mask_time_indices": masked[:, : length * masked.shape[1] // batch["attention_mask"].shape[1]]}


def train(model: torch.nn.Module, data: list[dict[str, torch.Tensor]], parts: int = 1) -> torch.nn.Module:
    """Updates by plain gradient steps, which have no state; a part of a batch counts as its masked frames do."""
    group = distributed.is_initialized() and distributed.get_world_size()
    for number, batch in enumerate(data):
        torch.manual_seed(number)
        shares = [
            cropped({name: values.chunk(parts)[part] for name, values in batch.items()}) for part in range(parts)
        ]
        counts = []
        for share in shares if not group else [shares[distributed.get_rank()]]:
            output = model(**share)
            counts.append(output.num_masked_frames)
            (output.loss * counts[-1]).backward()
        total = torch.stack(counts).sum()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for tensor in [total, *gradients] if group else []:
            distributed.all_reduce(tensor)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:  # large steps, so that the copy changes places with others
                    parameter -= (30 if "offset" in name else 0.01) * parameter.grad / total
                parameter.grad = None
    return model


def labelers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: values for name, values in model.state_dict().items() if "quantizer" in name}


def assert_same_labelers(model: torch.nn.Module, wanted: torch.nn.Module, **tolerance) -> None:
    for name, values in labelers(wanted).items():
        torch.testing.assert_close(model.state_dict()[name], values, **tolerance, msg=name)


EXACT, CLOSE = {"atol": 0, "rtol": 0}, {"atol": 1e-4, "rtol": 1e-3}


@every_model
def test_the_copy_learns_from_the_start_to_the_last_replacement(kind: str):
    model = build(kind)
    data, gradients, losses, changed = batches(model, 10), [], [], []
    for number, batch in enumerate(data, 1):
        before = labelers(copy.deepcopy(model))
        output = model(**batch)
        output.loss.backward()
        if model.quantizer.codebook_offset.grad.any():
            gradients.append(number)
        assert model.quantizer.codebook_offset.grad is not None  # processes wait for it
        if output.distillation_loss is not None:
            losses.append(number)
            assert output.distillation_loss > 0 and output.distillation_kmeans > 0
        model.zero_grad()
        train(model, [], 1)
        with torch.no_grad():
            model.quantizer.codebook_offset += 0.01
        changed.append({name for name, values in labelers(model).items() if not torch.equal(values, before[name])})
    assert gradients == losses == [5, 6, 7, 8]
    moves = {name: [n for n, names in enumerate(changed, 1) if name in names] for name in labelers(model)}
    assert moves["quantizer.codebook"] == [5, 7, 9]  # refined after 4 updates, replaced after 6 and 8
    assert moves["second_quantizer.codebook"] == [5]
    assert moves["quantizer.projection"] == moves["second_quantizer.projection"] == [2, 3]


def test_no_gradient_of_the_distillation_reaches_the_encoder():
    first, second = (build("best-rq", distillation_loss_weight=weight) for weight in (0.5, 50.0))
    data = batches(first, 5)
    for model in (first, second):
        train(model, data[:4])
        torch.manual_seed(0)
        model(**data[4]).loss.backward()
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        scale = 100 if name == "quantizer.codebook_offset" else 1
        torch.testing.assert_close(one.grad * scale, other.grad, msg=name)


def test_middle_blocks_are_normalized_and_averaged():
    model = build("best-rq", distillation_layers=[1, 3], num_codebooks=1, mask_noise_std=0.0)
    *earlier, batch = batches(model, 5)
    train(model, earlier)
    model.encoder.config.output_hidden_states = False
    output = model(**batch, output_hidden_states=True)
    shown = batch["attention_mask"].bool()[:, ::2] & ~batch["mask_time_indices"]
    total = 0.0
    stacked, _ = model.encoder.stack_frames(batch["input_features"], batch["attention_mask"])
    for row in range(4):
        states = [output.hidden_states[block][row][shown[row]] for block in (1, 3)]
        states = sum((one - one.mean(0)) / (one.var(0, correction=0) + 1e-5).sqrt() for one in states) / 2
        entries = model.quantizer.codebook[0][model.quantizer.labels(stacked[row][shown[row]])[:, 0]]
        everything = torch.ones(len(states), dtype=torch.bool)
        total += slow_error(entries, states, everything, "squared") * batch["mask_time_indices"][row].sum()
    torch.testing.assert_close(output.distillation_loss, total / batch["mask_time_indices"].sum())
    assert MODELS["best-rq"]().distilled_layers == [2]
    assert MODELS["best-rq"](num_hidden_layers=12).distilled_layers == [5, 6, 7, 8]


@pytest.mark.parametrize("kind", ["best-rq", "chunkssl"])
def test_two_label_sets_share_the_loss(kind: str):
    model = build(kind, distillation_loss_weight=0.0).eval()
    alone = build(kind, distillation_loss_weight=0.0, second_codebook_size=0).eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    batch = batches(model, 1)[0] | ({"chunk_size": 4} if kind == "chunkssl" else {})
    both, first = model(**batch), alone(**batch)
    alone.quantizer, alone.prediction_head = model.second_quantizer, model.second_prediction_head
    alone.config.codebook_size = 10
    second = alone(**batch)
    torch.testing.assert_close(both.loss, (first.loss + second.loss) / 2)
    torch.testing.assert_close(both.second_accuracy, second.accuracy)
    assert both.accuracy == first.accuracy and first.second_loss is None
    made, real = model.make_labels(batch["input_features"], batch["attention_mask"])
    assert made["second"].sizes == [10] and made["second"].ids[real].max() < 10
    assert "second" not in model.make_labels(batch["input_features"], seeded_only=True)[0], "it is learned"


@pytest.mark.parametrize("kind", ["best-rq", "chunkssl"])  # BiRQ's Gumbel noise depends on the order of its draws
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_steps_and_padding_change_nothing(kind: str, parts: int):
    """Four parts are single utterances without padding."""
    whole, in_parts = (build(kind, **({} if kind == "chunkssl" else {"mask_noise_std": 0.0})) for _ in range(2))
    data = batches(whole, 9)
    assert_same_labelers(train(in_parts, data, parts), train(whole, data), **CLOSE)
    assert whole.quantizer.num_updates == in_parts.quantizer.num_updates == 9


def one_process(rank: int, num_processes: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_processes)
    model = build("best-rq", mask_noise_std=0.0)
    train(model, batches(model, 9), parts=num_processes)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_learn_what_one_learns(tmp_path):
    model = build("best-rq", mask_noise_std=0.0)
    start = model.quantizer.codebook.clone()
    train(model, batches(model, 9))
    multiprocessing.start_processes(one_process, (2, free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, values in labelers(model).items():
        torch.testing.assert_close(first[name], values, **CLOSE, msg=name)
        assert torch.equal(first[name], second[name]), name
    assert (model.quantizer.codebook - start).abs().max() > 0.1


@pytest.mark.parametrize(("kind", "saved_after"), [("best-rq", 3), ("best-rq", 5), ("best-rq", 6), ("chunkssl", 5)])
def test_a_resumed_run_has_the_same_labels(kind: str, saved_after: int, tmp_path):
    """Saved in the window of the refinement, while the copy learns, and between its last step and the replacement."""
    whole, first = build(kind), build(kind)
    data = batches(whole, 9)
    train(whole, data[:saved_after])
    train(first, data[:saved_after])
    first.save_pretrained(tmp_path)
    resumed = type(first).from_pretrained(tmp_path).train()
    assert_same_labelers(resumed, whole, **EXACT)
    train(whole, data[saved_after:])
    assert_same_labelers(train(resumed, data[saved_after:]), whole, **EXACT)


def test_trainer_distills(tmp_path):
    model, wanted = (build("best-rq", mask_noise_std=0.0) for _ in range(2))
    data = batches(model, 9)
    optimizer = torch.optim.AdamW(wanted.parameters(), lr=1e-2, fused=True, weight_decay=0.0)
    for batch in data:
        for part in range(2):
            (wanted(**{name: values.chunk(2)[part] for name, values in batch.items()}).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    examples = [{name: values[row] for name, values in batch.items()} for batch in data for row in range(4)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=9,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=examples).train()
    assert_same_labelers(model, wanted, **CLOSE)


def test_labels_come_from_the_codebook_and_not_from_its_copy():
    model = build("best-rq").eval()
    features, mask = padded_features(80, 64)
    before = model.make_labels(features, mask)[0]["anchor"].ids
    with torch.no_grad():
        model.quantizer.codebook_offset.normal_()
    assert torch.equal(model.make_labels(features, mask)[0]["anchor"].ids, before)
    assert model(features, mask).distillation_loss is None


def test_a_checkpoint_without_a_copy_goes_on_with_one(tmp_path):
    build("best-rq", distillation_loss_weight=0.0, second_codebook_size=0).save_pretrained(tmp_path / "before")
    model = BiRQForPreTraining.from_pretrained(tmp_path / "before", **DISTILLATION, **SECOND)
    assert_same_labelers(model, build("best-rq"), **EXACT)
    with torch.no_grad():
        model.quantizer.codebook_offset += 1
    model.save_pretrained(tmp_path / "after")
    _, info = BiRQForCTC.from_pretrained(tmp_path / "after", output_loading_info=True)
    assert not info["unexpected_keys"]
    again = BiRQForPreTraining.from_pretrained(tmp_path / "after")
    assert_same_labelers(again, model, **EXACT)
    again._init_weights(again.quantizer)
    assert (again.quantizer.codebook_offset == 1).all(), "what was loaded stays"


def test_a_model_in_half_precision_keeps_its_codebooks(tmp_path):
    model = build("best-rq")
    model.save_pretrained(tmp_path)
    for half in (model.to(torch.bfloat16), BiRQForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert half.quantizer.codebook.dtype == half.second_quantizer.codebook.dtype == torch.float32
        features, mask = padded_features(80, 64)
        assert half.train()(features.bfloat16(), mask).loss.isfinite()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook_replacements": []}, "codebook_replacements needs one or more ascending numbers.*above.* = 4"),
        ({"codebook_replacements": [4]}, "ascending"),
        ({"codebook_replacements": [8, 6]}, "ascending"),
        ({"distillation_start": 1}, "distillation_start must be at least projection_updates = 2"),
        ({"distillation_error": "cubed"}, "distillation_error must be one of squared, absolute"),
        ({"distillation_loss_weight": -1}, "distillation_loss_weight must not be negative"),
        ({"distillation_kmeans_weight": -1}, "distillation_kmeans_weight must not be negative"),
        ({"distillation_layers": [4]}, "from 1 to num_hidden_layers = 3"),
        ({"distillation_layers": []}, "one or more"),
        ({"second_codebook_size": -1}, "second_codebook_size must not be negative"),
    ],
)
def test_refused_settings(fields: dict, message: str):
    with pytest.raises(Exception, match=message):
        build("best-rq", **fields)


@pytest.mark.parametrize("fields", [SECOND, DISTILLATION])
def test_a_tokenizer_has_no_codebook_to_distill(fields: dict):
    with pytest.raises(Exception, match='label_kind="random_projection"'):
        tiny_chunkssl(**fields)
