"""The inference network: the paper's size, any input size, errors in one sentence, attention without its matrix."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks import MISSU, InstanceNorm, MultiScaleFusion, SelfDistillation
from scripts.networks.missu import windows_of_stages

BUNDLE = Path(__file__).parents[1] / "bundle"
SMALL = {"init_filters": 8, "hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}


def image(network: MISSU, *sides: int) -> torch.Tensor:
    return torch.rand(1, network.in_channels, *sides, generator=torch.Generator().manual_seed(0))


def test_size_and_cost_are_those_of_the_paper():
    with torch.device("meta"):
        network = MISSU().eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            network(torch.empty(1, 4, 128, 128, 128))
    counts = counter.get_flop_counts()["Global"]
    # Two operations per multiply-accumulate; the products of the attention itself are not among these operators.
    linear_and_conv = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    giga_macs = sum(count for operator, count in counts.items() if operator in linear_and_conv) / 2e9
    mega_parameters = sum(weight.numel() for weight in network.parameters()) / 1e6
    assert mega_parameters == pytest.approx(10.40, rel=0.005)
    assert giga_macs == pytest.approx(130.6, rel=0.005)
    # Table III of the paper
    assert mega_parameters == pytest.approx(10.50, rel=0.02)
    assert giga_macs == pytest.approx(132.11, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "shape", "classes"),
    [
        ({}, (2, 4, 32, 32, 32), 4),
        ({"in_channels": 2, "out_channels": 2, "img_size": (64, 64, 32)}, (1, 2, 64, 64, 32), 2),
        ({**SMALL, "out_channels": 1, "img_size": (8, 16, 24)}, (1, 4, 8, 16, 24), 1),
        ({**SMALL, "in_channels": 1, "out_channels": 5, "img_size": 16}, (3, 1, 24, 8, 40), 5),
        ({**SMALL, "blocks_per_stage": (2, 1, 1, 1), "img_size": [16, 16, 16]}, (1, 4, 16, 16, 16), 4),
        ({**SMALL, "num_layers": 0, "img_size": 16}, (1, 4, 24, 16, 16), 4),
        ({**SMALL, "skips": MultiScaleFusion([8, 16, 32]), "img_size": 16}, (1, 4, 16, 24, 16), 4),
    ],
    ids=["default", "CHAOS", "not cubic", "other than img_size", "other depths", "no Transformer", "MS-output"],
)
def test_logits_have_the_size_of_the_image(arguments, shape, classes):
    with torch.inference_mode():
        logits = MISSU(**arguments).eval()(torch.rand(shape))
    assert logits.shape == (shape[0], classes, *shape[2:])


def test_without_layers_nothing_of_the_transformer_is_left():
    network = MISSU(**SMALL | {"num_layers": 0}, img_size=16)
    assert not list(network.bottleneck.parameters())
    *skips, deepest = network.encode(x := image(network, 16, 16, 16))
    assert torch.equal(network(x), network.decode(deepest, skips))


def test_logits_are_what_the_head_gives(tiny_network):
    torch.nn.init.zeros_(tiny_network.head.weight)
    torch.nn.init.constant_(tiny_network.head.bias, -2)
    assert (tiny_network.eval()(image(tiny_network, 16, 16, 16)) == -2).all()  # no softmax, no sigmoid


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"img_size": 100}, "img_size should be a positive multiple of 8 on each axis, H is 100."),
        ({"img_size": (128, 128, 30)}, "img_size should be a positive multiple of 8 on each axis, D is 30."),
        ({"img_size": (128, 0, 128)}, "img_size should be a positive multiple of 8 on each axis, W is 0."),
        ({"img_size": (128, 128)}, "img_size should be one integer or 3, got [128, 128]."),
        ({"init_filters": 0}, "init_filters should be positive, got 0."),
        ({"num_layers": -1}, "num_layers should be 0 or more, got -1."),
        ({"num_heads": 7}, "hidden_size should be divisible by num_heads, got 512 and 7."),
        ({"num_heads": 0}, "hidden_size should be divisible by num_heads, got 512 and 0."),
        ({"blocks_per_stage": (1, 2, 3)}, "blocks_per_stage should be 4 positive integers, got [1, 2, 3]."),
        ({"blocks_per_stage": (1, 0, 3, 3)}, "blocks_per_stage should be 4 positive integers, got [1, 0, 3, 3]."),
    ],
    ids=str,
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is compared
        MISSU(**arguments)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 2, 20, 16, 16), "Each side of the input should be divisible by 8, H is 20."),
        ((1, 2, 16, 15, 16), "Each side of the input should be divisible by 8, W is 15."),
        ((1, 2, 16, 16, 30), "Each side of the input should be divisible by 8, D is 30."),
        ((1, 3, 16, 16, 16), "The input should have shape (B, 2, H, W, D), got [1, 3, 16, 16, 16]."),
        ((2, 16, 16, 16), "The input should have shape (B, 2, H, W, D), got [2, 16, 16, 16]."),
    ],
    ids=["H", "W", "D", "channels", "no batch"],
)
def test_bad_input(tiny_network, shape, sentence):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is compared
        tiny_network(torch.rand(shape))
    assert str(raised.value) == sentence


class Shapes(TorchDispatchMode):
    """Notes the shape of each tensor that an operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        self.shapes += [tuple(output.shape) for output in outputs if isinstance(output, torch.Tensor)]
        return result


