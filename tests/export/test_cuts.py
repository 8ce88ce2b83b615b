import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from restnet_export.anchors import Anchor
from restnet_export.cuts import CutAnchor, cut_anchor, find_cuts
from restnet_export.layouts import Layout
from restnet_runtime.errors import CutError, ParityError


def anchor_of(module: nn.Module, shape: tuple[int, int, int] = (3, 16, 16)) -> Anchor:
    return Anchor("net", "test", module.eval(), shape, None)


def chain_equals(cut: CutAnchor, module: nn.Module) -> None:
    """Back to back, the blocks are the anchor; each hands over what its cut says."""
    for batch in (1, 3):
        images = torch.randn(batch, *cut.input_shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            value = images
            for block, found in zip(cut.blocks[:-1], cut.cuts, strict=True):
                value = block(value)
                assert value.shape == (batch, *found.shape)
            kept = value.clone()
            scores = cut.blocks[-1](value)
            assert torch.equal(value, kept)
            expected = module(images)
        assert (scores - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert [layout.shape for layout in cut.layouts] == [found.shape for found in cut.cuts]
    assert len(cut.blocks) == len(cut.cuts) + 1
    assert sum(cut.stages) == len(cut.cuts) - 1


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("name", "size", "stages", "first", "last", "kind"),
    [
        ("resnet18", 64, (2, 2, 2, 2), "maxpool", "layer4.1", "map"),
        ("deit_tiny_patch16_224", 64, (12,), "pos_drop", "blocks.11", "tokens"),
        ("swin_tiny_patch4_window7_224", 64, (2, 2, 6, 2), "patch_embed", "layers.3.blocks.1", "map_last"),
        ("mobilenetv2_100", 64, (1, 2, 3, 4, 3, 3, 1), "bn1", "blocks.6.0", "map"),
        ("convnext_atto", 64, (2, 2, 6, 2), "stem", "stages.3.blocks.1", "map"),
        ("levit_128s", 224, (2, 3, 4), "transpose", "stages.2.blocks.3", "tokens"),
    ],
)
def test_families_from_timm(name, size, stages, first, last, kind, zoo):
    anchor, cut = zoo(f"timm:{name}", size)
    assert cut.name == anchor.name
    assert cut.source == f"timm:{name}@random"
    assert cut.input_shape == (3, size, size)
    assert cut.stages == stages
    assert (cut.cuts[0].module, cut.cuts[-1].module) == (first, last)
    assert {layout.kind for layout in cut.layouts} == {kind}
    chain_equals(cut, anchor.module)
    own = {id(weight) for weight in anchor.module.parameters()}
    used = [id(weight) for block in cut.blocks for weight in block.parameters()]
    assert own == set(used)
    assert len(used) == len(own)


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("name", "stages", "last"),
    [
        ("mobilenet_v3_small", (1, 2, 3, 2, 3, 1), "features.12"),
        ("squeezenet1_1", (2, 2, 2, 2), "features.12"),
    ],
)
def test_families_from_torchvision(name, stages, last, zoo):
    anchor, cut = zoo(f"torchvision:{name}", 64)
    assert cut.stages == stages
    assert cut.cuts[-1].module == last
    chain_equals(cut, anchor.module)


def test_the_users_own_network(small_net):
    cut = cut_anchor(anchor_of(small_net))
    assert [found.module for found in cut.cuts] == ["stem", "stage1.0", "stage1.1", "stage2.0", "stage2.1"]
    assert [found.shape for found in cut.cuts] == [(8, 16, 16)] * 3 + [(12, 8, 8)] * 2
    assert cut.cuts[2].modules == ("stage1", "stage1.1")
    assert cut.layouts[-1] == Layout("map", 12, 8, 8)
    assert cut.stages == (2, 2)
    chain_equals(cut, small_net)


