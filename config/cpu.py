"""Faster modules for generation on a CPU; `pack` puts them into a model."""
import torch
import torch.nn as nn

from model import Attention


class PackedLinear(nn.Module):
    """A Linear with float16 weights, converted to float32 as they are read, for all arithmetic.

    In a decoding step, with its few rows, reading weights takes the time: this halves the bytes."""
    def __init__(self, weight, bias):
        super().__init__()
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x):
        return torch.ops.quantized.linear_dynamic_fp16(x, self.weight)


class PackedAttention(Attention):
    """An Attention of PackedLinears; in self-attention, one matmul gives q, k and v."""
    def __init__(self, attn, is_self):
        nn.Module.__init__(self)
        parts = attn.query, attn.key, attn.value
        if is_self:
            weight, bias = (torch.cat([getattr(p, x) for p in parts]) for x in ('weight', 'bias'))
            self.fused = PackedLinear(weight, bias)
        else:
            self.query, self.key, self.value = (PackedLinear(p.weight, p.bias) for p in parts)
        self.out = PackedLinear(attn.out.weight, attn.out.bias)
        self.norm, self.dropout, self.n_head = attn.norm, attn.dropout, attn.n_head

    def qkv(self, x, kv):
        return [self.heads(y) for y in self.fused(x).chunk(3, -1)]


class PackedHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head, self.linear = head, PackedLinear(head.word.weight, head.bias)

    def forward(self, x):
        logits = self.linear(self.head.transform(x))
        logits[..., self.head.n_ids:] = -torch.inf
        return logits


@torch.no_grad()
def pack(model):
    """Makes a model on an x86 CPU generate faster, and do only that; elsewhere it does nothing.

    A module that encoder and decoder share (share='tie') is packed once for each place."""
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        return
    for parent in [m for m in model.modules() if not isinstance(m, Attention)]:
        for name, child in list(parent._modules.items()):   # shared modules too, each time
            if isinstance(child, Attention):
                is_self = not name.startswith('cross')
                setattr(parent, name, PackedAttention(child, is_self))
            elif isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    model.encoder.head = PackedHead(model.encoder.head)
    model.eval()                                            # new modules start in training mode
