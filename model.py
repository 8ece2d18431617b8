"""SWCM: an XLM-R encoder made into a generator by reusing its weights in its own decoder.

The method is XLM-SWCM (Su et al., ACL 2025, arXiv 2502.10852). The file reads from leaf to root: sizes,
embeddings, attention, FFN, encoder layer, the two decoder layers, the encoder with its masked-token head
(`XLMR`), the encoder-decoder (`SWCM`) with its generation, and reading and writing of files.

Axes: B batch, S source, T target, C channels (n_embd), H heads, D head size, V vocabulary, K beams,
R = B*K rows, N real target tokens. Masks are boolean and True means "attend".
"""
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from data.text import SENTENCEPIECE
from data.tokenizer import BOS, EOS, PAD, UNK
from data.weights import (
    SIZES,
    check_finite,
    check_shape,
    check_sizes,
    few,
    read_encoder,
    read_file,
    read_json,
    read_model,
    write_encoder,
    write_model,
)

BY_ID = 'embeddings.word.weight', 'head.bias'    # have a row per id, and more than the encoder's file has


@dataclass
class SWCMConfig:
    """Sizes and options of a model; the defaults are XLM-R base's sizes and what did best in README's comparison."""
    vocab_size: int = 250002                 # the encoder's ids; the last is <mask>
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ffn: int = 3072
    n_positions: int = 514                   # rows of the position table; the first two are never used
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1
    languages: tuple = ()                    # each adds a token <xx>, a new row behind the encoder's
    share: str = 'copy'                      # copy (paper) | none | tie | alternate (DeltaLM)
    insert_every: int = 0                    # a new layer after every X custom ones (paper: 3); 0: none
    inserted: str = 'random'                 # random (paper) | duplicate | quiet
    head: str = 'tied'                       # tied | untied (published code)
    mlm_head: bool = True                    # the encoder's checkpoint has the masked-token head

    def __post_init__(self):
        if isinstance(self.languages, list):                                      # as JSON has it
            self.languages = tuple(self.languages)
        for f in fields(self):
            value = getattr(self, f.name)
            if type(value) is not f.type and (type(value), f.type) != (int, float):
                raise ValueError(f'{f.name}={value!r}: give a value of type {f.type.__name__}')
            if f.name in SIZES and not 0 < value < 2**31:
                raise ValueError(f'{f.name}={value!r}: give a number above 0')
        if not 0 <= self.dropout <= 1:
            raise ValueError(f'dropout={self.dropout}: give a share, from 0 to 1')
        if len(set(map(str, self.languages))) < len(self.languages) or {*map(type, self.languages)} - {str}:
            raise ValueError(f'languages={self.languages!r}: give each once, as text')
        for name, choices in (('share', ('copy', 'none', 'tie', 'alternate')), ('head', ('tied', 'untied')),
                              ('inserted', ('random', 'duplicate', 'quiet'))):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name}={getattr(self, name)!r}: choose one of {", ".join(choices)}')
        if self.insert_every < 0:
            raise ValueError(f'insert_every={self.insert_every}: give 0 (no inserted layers) or more')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        if self.share == 'alternate' and self.n_layer % 2:
            raise ValueError(f"share='alternate' uses encoder layers in pairs, and n_layer={self.n_layer} is odd")

    @property
    def n_ids(self):
        """Ids that exist: the encoder's and the language tokens."""
        return self.vocab_size + len(self.languages)

    @property
    def n_rows(self):
        """Rows of the embedding table: n_ids rounded up to 64, for fast matrix products. No id reaches the rest."""
        return -(-self.n_ids // 64) * 64

    @property
    def max_length(self):
        """The longest sequence in tokens: XLM-R's positions start behind <pad>."""
        return self.n_positions - PAD - 1

    def language_id(self, language):
        if language not in self.languages:
            raise ValueError(f'language {language!r} has no token in this model; it knows {" ".join(self.languages)}')
        return self.vocab_size + self.languages.index(language)


class Embeddings(nn.Module):
    """Word + position + token-type embedding, LayerNorm (XLM-R). Positions count from 2 and skip padding."""

    def __init__(self, c):
        super().__init__()
        self.word = nn.Embedding(c.n_rows, c.n_embd, padding_idx=PAD)
        self.position = nn.Embedding(c.n_positions, c.n_embd, padding_idx=PAD)
        self.token_type = nn.Embedding(1, c.n_embd)
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.max_length = c.max_length

    def forward(self, ids, position=None):
        """ids (B,T) -> (B,T,C). position: that of the ids, from 1, if not each stands behind the one before."""
        if position is None:
            if ids.shape[1] > self.max_length:
                raise ValueError(f'a sequence of {ids.shape[1]} tokens; this model reads at most {self.max_length}')
            real = (ids != PAD).long()
            position = real.cumsum(1) * real
        x = self.word(ids) + self.token_type.weight[0] + self.position(position + PAD)  # (B,T,C)
        return self.dropout(self.norm(x))


class PackedLinear(nn.Module):
    """A Linear to write with on a CPU, several times as fast for the few rows of a decoding step.

    bits, of a weight: 32, in oneDNN's layout; 16, which are widened as they are read, so that all arithmetic is in
    float32; or 8, where each row of weights has a scale of its own, and each row of the input, found as it comes, a
    scale and a least value, so that it owes nothing to its neighbours. Of its 8 bits 7 are used, as some CPUs need it.
    """

    def __init__(self, weight, bias, bits):
        super().__init__()
        self.bias, self.bits = bias, bits
        if bits == 16:
            self.weight = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        elif bits == 8:
            scale = weight.abs().amax(1).clamp_min(1e-9) / 127
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')                                   # torch 2.13: will go some day
                weight = torch.quantize_per_channel(weight, scale, torch.zeros_like(scale, dtype=torch.int), 0,
                                                    torch.qint8)
            self.weight = torch.ops.quantized.linear_prepack(weight)
            self.row_sums = weight.int_repr().sum(1) * scale
        else:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x):
        if self.bits == 16:
            return torch.ops.quantized.linear_dynamic_fp16(x, self.weight)
        if self.bits == 8:
            least = x.amin(-1, keepdim=True)
            width = (x.amax(-1, keepdim=True) - least).clamp_min_(1e-30)          # not 0 for a constant row
            x = (x - least).div_(width)                                           # 0 to 1: one scale fits all
            y = torch.ops.quantized.linear_dynamic(x, self.weight, reduce_range=True)
            return y.mul_(width).addcmul_(least, self.row_sums).add_(self.bias)  # in place: the head is large
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, 'none', [], '')


