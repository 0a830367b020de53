"""The networks of the benchmark in PyTorch, as its users write them, and a process that trains them.

python -m tfprune.experiments.bench.torch_networks NETWORK WIDTH CLASSES BATCH_SIZE LAYOUT

reads numbers of steps from its input, a line each, and answers with the last loss when it has taken them. A process of
its own, because TensorFlow and PyTorch each bring libraries that the other's do not bear beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: a pool
_RESNET = (16, 32, 64)
_GROWTH, _LAYERS = 12, 12  # of the DenseNet of 40 layers: in a block


def build(name: str, width: float, classes: int) -> nn.Module:
    """Builds `vgg16`, `resnet20`, `resnet56` or `densenet40` for RGB images of 32x32, as `tfprune.models` has them."""
    if name == "vgg16":
        return _vgg16(width, classes)
    if name == "densenet40":
        return _densenet(width, classes)
    return _resnet((int(name.removeprefix("resnet")) - 2) // 6, width, classes)


def make_step(module: nn.Module, batch_size: int, classes: int, channels_last: bool) -> Callable[[], float]:
    """Returns the function that takes one step of SGD with momentum and weight decay on a batch and gives its loss."""
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.randint(0, classes, (batch_size,))
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    module.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _scaled(channels: int, width: float) -> int:
    return max(1, int(channels * width))


def _conv_bn(entering: int, filters: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(entering, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)]


def _vgg16(width: float, classes: int) -> nn.Module:
    parts, channels = [], 3
    for filters in _VGG16:
        if filters:
            parts += [*_conv_bn(channels, _scaled(filters, width)), nn.ReLU(inplace=True)]
            channels = _scaled(filters, width)
        else:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, classes))


class _Block(nn.Module):
    def __init__(self, entering: int, filters: int, stride: int):
        super().__init__()
        self.stride, self.missing = stride, filters - entering
        self.body = nn.Sequential(
            *_conv_bn(entering, filters, stride), nn.ReLU(inplace=True), *_conv_bn(filters, filters)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        if self.stride > 1:
            shortcut = functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.missing))
        return functional.relu(self.body(x) + shortcut, inplace=True)


def _resnet(blocks: int, width: float, classes: int) -> nn.Module:
    channels = _scaled(_RESNET[0], width)
    parts = [*_conv_bn(3, channels), nn.ReLU(inplace=True)]
    for stage, filters in enumerate(_RESNET):
        for block in range(blocks):
            parts.append(_Block(channels, _scaled(filters, width), 2 if stage and not block else 1))
            channels = _scaled(filters, width)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class _DenseLayer(nn.Module):
    def __init__(self, entering: int, growth: int):
        super().__init__()
        convolution = nn.Conv2d(entering, growth, 3, padding=1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(entering), nn.ReLU(inplace=True), convolution)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def _densenet(width: float, classes: int) -> nn.Module:
    growth = _scaled(_GROWTH, width)
    channels = 2 * growth
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range(_LAYERS):
            parts.append(_DenseLayer(channels, growth))
            channels += growth
        parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if block < 2:
            parts += [nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def main(name: str, width: str, classes: str, batch_size: str, layout: str) -> None:
    """Takes as many steps as each line of the input says."""
    module = build(name, float(width), int(classes))
    step = make_step(module, int(batch_size), int(classes), layout == "channels_last")
    for line in sys.stdin:
        losses = [step() for _ in range(int(line))]
        print(losses[-1], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
