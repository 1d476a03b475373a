"""BiRQ's enhanced labels by clusters and by an average of the encoder, against references, processes and resume."""

import copy
import dataclasses
import socket

import pytest
import torch
from helpers import padded_features, tiny_birq
from torch import distributed, multiprocessing
from torch.nn import functional as F

from hf_speech_ssl import BiRQForPreTraining, BiRQModel
from hf_speech_ssl.modeling.enhanced_labels import BlockQuantizer
from hf_speech_ssl.modeling.modeling_speech_ssl import normalize_over_frames
from hf_speech_ssl.training.averaging import learned_labels

Batch = dict[str, torch.Tensor]
K = 2  # of tiny_birq's three blocks
CLUSTERS = {
    "enhanced_label_kind": "clusters",
    "enhanced_refinement_interval": 2,
    "enhanced_loss_weight": 1.0,
    "unmasked_loss_weight": 1.0,
    "mask_noise_std": 0.0,
}
AVERAGE = {"label_encoder_decay": 0.4, "enhanced_loss_weight": 1.0, "mask_noise_std": 0.0}
WIDTH, ENTRIES = 32, 24


def build(**fields) -> BiRQForPreTraining:
    torch.manual_seed(7)
    return BiRQForPreTraining(tiny_birq(label_layer=K, **fields)).train()


def batches(count: int) -> list[Batch]:
    """Four utterances each; every utterance has as many masked frames, so that batches may be cut into parts."""
    torch.manual_seed(5)
    masked = torch.zeros(4, 40, dtype=torch.bool)
    masked[:, 8:20] = True
    names = ("input_features", "attention_mask")
    made = [dict(zip(names, padded_features(80, 64, 80, 72), strict=True)) for _ in range(count)]
    return [{**batch, "mask_time_indices": masked} for batch in made]