def test_gradients_reach_the_anchors_own_parameters(small_net):
    cut = cut_anchor(anchor_of(small_net))
    images = torch.randn(4, 3, 16, 16)
    expected = torch.autograd.grad(small_net(images).square().sum(), list(small_net.parameters()))
    value = images
    for block in cut.blocks:
        value = block(value)
    value.square().sum().backward()
    for weight, gradient in zip(small_net.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        small_net.stem.weight.zero_()
    assert torch.equal(cut.blocks[0](images)[0, :, 0, 0], small_net.stem.bias)


def test_ends_named_by_the_user(small_net):
    anchor = anchor_of(small_net)
    cut = cut_anchor(anchor, ["stage2", "stage1"])
    assert [found.module for found in cut.cuts] == ["stage1", "stage2"]
    assert cut.stages == (1,)
    chain_equals(cut, small_net)
    _, cuts = find_cuts(small_net, (3, 16, 16))
    everywhere = cut_anchor(anchor, [found.node for found in cuts])
    assert [found.node for found in everywhere.cuts] == [found.node for found in cuts]
    chain_equals(everywhere, small_net)


def test_all_cuts_are_found_and_named(zoo):
    anchor, _ = zoo("timm:deit_tiny_patch16_224", 64)
    _, cuts = find_cuts(anchor.module, anchor.input_shape)
    names = [found.module for found in cuts]
    assert names[:3] == ["patch_embed.proj", "patch_embed:flatten", "patch_embed"]
    # After the attention of each block, and after the block.
    assert [name.partition(":")[0] for name in names if name.startswith("blocks.")] == [f"blocks.{i}" for i in range(12) for _ in "ab"][:-1]
    assert cuts[names.index("blocks")].modules == ("blocks", "blocks.11")
    assert cuts[-1].module == "head_drop"


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ([], "ends is empty; its cuts are stem, stage1.0"),
        (["stage1.0.conv"], r"cannot be cut after 'stage1.0.conv': 2 tensors are live there \(conv2d, conv2d_1\)"),
        (["stage9"], "no module of that name that runs on the image; its cuts are stem"),
        (["fc"], "cannot be cut after 'fc': nothing follows it"),
    ],
)
def test_ends_that_are_no_cuts(small_net, ends, told):
    with pytest.raises(CutError, match=told):
        cut_anchor(anchor_of(small_net), ends)


class LongShortcut(nn.Module):
    """What enters comes back at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.mid = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(11, 10, 3, padding=1)

    def forward(self, x):
        y = self.mid(self.down(x).relu())
        return self.up(torch.cat([x, y], 1)).mean((2, 3)) * x.mean()


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3)
        self.right = nn.Conv2d(3, 8, 3)
        self.join = nn.Bilinear(8, 8, 10)

    def forward(self, x):
        y = self.left(x)
        z = self.right(x)
        return self.join(y.mean((2, 3)), z.mean((2, 3)))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        y = self.fc(x.mean((2, 3)))
        return y if y.sum() > 0 else -y


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)
        self.offset = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x):
        return self.fc(x.mean((2, 3)) + self.offset.expand(len(x), -1))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return self.scores.expand(x.shape[0], 10)


class Pair(nn.Module):
    def forward(self, x):
        return x, x + 1


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (LongShortcut, "net: cannot be cut: its input stays live up to 'mean_1', so more than one tensor is live all along"),
        (
            TwoTowers,
            r"net: cannot be cut: its input stays live up to 'right', so more than one tensor is live all along \(first: x, conv2d\)",
        ),
        (OneLayer, "net: has no cut with weights before and after it; its cuts are flatten"),
        (Branching, "torch.export cannot trace Branching with a dynamic batch"),
        (FixedBatch, r"cannot trace FixedBatch with a dynamic batch: its code fixes the batch, as len\(x\) .* leaves it open"),
        (Constant, "does not depend on its input"),
        (Pair, "must take one tensor and return one tensor"),
    ],
)
def test_networks_that_cannot_be_cut(network, told):
    with pytest.raises(CutError, match=told):
        cut_anchor(anchor_of(network()))


def test_a_network_with_randomness_is_not_trusted():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), Noise(), nn.Linear(8 * 14 * 14, 10))
    with pytest.raises(ParityError, match="its blocks in a row differ from it by"):
        cut_anchor(anchor_of(net))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_chain_of_layers_is_cut_before_each_layer_with_weights():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 20),
        nn.Sigmoid(),
        nn.Linear(20, 10),
        nn.Softmax(1),
    )
    cut = cut_anchor(anchor_of(net))
    assert [found.module for found in cut.cuts] == ["3", "6", "8"]
    assert [layout.kind for layout in cut.layouts] == ["map", "vector", "vector"]
    chain_equals(cut, net)


class ConvUnit(nn.Sequential):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def test_repeated_modules_without_shortcuts_are_blocks():
    net = nn.Sequential(ConvUnit(3, 8), ConvUnit(8, 8), ConvUnit(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    cut = cut_anchor(anchor_of(net))
    assert [found.module for found in cut.cuts] == ["0", "1", "2"]
    assert cut.stages == (1, 1)


class Merging(nn.Module):
    """Numbered, uncuttable inside, and no block: it opens a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return self.fold(torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1))


def test_what_opens_a_stage_belongs_to_its_first_block(small_net):
    block = type(small_net.stage1[0])
    stages = [nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(block(8), block(8)), Merging(), nn.Sequential(block(8), block(8))]
    net = nn.Sequential(nn.Sequential(*stages), nn.Flatten(), nn.Linear(8 * 64, 10))
    cut = cut_anchor(anchor_of(net))
    assert [found.module for found in cut.cuts] == ["0.0", "0.1.0", "0.1.1", "0.3.0", "0.3.1"]
    assert cut.stages == (2, 2)
    chain_equals(cut, net)


