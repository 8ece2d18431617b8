"""Faster modules to write with on a CPU; `pack` swaps them into a model."""
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Attention


class PackedLinear(nn.Module):
    """A Linear to write with on a CPU, several times as fast for the few rows of a decoding step.

    bits: 32: oneDNN's layout. 16: weights widened as they are read, float32 arithmetic. 8: int8
    weights (per-channel scales) and dynamic per-row activations, so that a row does not depend on
    its neighbours; of their 8 bits 7 are used, as some CPUs need it.
    """
    def __init__(self, weight, bias, bits):
        super().__init__()
        self.bias, self.bits = bias, bits
        if bits == 16:
            self.weight = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        elif bits == 8:
            scale = weight.abs().amax(1).clamp_min(1e-9) / 127
            zero = torch.zeros_like(scale, dtype=torch.int)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')                         # torch 2.13: deprecated
                weight = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            self.weight = torch.ops.quantized.linear_prepack(weight)
            self.row_sums = weight.int_repr().sum(1) * scale
        else:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x):
        if self.bits == 16:
            return torch.ops.quantized.linear_dynamic_fp16(x, self.weight)
        if self.bits == 8:
            least = x.amin(-1, keepdim=True)
            width = (x.amax(-1, keepdim=True) - least).clamp_min_(1e-30)    # constant rows have 0
            x = (x - least).div_(width)                                 # 0 to 1: one scale fits all
            y = torch.ops.quantized.linear_dynamic(x, self.weight, reduce_range=True)
            return y.mul_(width).addcmul_(least, self.row_sums).add_(self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, 'none', [], '')


class PackedAttention(Attention):
    """An Attention of PackedLinears; as self-attention, with one product for q, k and v."""
    def __init__(self, attn, bits, as_self, as_cross):
        nn.Module.__init__(self)
        parts = attn.query, attn.key, attn.value
        if as_self:
            weight, bias = (torch.cat([getattr(p, x) for p in parts]) for x in ('weight', 'bias'))
            self.fused = PackedLinear(weight, bias, bits)
        if as_cross:
            self.query, self.key, self.value = (PackedLinear(p.weight, p.bias, bits) for p in parts)
        self.out = PackedLinear(attn.out.weight, attn.out.bias, bits)
        self.norm, self.dropout, self.n_head = attn.norm, attn.dropout, attn.n_head
        self.sdpa = aligned_sdpa if bits == 8 else attn.sdpa

    def qkv(self, x, kv):
        if kv is not x:
            return super().qkv(x, kv)
        return [self.heads(y) for y in self.fused(x).chunk(3, -1)]


def aligned_sdpa(q, k, v, mask, p, causal):
    """With keys a multiple of 16 and queries of 4, a CPU gives the same bits in any batch.

    Quantizing could turn a difference in a float's last bit into a step of 1/127.
    """
    n = q.shape[2]
    if n % 4:
        rows = 0, 0, 0, -n % 4
        q = F.pad(q, rows)
        mask = F.pad(mask, rows) if mask is not None and mask.shape[2] > 1 else mask
    return F.scaled_dot_product_attention(q, k, v, mask, p, causal)[:, :, :n]


class PackedHead(nn.Module):
    def __init__(self, head, bits):
        super().__init__()
        self.head, self.linear = head, PackedLinear(head.word.weight, head.bias, bits)

    def forward(self, x):
        logits = self.linear(self.head.transform(x))
        logits[..., self.head.n_ids:] = -torch.inf
        return logits


@torch.no_grad()
def pack(model, bits=32):
    """Makes a model on a CPU write faster, and fit for nothing else. bits: see PackedLinear.

    16 bits are for x86 processors, 32 for PyTorch with oneDNN; elsewhere 16 becomes 32, and 32
    changes nothing.
    """
    if bits == 16 and 'fbgemm' not in torch.backends.quantized.supported_engines:
        bits = 32
    if bits == 32 and not torch.backends.mkldnn.is_available():
        return
    roles, packed = {}, {}                                  # a module that is shared is packed once
    for name, module in model.named_modules(remove_duplicate=False):
        roles.setdefault(module, set()).add(name.split('.')[-1].startswith('cross'))

    def swap(parent):
        for name, child in parent._modules.items():         # also a second time what is shared
            if isinstance(child, Attention):
                packed[child] = packed.get(child) or PackedAttention(
                    child, bits, as_self=False in roles[child], as_cross=True in roles[child])
            elif isinstance(child, nn.Linear):
                packed[child] = packed.get(child) or PackedLinear(child.weight, child.bias, bits)
            else:
                swap(child)
            if child in packed:
                setattr(parent, name, packed[child])

    swap(model)
    model.encoder.head = PackedHead(model.encoder.head, bits)
    model.source_multiple = 16 if bits == 8 else 1          # see aligned_sdpa
    model.eval()                                            # the new modules begin as in training