@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_attention_makes_no_matrix_of_all_tokens(tiny_network, mode):
    x = image(tiny_network, 16, 24, 40)  # 2 * 3 * 5 = 30 tokens
    # The only kernel allowed works tile by tile.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), Shapes() as seen:
        tiny_network.train(mode)(x)
    assert (1, 30, 16) in seen.shapes  # the tokens
    assert (30, 30) not in {shape[-2:] for shape in seen.shapes}


def test_attention_mixes_all_tokens(tiny_network):
    """The last voxel of Z4 depends on each voxel of A4: convolutions alone would not reach that far."""
    features = torch.rand(1, 64, 4, 4, 4, requires_grad=True)
    tiny_network.bottleneck(features)[0, 0, -1, -1, -1].backward()
    assert (features.grad.abs().sum(dim=1) > 0).all()


def test_memory_of_a_full_crop():
    script = (
        "import torch\n"
        "from scripts.networks import MISSU\n"
        "with torch.inference_mode():\n"
        "    MISSU().eval()(torch.rand(1, 4, 128, 128, 128))\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=BUNDLE,
        env={**os.environ, "PYTHONPATH": str(BUNDLE)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # One matrix of 8 heads alone is 8 * 4096^2 * 4 bytes = 0.5 GiB.
    # Not ru_maxrss, which begins at the memory of the process that runs the tests.
    assert int(done.stdout) / 2**20 < 2.5  # GiB of KiB


def test_training_and_eval_agree_without_dropout(tiny_network):
    x = image(tiny_network, 16, 16, 16)
    torch.testing.assert_close(tiny_network.train()(x), tiny_network.eval()(x))


def test_dropout_acts_in_training_only(tiny_network):
    dropping = MISSU(**SMALL | {"num_layers": 2}, in_channels=2, out_channels=3, img_size=16, dropout=0.5)
    dropping.load_state_dict(tiny_network.state_dict())
    x = image(tiny_network, 16, 16, 16)
    assert not torch.equal(dropping.train()(x), dropping(x))
    torch.testing.assert_close(dropping.eval()(x), tiny_network.eval()(x))


def test_a_case_does_not_depend_on_its_batch(tiny_network):
    first, second = image(tiny_network, 16, 16, 16), 5 * image(tiny_network, 16, 16, 16).flip(2)
    together = tiny_network(torch.cat([first, second]))
    torch.testing.assert_close(together[:1], tiny_network(first), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_eight_voxels_are_an_image(training):
    """One voxel at the deepest stage: what the model zoo's ``verify_net_in_out`` asks with, and the least there is."""
    network = MISSU(**SMALL, img_size=16).train(training)
    logits = network(torch.rand(1, 4, 8, 8, 8))
    assert logits.shape == (1, 4, 8, 8, 8)
    logits.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.parametrize("sides", [(16, 16, 16), (24, 16, 8)], ids=["img_size", "other size"])
def test_torchscript_gives_the_same_logits(tiny_network, sides):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(tiny_network.eval()), file)
    file.seek(0)
    x = image(tiny_network, *sides)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(file)(x), tiny_network(x))


class TestPositionTable:
    @pytest.fixture
    def bare(self):
        """A bottleneck of which nothing but the table is left: its output for zeros is the table of the grid."""
        network = MISSU(**SMALL | {"hidden_size": 64}, img_size=(16, 24, 8))
        bottleneck = network.bottleneck
        for part in ("patch_embedding", "layers", "norm", "projection"):
            setattr(bottleneck, part, torch.nn.Identity())
        return bottleneck

    def test_as_it_is_on_the_learned_grid(self, bare):
        assert bare.position_embedding.shape == (1, 64, 2, 3, 1)
        assert bare.position_embedding.std() > 0
        assert torch.equal(bare(torch.zeros(1, 64, 2, 3, 1)), bare.position_embedding)

    def test_resampled_on_another(self, bare):
        with torch.no_grad():
            bare.position_embedding.zero_()[:, :, 1] = 1
        # From 2 to 4 voxels: centers at -0.25, 0.25, 0.75, 1.25 of a ramp from 0 to 1 that is constant outside.
        along_h = bare(torch.zeros(1, 64, 4, 6, 3))[0, 0, :, 2, 1]
        torch.testing.assert_close(along_h, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_ms_output_feeds_the_decoder_with_fused_skips():
    fusion = MultiScaleFusion([8, 16, 32])
    network = MISSU(**SMALL, img_size=16, skips=fusion).eval()
    x = image(network, 16, 16, 16)
    with torch.inference_mode():
        features = network.encode(x)
        expected = network.decode(network.bottleneck(features[3]), fusion(features[:3]))
        assert torch.equal(network(x), expected)
        assert not torch.allclose(network(x), network.decode(network.bottleneck(features[3]), features[:3]))
        assert torch.equal(torch.jit.script(network)(x), network(x))


class TestWindows:
    SIZES = (20, 16, 13), (24, 16, 16), (16, 8, 16)  # image, window, crop

    @pytest.fixture
    def network(self, tiny_network):
        for module in tiny_network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
        return tiny_network.eval()

    def test_each_norm_gets_those_of_its_stage(self, network, monkeypatch):
        """Each is called with averages of as many voxels as its features have."""
        seen = []
        forward = InstanceNorm.forward

        def noting(norm, x, windows=None):
            seen.append(tuple(x.shape[2:]) == tuple(matrix.shape[1] for matrix in windows.averages))
            return forward(norm, x, windows)

        monkeypatch.setattr(InstanceNorm, "forward", noting)
        network(image(network, 24, 16, 16), windows_of_stages(*self.SIZES))
        assert seen == [True] * (1 + 2 + 3 + 3 + 3)

    def test_one_window_is_the_whole_image(self, network):
        x = image(network, 24, 16, 16)
        one = windows_of_stages((24, 16, 16), (24, 16, 16), (24, 16, 16))
        torch.testing.assert_close(network(x, one), network(x), atol=1e-4, rtol=1e-4)

    def test_each_image_of_a_batch_as_it_is_alone(self, network):
        first, second = image(network, 24, 16, 16), 5 * image(network, 24, 16, 16).flip(2)
        windows = windows_of_stages(*self.SIZES)
        together = network(torch.cat([first, second]), windows)
        torch.testing.assert_close(together[:1], network(first, windows), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[1:], network(second, windows), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(network(first, windows), network(first), atol=0.1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_trains_on_tensors_with_meta_data(layout):
    """As MONAI's loaders give them; the logits keep their class, and the gradients are those of plain tensors."""
    torch.manual_seed(0)
    network = SelfDistillation(MISSU(in_channels=2, out_channels=3, img_size=16, init_filters=4, hidden_size=8))
    network.to(memory_format=layout)
    image = torch.randn(2, 2, 16, 16, 16).to(memory_format=layout)
    gradients = []
    for x in (image, MetaTensor(image, affine=2 * torch.eye(4))):
        output = network(x)
        assert type(output.logits) is type(x)
        loss = output.logits.square().mean() + sum(teacher.mean() for teacher in output.teachers)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