class Attention(nn.Module):
    """Multi-head attention with its residual and LayerNorm after it: norm(x + out(attend(x)))."""

    def __init__(self, c):
        super().__init__()
        self.query = nn.Linear(c.n_embd, c.n_embd)
        self.key = nn.Linear(c.n_embd, c.n_embd)
        self.value = nn.Linear(c.n_embd, c.n_embd)
        self.out = nn.Linear(c.n_embd, c.n_embd)
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.n_head, self.qkv = c.n_head, None

    def heads(self, x):
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)                  # (B,T,C) -> (B,H,T,D)

    def queries(self, x):
        """x (B,T,C) -> (B,H,T,D)."""
        return self.heads(self.query(x))

    def keys_values(self, x):
        """x (B,S,C) -> keys and values, each (B,H,S,D)."""
        return self.heads(self.key(x)), self.heads(self.value(x))

    def queries_keys_values(self, x):
        """x (B,T,C), which is to attend to itself -> queries, keys and values, each (B,H,T,D)."""
        if self.qkv:
            return [self.heads(y) for y in self.qkv(x).chunk(3, -1)]
        return self.queries(x), *self.keys_values(x)

    def forward(self, x, q, k, v, mask=None, causal=False):
        """x (B,T,C) with queries q (B,H,T,D) attends to k, v (B,H,S,D); mask is broadcast to (B,H,T,S) -> (B,T,C)."""
        n = q.shape[2]
        if n % 4 and getattr(self.out, 'bits', 32) == 8:                          # aligned, see `generate`
            rows = 0, 0, 0, -n % 4
            q, mask = F.pad(q, rows), F.pad(mask, rows) if mask is not None and mask.shape[2] > 1 else mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal,
                                           dropout_p=self.dropout.p if self.training else 0.0)
        y = y[:, :, :n].transpose(1, 2).flatten(2)                                # (B,T,C)
        return self.norm(x + self.dropout(self.out(y)))


class FFN(nn.Module):
    """Two linear layers with exact GELU between, residual, LayerNorm after it."""

    def __init__(self, c):
        super().__init__()
        self.up = nn.Linear(c.n_embd, c.n_ffn)
        self.down = nn.Linear(c.n_ffn, c.n_embd)
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x):
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class EncoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attn, self.ffn = Attention(c), FFN(c)

    def forward(self, x, mask):
        return self.ffn(self.attn(x, *self.attn.queries_keys_values(x), mask))


class Cache:
    """What one decoder layer keeps while it generates: keys and values of the source, and of all that was written.

    All beams of a source write into the same slots, in the order of writing, and a mask says which slots each has in
    its past. So nothing is copied or reordered when beams go on from others, and beams are but more query rows.
    """

    def __init__(self, layer, memory, n_slots):
        self.memory = layer.cross_attn.keys_values(memory)                        # 2 x (B,H,S,D)
        B, H, _, D = self.memory[0].shape
        self.written, self.n = [memory.new_zeros(B, H, n_slots, D) for _ in 'kv'], 0

    def append(self, *new):
        """Takes keys and values (B,H,n,D) into the next slots; returns those of all slots so far."""
        self.n += new[0].shape[2]
        for slots, x in zip(self.written, new):
            slots[:, :, self.n - x.shape[2]:self.n] = x
        return [slots[:, :, :self.n] for slots in self.written]

    def keep(self, sources):
        """Keeps some of the sources, by index."""
        self.memory, self.written = ([x[sources] for x in pair] for pair in (self.memory, self.written))


