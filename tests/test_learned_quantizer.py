"""The quantizer that learns: against exact decompositions and k-means, over processes, accumulation and resume."""

import copy
import socket
from functools import partial

import pytest
import torch
from helpers import padded_features, tiny_birq, tiny_chunkssl
from torch import distributed, multiprocessing
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_speech_ssl import BiRQForPreTraining, ChunkSSLForPreTraining
from hf_speech_ssl.modeling.learned_quantization import LearnedQuantizer, QuantizerLearning

LEARNING = {
    "projection_kind": "whitened",
    "projection_updates": 3,
    "codebook_refinements": 2,
    "codebook_refinement_interval": 2,
    "reseed_dead_entries": True,
}
FEATURES, DIM = 20, 6


def quantizer(num_codebooks: int = 2, size: int = 12, **learning) -> LearnedQuantizer:
    return LearnedQuantizer(QuantizerLearning(**{**LEARNING, **learning}), FEATURES, size, DIM, num_codebooks, seed=3)


def frames(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated features with a mean, most of whose variance lies in one direction."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(99))
    independent = torch.randn(count, FEATURES, generator=generator) * torch.logspace(1, -1, FEATURES)
    return independent @ mixing + 0.5


def teach(module: LearnedQuantizer, *updates: torch.Tensor) -> LearnedQuantizer:
    for vectors in updates:
        module.update()
        module.observe(vectors, torch.ones(len(vectors)))
    return module


def up_to_sign(found: torch.Tensor, wanted: torch.Tensor, **tolerance) -> None:
    wanted = wanted.to(found.dtype)
    torch.testing.assert_close(found * (found * wanted).sum(0).sign(), wanted, **tolerance)


@pytest.mark.parametrize("kind", ["pca", "whitened"])
def test_projection_equals_the_exact_decomposition(kind: str):
    batches = [frames(count, seed) for seed, count in enumerate((200, 0, 700))]
    module = teach(quantizer(projection_kind=kind), *batches)
    module.update()
    pooled = torch.cat(batches).double()
    covariance = torch.cov(pooled.T, correction=0)
    variances, directions = torch.linalg.eigh(covariance)
    wanted = directions[:, -DIM:].flip(1) / (variances[-DIM:].flip(0).sqrt() if kind == "whitened" else 1)
    for projection in module.projection:
        up_to_sign(projection, wanted, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(module.projection_mean, pooled.mean(0).float(), atol=1e-5, rtol=1e-5)
    if kind == "whitened":
        whitened = torch.cov(module.project(torch.cat(batches))[0].T, correction=0)
        torch.testing.assert_close(whitened, torch.eye(DIM), atol=1e-3, rtol=1e-3)


def test_padding_does_not_count():
    batch, padding = frames(100), 100 * torch.ones(30, FEATURES)
    module = quantizer()
    module.update()
    module.observe(torch.cat([batch, padding]), (torch.arange(130) < 100).float())
    wanted = teach(quantizer(), batch)
    for name, values in module.named_buffers():
        torch.testing.assert_close(values, wanted.get_buffer(name), msg=name)


def test_the_projection_is_renewed_after_1_2_4_updates_and_then_frozen():
    module = quantizer(projection_updates=6, codebook_refinements=0)
    changed, before = [], module.projection.clone()
    for number in range(1, 12):
        teach(module, frames(50, number))
        if not torch.equal(module.projection, before):
            changed.append(number)
        before = module.projection.clone()
    assert changed == [2, 3, 5, 7]  # the first update after each
    kept = copy.deepcopy(module)
    teach(module, frames(50, 99))
    vectors = frames(300, 5)
    assert torch.equal(module.labels(vectors), kept.labels(vectors))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("window", [None, 1])
def test_one_refinement_equals_one_step_of_k_means(distance: str, window: int | None):
    fields = {"codebook_distance": distance, "reseed_dead_entries": False, "codebook_refinement_window": window}
    module = quantizer(1, projection_kind="random", **fields)
    batches = [frames(40, 1), frames(60, 2)]
    teach(module, *batches)
    projected = (torch.cat(batches if window is None else batches[1:]) @ module.projection[0]).double()
    old = module.codebook[0].double()
    before = F.normalize(old, dim=-1) if distance == "cosine" else old
    module.update()

    rows = F.normalize(projected, dim=-1) if distance == "cosine" else projected
    nearest = torch.cdist(rows, before).argmin(-1)
    for entry in range(12):
        chosen = torch.cat([before[entry : entry + 1], projected[nearest == entry]])
        torch.testing.assert_close(module.codebook[0, entry], chosen.mean(0).float(), atol=1e-5, rtol=1e-4)


def test_dead_entries_split_the_most_used_ones():
    module = quantizer(2, 30, projection_kind="random", codebook_distance="euclidean")
    center = module.codebook[:, 7:8] @ torch.linalg.pinv(module.projection)  # frames that choose entry 7
    vectors = torch.cat([center[0].expand(60, -1), center[1].expand(40, -1)])
    teach(module, vectors, vectors)
    counts = module.entry_counts.clone()
    old = module.codebook.clone()
    module.update()
    for codebook in range(2):
        dead = (counts[codebook] == 0).nonzero()[:, 0]
        sources = counts[codebook].argsort(descending=True, stable=True)
        num_alive = int((counts[codebook] > 1).sum())
        for rank, entry in enumerate(dead.tolist()):
            if rank < num_alive:
                source = module.codebook[codebook, sources[rank]]
                gap = (module.codebook[codebook, entry] - source).norm() / source.norm()
                assert gap.item() == pytest.approx(0.1, rel=1e-3)
            else:
                assert torch.equal(module.codebook[codebook, entry], old[codebook, entry])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one_process(rank: int, num_processes: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_processes)
    module = quantizer()
    teach(module, *[frames(64, seed).chunk(num_processes)[rank] for seed in range(7)])
    module.update()
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_learn_what_one_learns(num_processes: int, tmp_path):
    module = teach(quantizer(), *[frames(64, seed) for seed in range(7)])
    module.update()
    arguments = (num_processes, free_port(), str(tmp_path))
    multiprocessing.start_processes(one_process, arguments, nprocs=num_processes, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(num_processes)]
    for name, values in module.state_dict().items():
        torch.testing.assert_close(states[0][name], values, atol=1e-4, rtol=1e-4, msg=name)
        for state in states[1:]:
            assert torch.equal(state[name], states[0][name]), name
    assert (module.codebook - quantizer().codebook).abs().max() > 0.1


MODELS = {
    "best-rq": partial(tiny_birq, enhanced_loss_weight=0.0),
    "birq": tiny_birq,
    "chunkssl": partial(tiny_chunkssl, label_kind="random_projection", codebook_size=24, codebook_dim=4),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def build(kind: str, **fields) -> torch.nn.Module:
    torch.manual_seed(7)
    config = MODELS[kind](**{**LEARNING, **fields})
    return (ChunkSSLForPreTraining if kind == "chunkssl" else BiRQForPreTraining)(config).train()


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    return [
        dict(zip(("input_features", "attention_mask"), padded_features(80, 64, 80, 72), strict=True))
        for _ in range(count)
    ]


def train(model: torch.nn.Module, data: list[dict[str, torch.Tensor]], accumulation: int = 1) -> torch.nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for batch in data:
        parts = [{name: values.chunk(accumulation)[i] for name, values in batch.items()} for i in range(accumulation)]
        for part in parts:
            model(**part).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_same_quantizer(model: torch.nn.Module, wanted: torch.nn.Module, exact: bool = True) -> None:
    for name, values in wanted.quantizer.named_buffers():
        found = model.quantizer.get_buffer(name)
        if exact:
            assert torch.equal(found, values), name
        else:
            torch.testing.assert_close(found, values, atol=1e-4, rtol=1e-4, msg=name)


@every_model
def test_accumulation_steps_belong_to_one_update(kind: str):
    whole, in_parts = train(build(kind), batches(8)), train(build(kind), batches(8), accumulation=2)
    assert whole.quantizer.num_updates == in_parts.quantizer.num_updates == 8
    assert_same_quantizer(in_parts, whole, exact=False)
    assert not torch.equal(whole.quantizer.codebook, build(kind).quantizer.codebook)


@every_model
@pytest.mark.parametrize("saved_after", [2, 4])
def test_a_resumed_run_has_the_same_quantizer(kind: str, saved_after: int, tmp_path):
    """Saved while the projection is estimated, and in the middle of a window of the entries."""
    data = batches(9)
    whole = train(build(kind), data)
    first = train(build(kind), data[:saved_after])
    first.save_pretrained(tmp_path)
    resumed = type(first).from_pretrained(tmp_path)
    assert_same_quantizer(resumed, first)
    assert_same_quantizer(train(resumed.train(), data[saved_after:]), whole)
    assert_same_quantizer(train(first, data[saved_after:]), whole)


@every_model
def test_trainer_learns_the_same_quantizer(kind: str, tmp_path):
    data = batches(6)
    wanted = train(build(kind), data)
    examples = [{name: values[row] for name, values in batch.items()} for batch in data for row in range(4)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=6,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    model = build(kind)
    Trainer(model, arguments, train_dataset=examples).train()
    assert model.quantizer.num_updates == 6
    assert_same_quantizer(model, wanted, exact=False)


def test_evaluation_and_passes_without_gradients_teach_nothing():
    model = train(build("best-rq"), batches(2))
    before = copy.deepcopy(model)
    with torch.no_grad():
        model(**batches(1)[0])
    model.eval()(**batches(1)[0])
    assert_same_quantizer(model, before)


def test_labels_leave_out_the_mean_of_the_utterance():
    model = BiRQForPreTraining(tiny_birq(label_normalization="utterance_mean")).eval()
    features, mask = padded_features(80, 60)
    louder = features + 3 * mask[..., None]
    made, real = model.make_labels(features, mask)
    assert torch.equal(made["anchor"].ids[real], model.make_labels(louder, mask)[0]["anchor"].ids[real])
    frames_ = features[1, :60].reshape(30, 160)
    assert torch.equal(made["anchor"].ids[1, :30], model.quantizer.labels(frames_ - frames_.mean(0)))


def test_unmasked_loss_is_a_mean_over_the_frames_that_are_not_masked():
    model = BiRQForPreTraining(tiny_birq(enhanced_loss_weight=0.0, unmasked_loss_weight=0.5, mask_noise_std=0.0))
    features, mask = padded_features(80, 60)
    masked = torch.rand(2, 40) < 0.4
    output = model(features, mask, mask_time_indices=masked)
    real = mask[:, ::2]
    anchors = model.make_labels(features, mask)[0]["anchor"].ids[..., 0]
    logits = torch.zeros(2, 40, 24).index_put(real.nonzero(as_tuple=True), output.logits[:, 0])
    losses = F.cross_entropy(logits.transpose(1, 2), anchors, reduction="none")
    chosen, others = masked & real, ~masked & real
    share = 1 - 0.9**5  # of tiny_birq's spans
    weight = model.config.unmasked_frame_weight
    assert weight == pytest.approx(0.5 * share / (1 - share), rel=1e-6)
    torch.testing.assert_close(output.anchor_loss, losses[chosen].mean())
    wanted = losses[chosen].mean() + weight * losses[others].sum() / chosen.sum()
    torch.testing.assert_close(output.loss, 2.4 * wanted)
    assert output.num_masked_frames == chosen.sum()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projection_kind": "white"}, "projection_kind must be one of random, pca, whitened"),
        ({"codebook_distance": "l1"}, "codebook_distance must be one of"),
        ({"projection_updates": 0}, "projection_updates must be at least 1"),
        ({"codebook_refinements": -1}, "must not be negative"),
        ({"codebook_refinement_window": 5, "codebook_refinement_interval": 4}, "between 1 and"),
        ({"codebook_dim": 200, "projection_kind": "pca"}, "Lower codebook_dim"),
        ({"label_normalization": "mean"}, "utterance_mean"),
    ],
)
def test_refused_settings(fields: dict, message: str):
    with pytest.raises(Exception, match=message):
        tiny_birq(**fields)
