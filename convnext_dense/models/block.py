""""""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convnext_dense.models.cpu_operators import pack
from convnext_dense.models.fused_block import ResidualBranch, enabled, fold, infer
from convnext_dense.models.layers import GRN, DropPath


class Block(nn.Module):
    """One residual block (V1 paper, Figure 4): depthwise 7x7, LayerNorm, Linear, GELU, (GRN), Linear, layer scale."""

    def __init__(
        self,
        channels: int,
        drop_path: float,
        layer_scale_init_value: float,
        use_grn: bool,
        eps: float,
        kernel_size: int,
        dilation: int = 1,
        lean: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(
            channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation, groups=channels
        )
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = GRN(4 * channels) if use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init_value))) if layer_scale_init_value > 0 else None
        )
        self.drop_path = DropPath(drop_path)

        self.lean = lean
        self._ready: tuple[tuple, list[Tensor]] | None = None  # what the parameters were, and those for inference

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in channels_last memory -> the same."""
        if isinstance(self.grn, GRN) or not enabled(x.device):
            return self._eager(x)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        if not autocast and dtype != self.pwconv1.weight.dtype:
            return self._eager(x)  # which says that the types differ
        (padding, _), (dilation, _) = self.dwconv.padding, self.dwconv.dilation
        if not torch.is_grad_enabled() and not self.training:
            return infer(
                x,
                self._ready_for_inference(dtype),
                self.norm.eps,
                padding,
                dilation,
                torch.promote_types(x.dtype, self.norm.weight.dtype),
            )
        kept, scale = None, 1.0
        mask = self.drop_path.draw(x.shape[0])
        if mask is not None:
            scale = 1 / (1 - self.drop_path.rate)
            kept = None if mask.all() else mask.nonzero().squeeze(1).to(x.device)
        return ResidualBranch.apply(
            x, kept, scale, self.lean, self.norm.eps, padding, dilation, dtype, *self._parameters_in_order()
        )

    def _eager(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C), a view in channels_last
        y = self.pwconv2(self.grn(self.act(self.pwconv1(self.norm(y)))))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)

    def _parameters_in_order(self) -> list[Tensor | None]:
        parts = (self.dwconv, self.norm, self.pwconv1, self.pwconv2)
        return [*(param for part in parts for param in (part.weight, part.bias)), self.gamma]

    def _ready_for_inference(self, dtype: torch.dtype) -> list[Tensor]:
        """The parameters in ``dtype``, gamma folded into the second Linear; made anew whenever one has changed."""
        params = self._parameters_in_order()
        now = (dtype, *((p.data_ptr(), None if p.is_inference() else p._version) for p in params if p is not None))
        if self._ready is None or self._ready[0] != now:
            *first, weight1, bias1, weight2, bias2, gamma = (None if p is None else p.detach() for p in params)
            weight2, bias2 = fold(weight2, bias2, gamma, 1.0, dtype)
            self._ready = (
                now,
                [
                    *(p.to(dtype) for p in first),
                    pack(weight1.to(dtype)),
                    bias1.to(dtype),
                    pack(weight2),
                    bias2,
                ],
            )
        return self._ready[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_ready': None}  # copies and pickles make their own

    def train(self, mode: bool = True) -> Block:
        self._ready = None  # EMAHook exchanges values without a trace, but always before eval()
        return super().train(mode)