class DecoderLayer(nn.Module):
    """What both decoder layers share: how they attend to what is written so far and to the source.

    forward(x (B,T,C), memory (B,S,C), mask (B,1,1,S)) -> (B,T,C). With a cache, x holds new tokens only, of all beams,
    `past` (B,1,T,slots) says which slots each attends to, and memory is not read: the cache has its keys and values.
    """

    def attend_self(self, x, past, cache):
        q, k, v = self.self_attn.queries_keys_values(x)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.self_attn(x, q, k, v, past, causal=cache is None)

    def attend_memory(self, x, memory, mask, cache):
        k, v = cache.memory if cache is not None else self.cross_attn.keys_values(memory)
        return self.cross_attn(x, self.cross_attn.queries(x), k, v, mask)


class CustomDecoderLayer(DecoderLayer):
    """Self-attention, FFN1, cross-attention, FFN2; all weights come from the encoder (paper)."""

    def __init__(self, c):
        super().__init__()
        self.self_attn, self.ffn1, self.cross_attn, self.ffn2 = Attention(c), FFN(c), Attention(c), FFN(c)

    def forward(self, x, memory, mask, past=None, cache=None):
        x = self.ffn1(self.attend_self(x, past, cache))
        return self.ffn2(self.attend_memory(x, memory, mask, cache))


class NormalDecoderLayer(DecoderLayer):
    """Self-attention, cross-attention, FFN: the new layer that is inserted between custom ones."""

    def __init__(self, c):
        super().__init__()
        self.self_attn, self.cross_attn, self.ffn = Attention(c), Attention(c), FFN(c)

    def forward(self, x, memory, mask, past=None, cache=None):
        return self.ffn(self.attend_memory(self.attend_self(x, past, cache), memory, mask, cache))