class NamedBlocks(nn.Module):
    """Blocks with shortcuts and no numbers in their names, one of them called twice."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.early = block(8)
        self.late = block(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.late(self.late(self.early(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def test_blocks_without_numbers_and_a_block_that_runs_twice(small_net):
    net = NamedBlocks(type(small_net.stage1[0]))
    cut = cut_anchor(anchor_of(net))
    assert [found.module for found in cut.cuts] == ["stem", "early", "late", "late"]
    chain_equals(cut, net)


class Functional(nn.Module):
    """No submodules at all."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.weight = nn.Parameter(torch.randn(8, 10))

    def forward(self, x):
        return conv2d(x, self.kernel).relu().mean((2, 3)) @ self.weight


def test_a_network_without_modules_is_cut_everywhere():
    net = Functional()
    cut = cut_anchor(anchor_of(net))
    assert [found.module for found in cut.cuts] == ["conv2d", "relu", "mean"]
    chain_equals(cut, net)


class Overwriting(nn.Module):
    """Writes into tensors: of its own, of the caller, through views, and into a buffer made on the way."""

    def __init__(self, through_views: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Conv2d(8, 8, 3, padding=1)
        self.block2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)
        self.through_views = through_views

    def forward(self, x):
        x = self.stem(x)
        x += 1
        x = x.relu_()
        if self.through_views:
            x[:, :2].mul_(2)
            mask = torch.ones(8, 1, 1)
            mask[3:5] = 0
            x = x * mask
        x = self.block1(x).add_(x)
        x = self.block2(x.relu_()).add_(x)
        return self.fc(x.mean((2, 3)).clamp_(min=-1))


@pytest.mark.parametrize("through_views", [False, True])
def test_no_block_writes_into_what_it_was_handed(through_views):
    net = Overwriting(through_views)
    anchor = anchor_of(net)
    _, cuts = find_cuts(net.eval(), anchor.input_shape)
    cut = cut_anchor(anchor, [found.node for found in cuts])
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        value = images
        for block in cut.blocks:
            kept = value.clone()
            following = block(value)
            assert torch.equal(value, kept)
            value = following
    chain_equals(cut, net)


class BatchCounting(nn.Module):
    """Needs the number of images in every part: tokens made for each image, shapes spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 2, 8))
        self.block1 = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.block2 = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        images = x.shape[0]
        x = torch.cat([self.token.expand(images, 2, 8), self.embed(x).flatten(2).transpose(1, 2)], 1)
        x = self.block1(x).reshape(images * 9, 2, 8).reshape(images, 18, 8)
        x = self.block2(x) + torch.zeros(images, 1, 8)
        return self.fc(x[:, 0].view(images, 8))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_batch_is_counted_anew_in_each_block():
    net = BatchCounting().train()
    net.eval()
    cut = cut_anchor(anchor_of(net))
    assert cut.layouts[0] == Layout("tokens", 8, 4, 4, 2)
    chain_equals(cut, net)
    everything = cut_anchor(anchor_of(net), [found.node for found in find_cuts(net, (3, 16, 16))[1] if found.shape == (18, 8)])
    chain_equals(everything, net)


def test_images_that_are_grey_and_oblong(small_net):
    net = type(small_net)(channels=1, classes=3)
    cut = cut_anchor(anchor_of(net, (1, 24, 16)))
    assert cut.layouts[-1] == Layout("map", 12, 12, 8)
    chain_equals(cut, net)


class Cube(nn.Module):
    """Channels-last maps, one of them with as many channels as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 16)
        self.fold = nn.Linear(16, 20)
        self.fc = nn.Linear(20, 10)

    def forward(self, x):
        x = self.fold(self.stem(x.permute(0, 2, 3, 1)).relu())
        return self.fc(x.relu().mean((1, 2)))


def test_a_shape_that_fits_two_layouts_is_read_like_its_neighbour():
    cut = cut_anchor(anchor_of(Cube()), ["fold", "stem"])
    assert [found.shape for found in cut.cuts] == [(16, 16, 16), (16, 16, 20)]
    assert [layout.kind for layout in cut.layouts] == ["map_last", "map_last"]


class FiveDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.first(x.reshape(-1, 3, 16, 4, 4)).mean((1, 2, 3)))


def test_a_tensor_without_a_layout_is_cut_only_on_demand_and_refused():
    net = FiveDimensional()
    assert [found.shape for found in cut_anchor(anchor_of(net)).cuts] == [(4,)]
    with pytest.raises(CutError, match=r"net: cannot be cut after 'first': a tensor of shape \(batch, 3, 16, 4, 4\) is no map"):
        cut_anchor(anchor_of(net), ["first"])