def train(model: BiRQForPreTraining, data: list[Batch], accumulation: int = 1, lr: float = 1e-2) -> BiRQForPreTraining:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for number, batch in enumerate(data):
        torch.manual_seed(number)
        for part in zip(*(values.chunk(accumulation) for values in batch.values()), strict=True):
            (model(**dict(zip(batch, part, strict=True))).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_same(found: BiRQForPreTraining, wanted: BiRQForPreTraining, prefix: str = "") -> None:
    compared = 0
    for name, values in wanted.state_dict().items():
        if name.startswith(prefix):
            assert torch.equal(found.state_dict()[name], values), name
            compared += 1
    assert compared > 10


def test_the_average_equals_its_recursion():
    model, data = build(**AVERAGE), batches(8)
    wanted: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(data):
        decay = min(0.4, number / (number + 10))
        for name, weight in model.encoder.named_parameters():
            wanted[name] = decay * wanted.get(name, 0) + (1 - decay) * weight.detach()
        train(model, [batch])
    average = model.label_maker.average.module
    assert not list(average.parameters())
    for name, values in average.named_buffers():
        if name in wanted:
            torch.testing.assert_close(values, wanted[name], msg=name)
    encoder = BiRQModel(model.config).eval()
    encoder.load_state_dict(dict(average.named_buffers()), strict=False)
    features = {name: values for name, values in data[0].items() if name != "mask_time_indices"}
    states = encoder(**features, output_hidden_states=True).hidden_states[K]
    torch.testing.assert_close(
        model.label_states(*model.encoder.stack_frames(**features)), states, atol=1e-5, rtol=1e-5
    )
    made, real = model.make_labels(**features)
    ids = model.quantizer.likeliest(normalize_over_frames(states, real).flatten(0, 1))
    assert (made["enhanced"].ids.flatten(0, 1) == ids).float().mean() > 0.99


@pytest.mark.parametrize("fields", [CLUSTERS, AVERAGE, {**CLUSTERS, "label_encoder_decay": 0.9}])
def test_no_pass_is_added_and_no_gradient_flows_through_the_labels(fields: dict):
    """Blocks 1 to K run once more at most, for the labels, and by themselves the labels move no weight of theirs."""
    model, data = build(**fields), batches(5)
    train(model, data[:4])
    calls: list[int] = []
    for index, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    states, label_states = [], model.label_states
    model.label_states = lambda *arguments: states.append(label_states(*arguments)) or states[-1]
    model(**data[4]).loss.backward()
    assert not states[0].requires_grad
    assert calls == [0, 1, 2] + ([] if "label_encoder_decay" in fields else [0, 1])


def test_the_average_makes_labels_without_dropout():
    model, data = build(**AVERAGE, hidden_dropout=0.5), batches(2)
    train(model, data[:1])
    stacked, frame_mask = model.encoder.stack_frames(data[1]["input_features"], data[1]["attention_mask"])
    assert torch.equal(model.train().label_states(stacked, frame_mask), model.label_states(stacked, frame_mask))


def block_vectors(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator) * torch.logspace(0.5, -1, WIDTH) + 0.3


def test_entries_move_as_in_k_means_first_by_anchor_label_then_by_distance():
    module = BlockQuantizer(tiny_birq(**CLUSTERS, num_codebooks=2))
    module.learning = dataclasses.replace(module.learning, reseed_dead_entries=False)
    labels = torch.randint(ENTRIES, (60, 2), generator=torch.Generator().manual_seed(3))
    for window in range(2):
        seen, chosen = [], []
        for number in range(2):
            module.update()
            old = module.codebook.clone()
            vectors = block_vectors(60, 2 * window + number)
            seen.append(vectors)
            chosen.append(labels if window == 0 else torch.cdist(vectors, old).argmin(-1).T)
            module.observe(vectors, torch.ones(60), labels)
        points, entries = torch.cat(seen), torch.cat(chosen)
        after = copy.deepcopy(module)
        after.update()
        for codebook in range(2):
            for entry in range(ENTRIES):
                mine = torch.cat([old[codebook, entry][None], points[entries[:, codebook] == entry]])
                torch.testing.assert_close(after.codebook[codebook, entry], mine.mean(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(module.labels(vectors), torch.cdist(vectors, module.codebook).argmin(-1).T)


def test_accumulation_steps_belong_to_one_update():
    fields = {**CLUSTERS, "label_encoder_decay": 0.9}
    whole = train(build(**fields), batches(7), lr=0)
    in_parts = train(build(**fields), batches(7), accumulation=2, lr=0)
    assert whole.label_maker.num_updates == in_parts.label_maker.num_updates == 7
    for name, values in whole.label_maker.state_dict().items():
        torch.testing.assert_close(in_parts.label_maker.state_dict()[name], values, atol=1e-3, rtol=1e-3, msg=name)
    assert not torch.equal(whole.clusters.codebook, build(**fields).clusters.codebook)


@pytest.mark.parametrize("saved_after", [2, 4, 5])
def test_a_resumed_run_is_the_same(saved_after: int, tmp_path):
    """Saved in the warm-up, at its end, and in a window of the entries."""
    fields = {**CLUSTERS, "label_encoder_decay": 0.9, "enhanced_warmup_updates": 3}
    data = batches(8)
    first = train(build(**fields), data[:saved_after])
    first.save_pretrained(tmp_path)
    resumed = BiRQForPreTraining.from_pretrained(tmp_path).train()
    assert_same(resumed, first)
    assert_same(train(resumed, data[saved_after:]), train(first, data[saved_after:]))


def test_before_the_end_of_the_warm_up_the_loss_is_that_of_best_rq():
    data = batches(6)
    model = build(**{**CLUSTERS, "label_encoder_decay": 0.9, "enhanced_warmup_updates": 4})
    best_rq = build(**{**CLUSTERS, "enhanced_loss_weight": 0.0})
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-2) for one in (model, best_rq)]
    calls: list[int] = []
    model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.label_maker.average.module.layers[0].register_forward_hook(lambda *_: calls.append(1))
    equal, passes = [], []
    for batch in data:
        outputs = [one(**batch) for one in (model, best_rq)]
        equal.append(torch.equal(outputs[0].loss, outputs[1].loss))
        passes.append(len(calls))
        calls.clear()
        for output, optimizer in zip(outputs, optimizers, strict=True):
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert equal == [True] * 4 + [False] * 2
    assert passes == [1, 1, 2, 2, 2, 2]  # the labels begin to be learned one window before


def test_the_loss_is_the_cross_entropy_against_the_labels_of_masked_frames():
    model, data = build(**CLUSTERS), batches(4)
    train(model, data[:3])
    batch = data[3]
    output = model(**batch)
    real = batch["attention_mask"][:, ::2].bool()
    made, _ = model.make_labels(batch["input_features"], batch["attention_mask"])
    logits = torch.zeros(4, 40, ENTRIES).index_put(real.nonzero(as_tuple=True), output.logits[:, 0])
    losses = F.cross_entropy(logits.transpose(1, 2), made["enhanced"].ids[..., 0], reduction="none")
    torch.testing.assert_close(output.enhanced_loss, losses[batch["mask_time_indices"]].mean())
    hits = logits.argmax(-1) == made["enhanced"].ids[..., 0]
    torch.testing.assert_close(output.enhanced_accuracy, hits[batch["mask_time_indices"]].float().mean())
    others = output.anchor_loss + output.unmasked_loss
    torch.testing.assert_close(output.loss, 2.4 * others + output.enhanced_loss)


def one_process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(taught(rank, 2).state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def taught(rank: int = 0, num_processes: int = 1) -> BlockQuantizer:
    module = BlockQuantizer(tiny_birq(**CLUSTERS))
    for number in range(5):
        module.update()
        vectors = block_vectors(64, number)
        labels = vectors[:, :1].abs().mul(10).long().clamp(max=ENTRIES - 1)
        parts = [values.chunk(num_processes)[rank] for values in (vectors, torch.ones(64), labels)]
        module.observe(*parts)
    module.update()
    return module


def test_two_processes_learn_what_one_learns(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    multiprocessing.start_processes(one_process, (port, str(tmp_path)), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, values in taught().state_dict().items():
        torch.testing.assert_close(states[0][name], values, atol=1e-4, rtol=1e-4, msg=name)
        assert torch.equal(states[0][name], states[1][name]), name


def test_means_of_checkpoints_leave_out_what_was_learned():
    model = build(**{**CLUSTERS, "label_encoder_decay": 0.9})
    assert {f"label_maker.{name}" for name in model.label_maker.state_dict()} <= learned_labels(model).keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enhanced_label_kind": "kmeans"}, "enhanced_label_kind must be one of gumbel, clusters"),
        ({"enhanced_refinement_interval": 0}, "enhanced_refinement_interval must be at least 1"),
        ({"enhanced_warmup_updates": -1}, "enhanced_warmup_updates must not be negative"),
        ({"label_encoder_decay": 1.0}, "label_encoder_decay must lie between"),
    ],
)
def test_refused_settings(fields: dict, message: str):
    with pytest.raises(Exception, match=message):
        tiny_birq(**fields)
