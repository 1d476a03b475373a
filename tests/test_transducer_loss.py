"""The transducer loss against a loop over the lattice: values, gradients, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_speech_ssl.modeling.transducer_loss import LatticeLoss, transducer_loss


def lattice_loss(log_probs: torch.Tensor, labels: list[int], blank: int) -> torch.Tensor:
    """-ln P by the recursion as it is written in Graves, log_probs (T, U + 1, V), one point after the other."""
    frames, prefixes = log_probs.shape[:2]
    sums = {(0, 0): log_probs.new_zeros(())}
    for t in range(frames):
        for u in range(prefixes):
            ways = [sums[t - 1, u] + log_probs[t - 1, u, blank]] if t else []
            ways += [sums[t, u - 1] + log_probs[t, u - 1, labels[u - 1]]] if u else []
            if ways:
                sums[t, u] = torch.stack(ways).logsumexp(0)
    return -(sums[frames - 1, prefixes - 1] + log_probs[-1, -1, blank])


def example(lengths: list[tuple[int, int]], seed: int, blank: int, vocabulary: int = 5, width: int = 4):
    """Random float64 inputs of `transducer_loss` for utterances of (frames, labels), and the head's weight."""
    generator = torch.Generator().manual_seed(seed)
    frames, texts = max(t for t, _ in lengths), max(u for _, u in lengths)

    def normal(*shape: int) -> torch.Tensor:
        return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    labels = torch.randint(vocabulary - 1, (len(lengths), texts), generator=generator)
    labels += (labels >= blank).long()
    for row, (_, length) in enumerate(lengths):
        labels[row, length:] = -100
    tensors = normal(len(lengths), frames, width), normal(len(lengths), texts + 1, width), normal(vocabulary, width)
    return tensors, labels, torch.tensor([t for t, _ in lengths]), torch.tensor([u for _, u in lengths])


utterances = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4)


@given(utterances, st.integers(0, 10_000), st.integers(0, 4), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_equal_the_loop(lengths, seed, blank, chunk_frames):
    tensors, labels, frame_lengths, label_lengths = example(lengths, seed, blank)
    frames, states, weight = tensors
    losses = transducer_loss(
        frames, states, lambda x: x.tanh() @ weight.T, labels, frame_lengths, label_lengths, blank, chunk_frames
    )
    wanted = []
    for row, (t, u) in enumerate(lengths):
        joint = (frames[row, :t, None] + states[row, None, : u + 1]).tanh() @ weight.T
        wanted.append(lattice_loss(joint.log_softmax(-1), labels[row].tolist(), blank))
    torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-10, atol=1e-10)
    mix = torch.arange(1.0, len(lengths) + 1, dtype=torch.float64)
    gradients = torch.autograd.grad(losses @ mix, tensors)
    for ours, theirs in zip(gradients, torch.autograd.grad(torch.stack(wanted) @ mix, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradient_of_the_lattice_by_finite_differences():
    generator = torch.Generator().manual_seed(3)
    blanks, tokens = (-torch.rand(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.tensor([4, 2]), torch.tensor([1, 2])
    for arcs in (blanks, tokens):
        arcs.requires_grad_()
    assert torch.autograd.gradcheck(lambda *arcs: LatticeLoss.apply(*arcs, *lengths), (blanks, tokens))


def test_float32_is_close_over_hundreds_of_points():
    tensors, labels, *lengths = example([(300, 40), (211, 60)], seed=1, blank=0, vocabulary=20)

    def losses(dtype: torch.dtype) -> torch.Tensor:
        frames, states, weight = (tensor.to(dtype) for tensor in tensors)
        return transducer_loss(frames, states, lambda x: x.tanh() @ weight.T, labels, *lengths)

    torch.testing.assert_close(losses(torch.float32).double(), losses(torch.float64), rtol=1e-6, atol=0)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in numbers."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for one in output if isinstance(output, tuple | list) else [output]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return output


def test_logits_of_a_chunk_are_the_most_in_memory():
    lengths, vocabulary = [(40, 9), (40, 9)], 50
    sizes = {}
    for chunk_frames in (4, 40):
        tensors, labels, *rest = example(lengths, 0, 0, vocabulary, width=8)
        frames, states, weight = tensors
        with LargestTensor() as largest:
            transducer_loss(
                frames, states, lambda x, w=weight: x.tanh() @ w.T, labels, *rest, chunk_frames=chunk_frames
            ).sum().backward()
        sizes[chunk_frames] = largest.numbers
    assert sizes == {4: 2 * 4 * 10 * vocabulary, 40: 2 * 40 * 10 * vocabulary}


def test_padding_is_never_computed():
    """Points behind an utterance's end reach the joint network neither as frames nor as prefixes."""
    tensors, labels, *lengths = example([(5, 3), (2, 0)], seed=0, blank=0)
    frames, states, weight = tensors
    seen = []

    def joint(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.tanh() @ weight.T

    with torch.no_grad():
        transducer_loss(frames, states, joint, labels, *lengths, chunk_frames=2)
    assert sum(seen) == 5 * 4 + 2 * 1


def test_the_joint_may_be_a_module_whose_parameters_learn():
    tensors, labels, *lengths = example([(5, 3), (4, 1)], seed=0, blank=0)
    head = nn.Linear(4, 5, dtype=torch.float64)
    transducer_loss(tensors[0], tensors[1], head, labels, *lengths, chunk_frames=2).sum().backward()
    assert head.weight.grad.any() and head.bias.grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_lengths": torch.tensor([0, 2])}, r"frame_lengths must lie in \[1, 5\], got \[0, 2\]"),
        ({"label_lengths": torch.tensor([3, 4])}, r"label_lengths must lie in \[0, 3\]"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1"),
        ({"labels": torch.ones(2, 4, dtype=torch.long)}, "need decoder_states"),
    ],
)
def test_refused(change, message):
    tensors, labels, frame_lengths, label_lengths = example([(5, 3), (2, 1)], seed=0, blank=0)
    arguments = {"labels": labels, "frame_lengths": frame_lengths, "label_lengths": label_lengths} | change
    with pytest.raises(ValueError, match=message):
        transducer_loss(tensors[0], tensors[1], nn.Linear(4, 5, dtype=torch.float64), **arguments)
