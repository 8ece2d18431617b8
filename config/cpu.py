"""Faster modules for generation on a CPU; `pack` puts them into a model."""
import torch
import torch.nn as nn


class PackedLinear(nn.Module):
    """A Linear with float16 weights, converted to float32 as they are read, for all arithmetic.

    In a decoding step, with its few rows, reading weights takes the time: this halves the bytes."""
    def __init__(self, weight, bias):
        super().__init__()
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x):
        return torch.ops.quantized.linear_dynamic_fp16(x, self.weight)


class PackedHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.transform = head.transform
        self.linear = PackedLinear(head.word.weight, head.bias_of_rows())

    def forward(self, x):
        return self.linear(self.transform(x))


@torch.no_grad()
def pack(model):
    """Makes a model on an x86 CPU generate faster, and do only that; elsewhere it does nothing."""
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    model.encoder.head = PackedHead(model.encoder.head)