class Head(nn.Module):
    """Hidden states to logits. Tied: XLM-R's transform (if any), then the embeddings; untied: a matrix of its own."""

    def __init__(self, c, word):
        super().__init__()
        self.tied, self.transform, self.n_ids = c.head == 'tied', c.mlm_head and c.head == 'tied', c.n_ids
        if self.transform:
            self.dense = nn.Linear(c.n_embd, c.n_embd)
            self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.weight = word.weight if self.tied else nn.Parameter(torch.empty(c.n_rows, c.n_embd))
        self.bias, self.packed = nn.Parameter(torch.zeros(c.n_rows)), None

    def hidden(self, x):
        return self.norm(F.gelu(self.dense(x))) if self.transform else x

    def forward(self, x):
        """x (...,C) -> logits (...,V), V = n_ids."""
        return F.linear(self.hidden(x), self.weight, self.bias)[..., :self.n_ids]

    def log_p(self, x):
        """x (R,C) -> log probabilities (R,n_rows), float32; those of rows that no id reaches are -inf."""
        h = self.hidden(x)
        logits = self.packed(h) if self.packed else F.linear(h, self.weight, self.bias).float()
        logits[:, self.n_ids:] = -torch.inf
        return logits.log_softmax(-1)

    def loss(self, x, labels):
        """x (N,C), labels (N,) -> the sum of -log p(label), a scalar; logits exist for one chunk of rows at a time."""
        return ChunkedCrossEntropy.apply(self.hidden(x), self.weight, self.bias, labels, self.n_ids,
                                         torch.is_grad_enabled())


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of h W^T + b without holding (N,V) logits.

    The gradients are formed with the loss, chunk by chunk, by hand: d logits = softmax - one-hot. This takes
    one product less than recomputing the logits in the backward pass, and the memory of one chunk.
    """
    CHUNK = 512                                                                   # rows of logits held at a time

    @staticmethod
    def forward(ctx, h, weight, bias, labels, n_ids, with_grad):
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        ctx.types = h.dtype, weight.dtype, bias.dtype
        h, w = h.to(dtype), weight.to(dtype)
        total = torch.zeros((), device=h.device)
        dh, dw = (torch.empty_like(h), torch.zeros_like(weight)) if with_grad else (None, None)
        db = torch.zeros_like(bias) if with_grad else None
        for i in range(0, len(h), ChunkedCrossEntropy.CHUNK):
            rows = slice(i, i + ChunkedCrossEntropy.CHUNK)
            logits = F.linear(h[rows], w, bias.to(dtype)).float()                 # (chunk, n_rows)
            logits[:, n_ids:] = -torch.inf                                        # rows that no id reaches
            picked = logits.gather(1, labels[rows, None])
            largest = logits.amax(1, keepdim=True)
            d = logits.sub_(largest).exp_()                                       # in place: it is most of the memory
            norm = d.sum(1, keepdim=True)
            total += (norm.log() + largest - picked).sum()
            if not with_grad:
                continue
            d.div_(norm).scatter_add_(1, labels[rows, None], torch.full_like(picked, -1))
            db += d.sum(0)
            d = d.to(dtype)
            torch.mm(d, w, out=dh[rows])
            if dw.dtype == dtype:
                dw.addmm_(d.T, h[rows])
            else:
                dw += d.T @ h[rows]
        ctx.grads = dh, dw, db
        return total

    @staticmethod
    def backward(ctx, grad):
        dh, dw, db = (g.mul_(grad).to(t) for g, t in zip(ctx.grads, ctx.types))
        ctx.grads = None
        return dh, dw, db, None, None, None


class XLMR(nn.Module):
    """The encoder, numerically equal to transformers' XLMRobertaModel, with its masked-token head.

    `sentencepiece` holds the tokenizer's file, so that whatever is saved is complete. `origins` says of each
    parameter where its value comes from.
    """

    def __init__(self, config, sentencepiece=None):
        super().__init__()
        self.config, self.sentencepiece = config, sentencepiece
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layer))
        self.head = Head(config, self.embeddings.word)
        init_weights(self)
        self.origins = {name: 'random' for name, _ in self.named_parameters(remove_duplicate=False)}
        if self.head.tied:
            self.origins['head.weight'] = 'tied to embeddings.word.weight'

    def encode(self, src):
        """src (B,S) int64, padded with 1 -> memory (B,S,C)."""
        mask = (src != PAD)[:, None, None]                                        # (B,1,1,S)
        x = self.embeddings(src)
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def loss(self, src, tgt):
        """src (B,S) with some tokens masked, tgt (B,S) their ids there and 1 elsewhere.

        Returns the sum of the token losses (nats) and the number of target tokens.
        """
        real = tgt != PAD
        return self.head.loss(self.encode(src)[real], tgt[real]), real.sum()

    def forward(self, src, tgt):
        return self.loss(src, tgt)

    def flops(self, n_source, n_target):
        """Operations of a training step: 6 a weight and token, forward and backward (Kaplan et al. 2020, section 2.1).

        Attention's products over positions are left out: under 5 % at 256 tokens and base size.
        """
        return 6 * (n_source * n_weights(self.encoder) + n_target * n_weights(self.head))

    @classmethod
    def from_encoder(cls, folder, **options):
        """Reads an XLM-R family folder: config.json, model.safetensors or pytorch_model.bin, the SentencePiece file.

        `options` are the fields of SWCMConfig beside the sizes. Raises FileNotFoundError for a missing file and
        ValueError for a damaged one, or for tensors that are missing, surplus or misshapen, by name.
        """
        sizes, state = read_encoder(Path(folder))
        model = cls(SWCMConfig(**{**sizes, **options}), read_file(Path(folder) / SENTENCEPIECE))
        model.copy_encoder(state, folder)
        return model.eval()

    @torch.no_grad()
    def copy_encoder(self, state, folder):
        """Copies tensors by our names; `folder` is named in messages. Raises ValueError for one of another shape."""
        c, parameters = self.config, dict(self.named_parameters())
        for name, value in state.items():
            if name.startswith('head') and not self.head.tied:                    # it has no use for the MLM head
                continue
            p = parameters[name][:c.vocab_size] if name in BY_ID else parameters[name]
            check_shape(folder, name, value, p.shape)
            p.copy_(value)
            check_finite(folder, name, p)
            self.origins[name] = f'read from {folder}'
        word = self.embeddings.word.weight                                        # new rows start near the mean row
        word[c.vocab_size:] = word[:c.vocab_size].mean(0) + 0.02 * torch.randn_like(word[c.vocab_size:])

    def save(self, folder, dtype=torch.float32):
        """Writes encoder and MLM head as a Hugging Face folder, which transformers reads too."""
        state = {name: (p.detach()[:self.config.vocab_size] if name in BY_ID else p.detach()).to(dtype)
                 for name, p in self.named_parameters()}
        write_encoder(folder, asdict(self.config), state, self.sentencepiece)

    def weight_report(self):
        """A few lines for the reader: parameters of each part, and where they come from.

        `origins` has the same for each parameter by name: read, copied, tied or random.
        """
        count, seen = {}, set()
        for name, p in self.named_parameters(remove_duplicate=False):
            part, *rest = name.split('.')
            if part == 'decoder':
                part += ', custom' if isinstance(self.decoder[int(rest[0])], CustomDecoderLayer) else ', inserted'
            origin = self.origins[name]
            if origin.startswith(('copied', 'tied')):                             # from encoder, decoder, ...
                origin = origin.split('.')[0]
            key = part, origin
            count[key] = count.get(key, 0) + (0 if p in seen else p.numel())
            seen.add(p)
        lines = [f'  {part:20}{n:>13,}  {origin}' for (part, origin), n in count.items()]
        return '\n'.join(lines + [f'  {"total":20}{sum(count.values()):>13,}'])


# The parts of a custom layer, the part of an encoder layer that each comes from, and which of its sources
CUSTOM_PARTS = {'self_attn': ('attn', 0), 'ffn1': ('ffn', 0), 'cross_attn': ('attn', 1), 'ffn2': ('ffn', 1)}
# The parts of an inserted layer that repeats the custom layer before it
INSERTED_PARTS = {'self_attn': 'self_attn', 'cross_attn': 'cross_attn', 'ffn': 'ffn2'}


class SWCM(XLMR):
    """The encoder, and a decoder of custom layers with normal ones inserted between.

    SWCM.from_encoder(folder, languages=('bo', 'zh'), share='copy', insert_every=0, inserted='random', head='tied')
    builds one from an encoder's folder; SWCM.load(folder) reads back what model.save(folder) wrote.
    """

    def __init__(self, config, sentencepiece=None):
        super().__init__(config, sentencepiece)
        sources = custom_sources(config)
        self.decoder = nn.ModuleList()
        for i, source in enumerate(sources):
            layer = CustomDecoderLayer(config)
            if config.share == 'tie':
                for part, (theirs, which) in CUSTOM_PARTS.items():
                    setattr(layer, part, getattr(self.encoder[source[which]], theirs))
            else:
                init_weights(layer)
            self.decoder.append(layer)
            last = i + 1 == len(sources)                                          # none after the last, as published
            if config.insert_every and (i + 1) % config.insert_every == 0 and not last:
                self.decoder.append(NormalDecoderLayer(config))
                init_weights(self.decoder[-1])
        for name, _ in self.decoder.named_parameters(prefix='decoder', remove_duplicate=False):
            self.origins[name] = 'random'

    def copy_encoder(self, state, folder):
        super().copy_encoder(state, folder)
        self.share_weights()

    @torch.no_grad()
    def share_weights(self):
        """Fills the decoder from the encoder's weights as config.share and config.inserted say."""
        c, sources = self.config, iter(custom_sources(self.config))
        for i, layer in enumerate(self.decoder):
            if isinstance(layer, CustomDecoderLayer):
                previous, source = i, next(sources)
                for part, (theirs, which) in CUSTOM_PARTS.items():
                    if c.share != 'none':
                        self.copy_part(f'decoder.{i}.{part}', f'encoder.{source[which]}.{theirs}')
            elif c.inserted == 'duplicate':
                for part, theirs in INSERTED_PARTS.items():
                    self.copy_part(f'decoder.{i}.{part}', f'decoder.{previous}.{theirs}')
            elif c.inserted == 'quiet':
                quiet(layer, self.decoder[previous].ffn2.norm)

    def copy_part(self, target, source):
        """Copies the module `source` into the module `target`, both by name, and accounts for it."""
        verb = 'tied to' if self.config.share == 'tie' and source.startswith('encoder') else 'copied from'
        if verb == 'copied from':
            for ours, theirs in zip(self.get_submodule(target).parameters(), self.get_submodule(source).parameters()):
                ours.copy_(theirs)
        for name, _ in self.get_submodule(source).named_parameters():
            self.origins[f'{target}.{name}'] = f'{verb} {source}.{name}'

    def decode(self, tgt, memory, src):
        """tgt (B,T), memory (B,S,C) of src (B,S) -> logits (B,T,V); position t has seen tgt up to t."""
        return self.head(self.decode_hidden(tgt, memory, src))

    def decode_hidden(self, tgt, memory, src, past=None, caches=None):
        """As `decode`, before the head: (B,T,C). With caches and `past`, see DecoderLayer, tgt has only new tokens."""
        mask = (src != PAD)[:, None, None]                                        # (B,1,1,S)
        x = self.embeddings(tgt, None if past is None else past[:, 0].sum(-1))    # a token has itself in its past
        for i, layer in enumerate(self.decoder):
            x = layer(x, memory, mask, past, caches[i] if caches else None)
        return x

    def loss(self, src, tgt):
        """src (B,S), tgt (B,T) = <s> <lang> ... </s>, both padded with 1.

        Returns the sum of the token losses (nats) and the number of target tokens; <lang> is given, not predicted.
        """
        labels = tgt[:, 2:]
        real = labels != PAD
        x = self.decode_hidden(tgt[:, :-1], self.encode(src), src)[:, 1:]         # (B,T-2,C)
        return self.head.loss(x[real], labels[real]), real.sum()

    def flops(self, n_source, n_target):
        """As XLMR.flops. Keys and values of cross-attention are formed once a source token, all else a target token."""
        source = sum(n_weights(layer.cross_attn.key) + n_weights(layer.cross_attn.value) for layer in self.decoder)
        target = sum(n_weights(layer) for layer in self.decoder) - source + n_weights(self.head)
        return 6 * (n_source * (n_weights(self.encoder) + source) + n_target * target)

    @torch.inference_mode()
    def generate(self, src, lang, beams=1, max_new_tokens=128, min_new_tokens=0, length_penalty=1.0,
                 no_repeat_ngram=0, temperature=0.0, top_k=0, top_p=1.0, banned=()):
        """Writes in `lang` (one language, or one per source) for each row of src (B,S), padded with 1.

        Greedy with beams=1; beam search with more; sampling with temperature > 0, from the top_k likeliest tokens
        or the likeliest that together have probability top_p. A hypothesis has at most max_new_tokens tokens (one
        number, or one per source) and then </s>, which is forced at the limit; no n-gram of no_repeat_ngram tokens
        comes twice (0: may), and no id of `banned` at all.

        Returns for each source a list of (ids, score), best first: ids without <s> <lang> and </s>, and
            score = sum of log p(token | before, source) over ids and </s>, divided by (len(ids) + 1) ** length_penalty
        with p the model's own probability. Only a </s> among a source's best `beams` candidates ends a hypothesis, and
        the best `beams` that ended are kept. The source is done when there are so many and its best beam, at the length
        of what ends now, has no better score (transformers' rule). Where bans leave a source
        nothing to write, </s> comes before min_new_tokens. Raises ValueError for an unknown language, lengths
        beyond the model's positions, and options out of range.
        """
        if src.dim() != 2:
            raise ValueError(f'src has the shape {tuple(src.shape)}; give sources of ids, (B,S)')
        c, device, (B, K) = self.config, src.device, (len(src), beams)
        langs = [lang] * B if isinstance(lang, str) else list(lang)
        if len(langs) != B:
            raise ValueError(f'{len(langs)} languages for {B} sources: give one language, or one a source')
        if not B:
            return []
        limits = list(max_new_tokens) if isinstance(max_new_tokens, (list, tuple)) else [max_new_tokens] * B
        if len(limits) != B:
            raise ValueError(f'{len(limits)} max_new_tokens for {B} sources: give one, or one a source')
        for name, value, least in (
                ('beams', beams, 1), ('max_new_tokens', min(limits), 0),
                ('min_new_tokens', min_new_tokens, 0), ('no_repeat_ngram', no_repeat_ngram, 0),
                ('temperature', temperature, 0), ('top_k', top_k, 0), ('top_p', top_p, 1e-6)):
            if not value >= least:                                                # true of nan
                raise ValueError(f'{name}={value}: give {least} or more')
        if max(limits) + 2 > c.max_length:
            raise ValueError(f'max_new_tokens={max_new_tokens}: this model writes at most {c.max_length - 2} tokens')
        if min_new_tokens > min(limits):
            raise ValueError(f'min_new_tokens={min_new_tokens} is above max_new_tokens={max_new_tokens}')
        if EOS in banned:
            raise ValueError(f'banned has {EOS}, </s>, without which nothing ends; use min_new_tokens')
        if temperature and beams > 1:
            raise ValueError(f'temperature={temperature} samples, which needs beams=1, not {beams}')
        new = torch.tensor([[BOS, c.language_id(x)] for x in langs], device=device)  # (B,2), later (B,K)
        if getattr(self.head.packed, 'bits', 32) == 8:
            # Quantizing can turn a float's last bit into a step of 1/127. Attention gives the same bits in
            # any batch if keys are a multiple of 16, a CPU's vector, and queries of 4, to align its buffers.
            S = src.shape[1]
            src = F.pad(src, (0, min(-S % 16, max(0, c.max_length - S))), value=PAD)
        memory = self.encode(src)
        caches = [Cache(layer, memory, 2 + K * max(limits)) for layer in self.decoder]
        past = torch.ones(B, 1, 2, 2, dtype=torch.bool, device=device).tril()     # (B,1,new tokens,slots)
        never = [BOS, PAD, UNK, *range(c.vocab_size - 1, c.n_ids), *banned]       # also <mask> and the languages
        ids, total = new[:, None], torch.zeros(B, 1, device=device)               # (B,rows,T), (B,rows): rows is 1 or K
        ended, sources = [[] for _ in range(B)], list(range(B))                   # sources: those not done, B from here
        for step in range(max(limits) + 1):
            x = self.decode_hidden(new, None, src, past, caches)[:, -ids.shape[1]:]  # (B,rows,C)
            logp = self.head.log_p(x.flatten(0, 1))                               # (R,V)
            logp[:, never] = -torch.inf
            if no_repeat_ngram:
                ban_repeats(logp, ids.flatten(0, 1)[:, 2:], no_repeat_ngram)
            if step < min_new_tokens:                                             # unless no other is left
                others = logp[:, EOS + 1:].amax(1).view_as(total) + total         # (B,rows)
                logp.view(*total.shape, -1)[others.amax(1).isfinite(), :, EOS] = -torch.inf
            if step in limits:
                full = torch.tensor([limits[s] == step for s in sources]).repeat_interleave(total.shape[1])   # (R,)
                logp[full, :EOS] = logp[full, EOS + 1:] = -torch.inf
            if temperature:
                logp = draw(logp, temperature, top_k, top_p)
            best, token = (t.view(*total.shape, -1) for t in top(logp, 2 * K))    # (B,rows,n)
            n, rows = best.shape[2], best.shape[1]
            score, i = (total[:, :, None] + best).flatten(1).topk(min(2 * K, rows * n))  # 2K: K of them are not </s>
            row, token = i // n, token.flatten(1).gather(1, i)                    # (B,2K)
            ends = (token == EOS) & score.isfinite()
            for b, i in ends[:, :K].nonzero().tolist():
                hypothesis = ids[b, row[b, i], 2:].tolist()
                ended[sources[b]].append((hypothesis, score[b, i].item() / (step + 1) ** length_penalty))
            go_on = ends.int().argsort(dim=1, stable=True)[:, :min(K, score.shape[1] - rows)]  # best first
            total, row, new = (t.gather(1, go_on) for t in (score, row, token))   # (B,K)
            left = []                                                             # sources that are not done
            for b, best in enumerate(total[:, 0].tolist()):
                found = ended[sources[b]] = sorted(ended[sources[b]], key=lambda hypothesis: -hypothesis[1])[:K]
                is_better = len(found) < K or best / (step + 1) ** length_penalty > found[-1][1]
                if is_better and step < limits[sources[b]]:
                    left.append(b)
            if not left:
                break
            left = torch.tensor(left, device=device)
            if len(left) < len(sources):
                sources, src = [sources[b] for b in left], src[left]
                for cache in caches:
                    cache.keep(left)
            total, row, new = total[left], row[left], new[left]
            before = left[:, None], row                                           # the rows that these go on from
            ids = torch.cat([ids[before], new[:, :, None]], 2)
            itself = torch.eye(new.shape[1], dtype=torch.bool, device=device).expand(len(new), -1, -1)
            past = torch.cat([past[:, 0, -rows:][before], itself], 2)[:, None]    # (B,1,K,slots)
        return ended

    @torch.no_grad()
    def pack(self, bits=32):
        """Makes a model on the CPU write faster, and fit for nothing else: its Linears become PackedLinears.

        16 bits are for x86 processors and 32 for PyTorch with oneDNN; elsewhere 16 becomes 32, and 32 changes nothing.
        """
        if bits == 16 and 'fbgemm' not in torch.backends.quantized.supported_engines:
            bits = 32
        if bits == 32 and not torch.backends.mkldnn.is_available():
            return
        to_itself = {layer.attn for layer in self.encoder} | {layer.self_attn for layer in self.decoder}
        for attn in to_itself:                                                    # three products as one
            parts = attn.query, attn.key, attn.value
            attn.qkv = PackedLinear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), bits)
        for attn in to_itself - {layer.cross_attn for layer in self.decoder}:     # they share with share='tie'
            attn.query = attn.key = attn.value = None
        packed = {}                                                               # a shared one once
        for module in list(self.modules()):
            for name, linear in module.named_children():
                if isinstance(linear, nn.Linear):
                    packed[linear] = packed.get(linear) or PackedLinear(linear.weight, linear.bias, bits)
                    setattr(module, name, packed[linear])
        self.head.packed = PackedLinear(self.head.weight, self.head.bias, bits)

    def save(self, folder):
        """Writes config.json, model.safetensors and the SentencePiece file: all that `load` and sampling need."""
        assert not self.head.packed, 'a packed model has lost the weights that are to be saved'
        state = {name: p.detach() for name, p in self.named_parameters()}         # a tied tensor once
        write_model(folder, state, self.sentencepiece, {'model_type': 'swcm', **asdict(self.config)})

    @classmethod
    def load(cls, folder, dropout=None):
        """Reads what `save` wrote, onto the CPU; dropout, if given, replaces its own.

        Raises FileNotFoundError, or ValueError that names what is wrong.
        """
        folder = Path(folder)
        config = read_json(folder / 'config.json')
        if config.get('model_type') != 'swcm':
            raise ValueError(f'{folder} is not a nanoSWCM model but perhaps an encoder, from which train.py makes one')
        options = {key: value for key, value in config.items() if key != 'model_type'}
        if unknown := sorted(set(options) - set(SWCMConfig.__dataclass_fields__)):
            raise ValueError(f'{folder}/config.json: unknown {few(unknown)}')
        if missing := sorted(set(SIZES) - set(options)):
            raise ValueError(f'{folder}/config.json lacks {few(missing)}')
        try:
            c = SWCMConfig(**options if dropout is None else {**options, 'dropout': dropout})
        except ValueError as e:
            raise ValueError(f'{folder}/config.json: {e}') from e
        state = read_model(folder, config)
        check_sizes(folder, state, c.n_rows, vars(c))
        with NoDraws():
            model = cls(c, read_file(folder / SENTENCEPIECE))
        parameters = dict(model.named_parameters())
        if wrong := sorted(set(parameters) ^ set(state)):
            raise ValueError(f'{folder}: tensors missing or not expected: {few(wrong)}')
        with torch.no_grad():
            for name, p in parameters.items():
                check_shape(folder, name, state[name], p.shape)
                p.copy_(state[name])
                check_finite(folder, name, p)
        model.origins = {name: f'read from {folder}' for name in model.origins}
        return model.eval()


def custom_sources(c):
    """For each custom layer, the encoder layers of its (self-attention, FFN1) and (cross-attention, FFN2)."""
    if c.share == 'alternate':                                                    # DeltaLM, arXiv 2106.13736
        return [(i, i + 1) for i in range(0, c.n_layer, 2)]
    return [(i, i) for i in range(c.n_layer)]


def init_weights(module):
    """Weights N(0, 0.02) as in BERT and XLM-R, biases 0, LayerNorm 1 and 0, the rows of <pad> 0."""
    for name, p in module.named_parameters():
        if name.endswith('norm.weight'):
            nn.init.ones_(p)
        elif name.endswith('bias'):
            nn.init.zeros_(p)
        else:
            nn.init.normal_(p, std=0.02)
    for m in module.modules():
        if isinstance(m, nn.Embedding) and m.padding_idx is not None:
            nn.init.zeros_(m.weight[m.padding_idx])


class NoDraws(TorchFunctionMode):
    """Within it new modules draw no random values, as a file is to fill them: at XLM-R base's size it saves 4 s."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        draws = func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
        return None if draws else func(*args, **(kwargs or {}))


def quiet(layer, before):
    """Makes an inserted layer nearly pass on its input, which left the LayerNorm `before`.

    Its output projections are 0. Its LayerNorms, which would still undo the scale g and shift b of `before`, give
    back what these did to an average token: variance mean(g^2) + var(b) and mean mean(b) over the channels.
    """
    for projection in (layer.self_attn.out, layer.cross_attn.out, layer.ffn.down):
        nn.init.zeros_(projection.weight)
    g, b = before.weight, before.bias
    for norm in (layer.self_attn.norm, layer.cross_attn.norm, layer.ffn.norm):
        nn.init.constant_(norm.weight, (g.square().mean() + b.var(correction=0)).sqrt().item())
        nn.init.constant_(norm.bias, b.mean().item())


def ban_repeats(logp, ids, n):
    """Sets log p to -inf, in place, of each token that would complete an n-gram that ids (R,T) hold already."""
    if ids.shape[1] < n:
        return
    grams = ids.unfold(1, n, 1)                                                   # (R,T-n+1,n)
    same = (grams[:, :, :-1] == ids[:, None, ids.shape[1] - n + 1:]).all(-1)      # (R,T-n+1)
    row, at = same.nonzero(as_tuple=True)
    logp[row, grams[row, at, -1]] = -torch.inf


def top(x, n):
    """As x.topk(n) for x (R,V), V a multiple of 64, and faster: the n largest are in the n blocks of largest maxima."""
    blocks = x.unflatten(1, (-1, 64))                                             # (R,V/64,64)
    if blocks.shape[1] <= n:
        return x.topk(min(n, x.shape[1]))
    which = blocks.amax(2).topk(n).indices                                        # (R,n)
    best, i = blocks.take_along_dim(which[:, :, None], 1).flatten(1).topk(n)
    return best, which.gather(1, i // 64) * 64 + i % 64


def draw(logp, temperature, top_k, top_p):
    """Samples a token a row of logp (R,V); returns logp with all others at -inf."""
    ranked, order = (logp / temperature).softmax(-1).sort(-1, descending=True)
    if top_k:
        ranked = ranked[:, :top_k] / ranked[:, :top_k].sum(-1, keepdim=True)
    if top_p < 1:                                                                 # keeps the one that crosses top_p
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked > top_p, 0)
    choice = order.gather(1, ranked.multinomial(1))                               # (R,1)
    return torch.full_like(logp, -torch.inf).scatter(1, choice, logp.gather(1, choice))


def n_weights(module):
    """Entries of the weight matrices below module: what multiplies, so no biases and no LayerNorms."""
    return sum(p.numel() for p in module.parameters() if p.dim() == 2)
