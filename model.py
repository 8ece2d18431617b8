"""SWCM: an XLM-R encoder made into a generator by copying its weights into a decoder.

The method is XLM-SWCM (Su et al., ACL 2025, arXiv 2502.10852). Read from leaf to root: sizes,
layers, the encoder XLMR, the encoder-decoder SWCM, XLM-R's files, a memory-saving loss.

Axes: B batch, S source, T target, C channels (n_embd), H heads, D head size, N target tokens,
V rows of the vocabulary. Masks are boolean and True means "attend".
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

BOS, PAD, EOS, UNK = 0, 1, 2, 3              # <s> <pad> </s> <unk>: XLM-R's ids
GPU_LOGITS = 2**28                           # at a time, in the loss: 0.5 GiB in bfloat16


@dataclass
class SWCMConfig:
    """Sizes and options. Defaults: XLM-R base's sizes, the options chosen in config/ablation."""
    vocab_size: int = 250002                 # the encoder's ids; as a rule, the last is <mask>
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ffn: int = 3072
    n_positions: int = 514                   # rows of the position table; the first two are unused
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1
    languages: tuple = ()                    # each adds a token <xx>, a row after the encoder's
    layer: str = 'custom'                    # the kind of decoder layer, a key of LAYERS
    share: str = 'copy'                      # copy (paper) | none | tie | alternate (DeltaLM)
    insert_every: int = 0                    # a normal layer between every X (paper: 3); 0: none
    inserted: str = 'random'                 # its weights: random (paper) | duplicate
    head: str = 'tied'                       # tied | untied (published code)
    mlm_head: bool = True                    # the encoder's files include the masked-LM head

    def __post_init__(self):
        for name, known in (('layer', LAYERS), ('share', ('copy', 'none', 'tie', 'alternate')),
                            ('inserted', ('random', 'duplicate')), ('head', ('tied', 'untied'))):
            if getattr(self, name) not in known:
                raise ValueError(f'{name}={getattr(self, name)!r}: choose {" or ".join(known)}')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        if self.share == 'alternate' and self.n_layer % 2:
            raise ValueError(f"n_layer={self.n_layer}: share='alternate' needs an even number")
        if self.insert_every >= (n := self.n_layer // (1 + (self.share == 'alternate'))):
            raise ValueError(f'insert_every={self.insert_every}: the decoder has {n} layers')
        if self.share == 'none' and self.inserted == 'duplicate':
            raise ValueError("inserted='duplicate' needs copied layers; share='none' has none")
        self.languages, self.n_ids = tuple(self.languages), self.vocab_size + len(self.languages)
        self.n_rows = -(-self.n_ids // 64) * 64         # V: whole blocks, for sample.topk
        self.max_length = self.n_positions - PAD - 1    # tokens; positions start after <pad>
        self.not_generated = [BOS, PAD, UNK, *range(self.vocab_size - 1, self.n_ids)]   # <mask> ...

    def language_id(self, language):
        if language not in self.languages:
            raise ValueError(f'language {language!r}: the model has {" ".join(self.languages)}')
        return self.vocab_size + self.languages.index(language)


class Embeddings(nn.Module):
    """Word, position and token-type embedding, LayerNorm. Positions start at 2 and skip padding."""
    def __init__(self, c):
        super().__init__()
        self.word = nn.Embedding(c.n_rows, c.n_embd, padding_idx=PAD)
        self.position = nn.Embedding(c.n_positions, c.n_embd, padding_idx=PAD)
        self.token_type = nn.Embedding(1, c.n_embd)
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout, self.longest = nn.Dropout(c.dropout), c.max_length

    def forward(self, ids, position=None):
        """ids (B,T) -> (B,T,C). position (B,T), from 1: given if ids are not a whole sequence."""
        if position is None:
            if ids.shape[1] > self.longest:
                raise ValueError(f'{ids.shape[1]} tokens; the model reads at most {self.longest}')
            position = (ids != PAD).cumsum(1) * (ids != PAD)
        x = self.word(ids) + self.token_type.weight[0] + self.position(position + PAD)
        return self.dropout(self.norm(x))


class Attention(nn.Module):
    """Multi-head attention, its residual, then LayerNorm (post-LN, as in XLM-R)."""
    def __init__(self, c):
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(c.n_embd, c.n_embd) for _ in range(4))
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.n_head = c.n_head

    def heads(self, x):
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)            # (B,T,C) -> (B,H,T,D)

    def keys_values(self, kv):
        """kv (B,S,C) -> two of (B,H,S,D)."""
        return self.heads(self.key(kv)), self.heads(self.value(kv))

    def forward(self, x, kv=None, mask=None, causal=False, cache=None):
        """x (B,T,C) attends to kv (B,S,C), or to itself -> (B,T,C). mask: broadcast to (B,H,T,S).
        cache: a sample.KVCache with the keys and values of the tokens before x, and their mask."""
        q = self.heads(self.query(x))                                       # (B,H,T,D)
        if cache is None:
            k, v = self.keys_values(x if kv is None else kv)                # (B,H,S,D)
        else:
            k, v, mask = cache.keys_values(self, x, kv, mask)               # its mask is causal
        p = self.dropout.p * self.training
        y = F.scaled_dot_product_attention(q, k, v, mask, p, causal and cache is None)
        return self.norm(x + self.dropout(self.out(y.transpose(1, 2).flatten(2))))


class FFN(nn.Module):
    """Two linear layers with exact GELU between them, residual, LayerNorm."""
    def __init__(self, c):
        super().__init__()
        self.up = nn.Linear(c.n_embd, c.n_ffn)
        self.down = nn.Linear(c.n_ffn, c.n_embd)
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x):
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Layer(nn.Module):
    """A kind of layer: a subclass with `forward` (B,T,C) -> (B,T,C) and SOURCES, which says what
    each part, in order of use, is copied from: {part: ('attn' or 'ffn' of an encoder layer, 0 or
    1: of the first or second one; they differ only with share='alternate')}."""
    def __init__(self, c):
        super().__init__()
        for part, (kind, _) in self.SOURCES.items():
            setattr(self, part, Attention(c) if kind == 'attn' else FFN(c))


class EncoderLayer(Layer):
    SOURCES = {'attn': ('attn', 0), 'ffn': ('ffn', 0)}

    def forward(self, x, mask):
        return self.ffn(self.attn(x, mask=mask))


class CustomDecoderLayer(Layer):
    """The paper's layer: an encoder layer used twice, once for the target, once for the source."""
    SOURCES = {'self_attn': ('attn', 0), 'ffn1': ('ffn', 0),
               'cross_attn': ('attn', 1), 'ffn2': ('ffn', 1)}

    def forward(self, x, memory, mask, cache=None):
        x = self.ffn1(self.self_attn(x, causal=True, cache=cache))
        return self.ffn2(self.cross_attn(x, memory, mask, cache=cache))


class NormalDecoderLayer(Layer):
    """A standard Transformer decoder layer, which the paper inserts between custom ones."""
    SOURCES = {'self_attn': ('attn', 0), 'cross_attn': ('attn', 1), 'ffn': ('ffn', 1)}

    def forward(self, x, memory, mask, cache=None):
        x = self.self_attn(x, causal=True, cache=cache)
        return self.ffn(self.cross_attn(x, memory, mask, cache=cache))


LAYERS = {'custom': CustomDecoderLayer, 'normal': NormalDecoderLayer}


class Head(nn.Module):
    """States to logits: XLM-R's transform, if any, then the embeddings or an untied matrix."""
    def __init__(self, c, word):
        super().__init__()
        self.has_transform, self.n_ids = c.head == 'tied' and c.mlm_head, c.n_ids
        if self.has_transform:
            self.dense = nn.Linear(c.n_embd, c.n_embd)
            self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_eps)
        self.word = word if c.head == 'tied' else nn.Embedding(c.n_rows, c.n_embd)
        self.bias = nn.Parameter(torch.zeros(c.n_rows))
        self.loss_and_gradient = LossAndGradient()

    def transform(self, x):
        return self.norm(F.gelu(self.dense(x))) if self.has_transform else x

    def bias_of_rows(self):
        """The bias (V,), -inf in the rows that belong to no id."""
        return F.pad(self.bias[:self.n_ids], (0, len(self.bias) - self.n_ids), value=-torch.inf)

    def forward(self, x):
        """x (...,C) -> logits (...,V)."""
        return F.linear(self.transform(x), self.word.weight, self.bias_of_rows())

    def loss(self, x, labels):
        """x (N,C), labels (N,) -> the sum of -log p(label), a scalar."""
        return ChunkedCrossEntropy.apply(self.transform(x), self.word.weight, self.bias_of_rows(),
                                         labels, torch.is_grad_enabled(), self.loss_and_gradient)


class XLMR(nn.Module):
    """The encoder and its masked-LM head; equivalent to transformers' XLMRobertaForMaskedLM."""
    def __init__(self, config, sentencepiece=b''):
        super().__init__()
        self.config, self.sentencepiece = config, sentencepiece             # bytes of the file
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layer))
        self.head = Head(config, self.embeddings.word)
        init_weights(self)

    def encode(self, src):
        """src (B,S) int64, padded with 1 -> memory (B,S,C)."""
        mask, x = (src != PAD)[:, None, None], self.embeddings(src)         # (B,1,1,S), (B,S,C)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def loss(self, src, tgt):
        """src (B,S) has masked tokens, tgt (B,S) their ids, 1 elsewhere; returns as SWCM.loss."""
        at = (tgt != PAD).flatten().nonzero()[:, 0]
        src, tgt, at = to_device(self, src, tgt, at)
        return self.head.loss(self.encode(src).flatten(0, 1)[at], tgt.flatten()[at]), len(at)
    forward = loss                                                          # what DDP calls

    @classmethod
    def from_encoder(cls, folder, **options):
        """Reads an XLM-R folder; options are fields of SWCMConfig. Raises as read_encoder does."""
        sizes, tensors, sentencepiece = read_encoder(folder)
        model = cls(SWCMConfig(**{**sizes, **options}), sentencepiece)
        model.copy_encoder(tensors, folder)
        return model.eval()

    def copy_encoder(self, tensors, folder):
        """Copies tensors by our names. New rows begin near the mean; a head not in them stays."""
        own, n_new = dict(self.named_parameters()), self.config.n_rows - self.config.vocab_size
        word = tensors.get('embeddings.word.weight', own['embeddings.word.weight'][:0]).float()
        new = word.mean(0) + 0.02 * torch.randn(n_new, word.shape[1])
        known = {**tensors, 'embeddings.word.weight': torch.cat([word, new])}
        if self.head.has_transform and 'head.bias' in tensors:
            known['head.bias'] = F.pad(tensors['head.bias'], (0, n_new))
        else:                                                               # ours stays
            known = {name: t for name, t in known.items() if not name.startswith('head.')}
            known |= {name: p for name, p in own.items() if name.startswith('head.')}
        load_tensors(self, known, folder)

    def save(self, folder):
        """Writes the encoder as a folder in XLM-R's format, which transformers can read too."""
        c, tensors = self.config, {}
        for name, p in self.named_parameters():
            value = p.detach()[:c.vocab_size] if name in ROW_PER_ID else p.detach()
            for ours, theirs in NAMES.items():
                name = name.replace(ours, theirs)
            if c.mlm_head or not name.startswith('lm_head'):
                tensors[name] = value.contiguous()
        write_folder(folder, {**XLMR_CONFIG, 'architectures': ['XLMRobertaForMaskedLM'],
                              **{theirs: getattr(c, ours) for ours, theirs in SIZES.items()}},
                     tensors, self.sentencepiece)


class SWCM(nn.Module):
    """The encoder, and a decoder of layers copied from it and, if any, inserted ones."""
    def __init__(self, config, sentencepiece=b''):
        super().__init__()
        self.config, self.encoder = config, XLMR(config, sentencepiece)
        self.decoder, self.shared = nn.ModuleList(), {}             # decoder part: its encoder part
        step = 2 if config.share == 'alternate' else 1              # DeltaLM, arXiv 2106.13736
        for i in range(0, config.n_layer, step):
            if i and config.insert_every and i // step % config.insert_every == 0:
                self.add_layer(NormalDecoderLayer, (i - step, i - 1), config.inserted)
            self.add_layer(LAYERS[config.layer], (i, i + step - 1), config.share)

    def add_layer(self, kind, sources, share):
        """Appends a layer made from encoder layers `sources`. share: config.share or .inserted."""
        layer = kind(self.config)
        init_weights(layer)
        for part, (theirs, which) in layer.SOURCES.items():
            source = f'layers.{sources[which]}.{theirs}'
            if share == 'tie':
                setattr(layer, part, self.encoder.get_submodule(source))
            if share not in ('none', 'random'):
                self.shared[f'{len(self.decoder)}.{part}'] = source
        self.decoder.append(layer)

    @classmethod
    def from_encoder(cls, folder, **options):
        """Makes a model from an XLM-R folder: SWCM.from_encoder(path, languages=('bo', 'zh'))."""
        sizes, tensors, sentencepiece = read_encoder(folder)
        model = cls(SWCMConfig(**{**sizes, **options}), sentencepiece).eval()
        model.encoder.copy_encoder(tensors, folder)
        for part, source in model.shared.items():
            part, source = model.decoder.get_submodule(part), model.encoder.get_submodule(source)
            load_tensors(part, dict(source.named_parameters()), 'the encoder', 'copied')
        c = model.config
        if c.share in ('copy', 'alternate') and c.head == 'tied' and not c.mlm_head:
            model.fit_last_norm()
        return model

    @torch.no_grad()
    def fit_last_norm(self):
        """Shifts and scales the decoder's states, of random ids, to the mean and spread of
        embeddings. Without a masked-LM head the embeddings alone read the states, and the states
        of copied layers may be nearly alike: see config/ablation."""
        c, g, last = self.config, torch.Generator().manual_seed(1), self.decoder[-1]
        src, tgt = torch.randint(UNK + 1, c.vocab_size - 1, (2, 32, 32), generator=g)
        x, embedded = self.states(tgt, self.encoder.encode(src), src), self.encoder.embeddings(tgt)
        (std, mean), (wanted, centre) = (torch.std_mean(t, (0, 1)) for t in (x, embedded))
        norm, scale = getattr(last, [*last.SOURCES][-1]).norm, wanted.norm() / std.norm()
        norm.weight.mul_(scale)
        norm.bias.copy_((norm.bias - mean) * scale + centre)
        norm.weight.origin = norm.bias.origin = 'fitted to embeddings'

    def states(self, tgt, memory, src, cache=None):
        """tgt (B,T), memory (B,S,C) of src (B,S) -> (B,T,C). With a cache, tgt continues it."""
        mask = (src != PAD)[:, None, None]                                  # (B,1,1,S)
        x = self.encoder.embeddings(tgt, cache and cache.positions())
        for layer in self.decoder:
            x = layer(x, memory, mask, cache)
        return x

    def loss(self, src, tgt):
        """The sum of the losses of the target tokens after <lang>, in nats, and their number.
        src (B,S), tgt (B,T): <s> <lang> ... </s>, padded with 1, on the CPU."""
        real = tgt[:, 1:] != PAD
        real[:, 0] = False                                                  # <lang> is given
        src, tgt, at = to_device(self, src, tgt, real.flatten().nonzero()[:, 0])
        x = self.states(tgt[:, :-1], self.encoder.encode(src), src)         # (B,T-1,C)
        return self.encoder.head.loss(x.flatten(0, 1)[at], tgt[:, 1:].flatten()[at]), len(at)
    forward = loss                                                          # what DDP calls

    @torch.inference_mode()
    def generate(self, src, language, max_new_tokens=128, temperature=0.0):
        """src (B,S) -> for each row a list of ids without special tokens; greedy, or sampled. Slow:
        each token recomputes all, as there is no cache. A test compares it with sample.search."""
        memory, c = self.encoder.encode(src), self.config
        tgt = torch.tensor([[BOS, c.language_id(language)]] * len(src), device=src.device)
        for _ in range(max_new_tokens):
            logits = self.encoder.head(self.states(tgt, memory, src)[:, -1]).float()    # (B,V)
            logits[:, c.not_generated] = -torch.inf
            p = (logits / (temperature or 1)).softmax(-1)
            token = p.multinomial(1) if temperature else p.argmax(-1, keepdim=True)     # (B,1)
            tgt = torch.cat([tgt, token], 1)
            if (tgt == EOS).any(1).all():
                break
        return [ids[:[*ids, EOS].index(EOS)] for ids in tgt[:, 2:].tolist()]

    def save(self, folder):
        """Writes config.json, model.safetensors and the SentencePiece file."""
        weights = {name: p.detach() for name, p in self.named_parameters()}     # a tied one once
        write_folder(folder, asdict(self.config), weights, self.encoder.sentencepiece)

    @classmethod
    def load(cls, folder, **options):
        """Reads what `save` wrote, onto the CPU; options such as dropout=0.0 override its config.
        Raises OSError for a missing file, ValueError if one is damaged or not from nanoSWCM."""
        config, tensors, sentencepiece = read_folder(folder)
        try:
            with torch.device('meta'):                                      # no random weights
                model = cls(SWCMConfig(**{**config, **options}), sentencepiece)
        except TypeError as e:                                              # an encoder's config
            raise ValueError(f'{folder} has no nanoSWCM model; train.py makes one ({e})') from e
        load_tensors(model, tensors, folder)
        return model.eval()


def to_device(module, *tensors):
    """Copies tensors from the CPU to a module's device, without waiting for a GPU. So what depends
    on the ids, such as the places of targets, is computed on the CPU before."""
    device = next(module.parameters()).device
    is_gpu = device.type == 'cuda'
    return [(t.pin_memory() if is_gpu else t).to(device, non_blocking=is_gpu) for t in tensors]


def init_weights(module):
    """Weights N(0, 0.02²) as in XLM-R, biases 0, the rows of <pad> 0. LayerNorms: 1 and 0."""
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, std=0.02)
        if isinstance(m, nn.Linear):
            nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding) and m.padding_idx is not None:
            nn.init.zeros_(m.weight[m.padding_idx])


# Parts of our tensor names, and the same parts in transformers' XLMRobertaForMaskedLM
NAMES = {
    'embeddings.word': 'roberta.embeddings.word_embeddings',
    'embeddings.position': 'roberta.embeddings.position_embeddings',
    'embeddings.token_type': 'roberta.embeddings.token_type_embeddings',
    'embeddings.norm': 'roberta.embeddings.LayerNorm', 'layers': 'roberta.encoder.layer',
    'attn.query': 'attention.self.query', 'attn.key': 'attention.self.key',
    'attn.value': 'attention.self.value', 'attn.out': 'attention.output.dense',
    'attn.norm': 'attention.output.LayerNorm', 'ffn.up': 'intermediate.dense',
    'ffn.down': 'output.dense', 'ffn.norm': 'output.LayerNorm', 'head.dense': 'lm_head.dense',
    'head.norm': 'lm_head.layer_norm', 'head.bias': 'lm_head.bias',
}
READ = {'.gamma': '.weight', '.beta': '.bias', 'lm_head.decoder.bias': 'lm_head.bias',
        **{theirs: ours for ours, theirs in NAMES.items()}}             # first: older names
UNUSED = 'roberta.pooler.', 'roberta.embeddings.position_ids', 'lm_head.decoder.weight', 'cls.'
ROW_PER_ID = 'embeddings.word.weight', 'head.bias'      # ours have more rows than the file's
SIZES = {'vocab_size': 'vocab_size', 'n_layer': 'num_hidden_layers', 'n_embd': 'hidden_size',
         'n_head': 'num_attention_heads', 'n_ffn': 'intermediate_size',
         'n_positions': 'max_position_embeddings', 'layer_norm_eps': 'layer_norm_eps'}
XLMR_CONFIG = {'model_type': 'xlm-roberta', 'hidden_act': 'gelu', 'pad_token_id': PAD,
               'position_embedding_type': 'absolute', 'type_vocab_size': 1, 'is_decoder': False,
               'tie_word_embeddings': True}


def read_encoder(folder):
    """Sizes (fields of SWCMConfig), tensors by our names, the vocabulary: XLM-R or a BERT like it.
    Raises OSError for a missing file, ValueError for a damaged one or settings unlike XLM-R's."""
    config, found, sentencepiece = read_folder(folder)
    is_bert = config.get('model_type') == 'bert'
    for key in ('hidden_act', 'position_embedding_type', 'is_decoder') if is_bert else XLMR_CONFIG:
        if config.get(key, value := XLMR_CONFIG[key]) != value:
            raise ValueError(f'{folder}/config.json: {key} is {config[key]!r}; XLM-R has {value!r}')
    sizes, tensors = {ours: config.get(theirs) for ours, theirs in SIZES.items()}, {}
    if lacking := [SIZES[name] for name, size in sizes.items() if size is None]:
        raise ValueError(f'{folder}/config.json lacks {", ".join(lacking)}')
    for name, tensor in found.items():
        name = name.removeprefix('module.').removeprefix('bert.')
        name = name if name.startswith(('roberta.', 'lm_head.', 'cls.')) else f'roberta.{name}'
        if is_bert and 'position_embeddings' in name:           # XLM-R's positions begin at row 2
            tensor, sizes['n_positions'] = F.pad(tensor, (0, 0, 2, 0)), sizes['n_positions'] + 2
        if not name.startswith(UNUSED):
            for theirs, ours in READ.items():
                name = name.replace(theirs, ours)
            tensors[name] = tensor[:1] if name == 'embeddings.token_type.weight' else tensor
    return {**sizes, 'mlm_head': 'head.bias' in tensors}, tensors, sentencepiece


def load_tensors(module, tensors, source, verb='read'):
    """Fills the parameters of a module, and notes as `origin` where each comes from. One that is
    itself in `tensors`, as a head or a tied one, stays. ValueError if names or shapes differ."""
    ours = dict(module.named_parameters())
    wrong = ours.keys() ^ tensors.keys() or {x for x in ours if ours[x].shape != tensors[x].shape}
    if wrong:
        raise ValueError(f'{source}: tensors are missing, unknown, or not of the shape that '
                         f'config.json asks for: {", ".join(sorted(wrong)[:4])}')
    for name in [name for name in ours if tensors[name] is not ours[name]]:
        part, _, attribute = name.rpartition('.')
        value = nn.Parameter(tensors[name].to('cpu', torch.float32, copy=True))
        value.origin = f'{verb} from {source}'
        setattr(module.get_submodule(part), attribute, value)


def read_folder(folder):
    """config.json, tensors by name, the vocabulary's bytes. Runs no code of a pytorch_model.bin."""
    folder, vocabulary = Path(folder), Path(folder, 'sentencepiece.bpe.model')
    try:
        config = dict(json.loads((folder / 'config.json').read_bytes()))
        files = [*folder.glob('model.safetensors')] or [*folder.glob('model-*-of-*.safetensors')]
        if not all(x.stem.endswith(('model', f'-of-{len(files):05}')) for x in files):
            raise ValueError(f'of model-*{files[0].stem[-9:]}.safetensors not all are there')
        tensors = {name: t for file in files for name, t in load_file(file).items()}
        tensors = tensors or torch.load(folder / 'pytorch_model.bin', 'cpu', weights_only=True)
    except (TypeError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as e:
        raise ValueError(f'{folder} has a damaged file: {str(e).partition(". ")[0]}') from e
    if not vocabulary.is_file():
        raise FileNotFoundError(f'{folder} has no {vocabulary.name}: only encoders with a '
                                'vocabulary of that kind are read')
    return config, tensors, vocabulary.read_bytes()


def write_folder(folder, config, tensors, sentencepiece):
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    Path(folder, 'sentencepiece.bpe.model').write_bytes(sentencepiece)
    save_file(tensors, Path(folder, 'model.safetensors'), {'format': 'pt', 'crc32': '00000000'})


class LossAndGradient(nn.Module):                # a module, so that train.py can compile it
    def forward(self, logits, labels):
        """logits (N,V), labels (N,) -> the sum of -log p(label), and its gradient (N,V)."""
        rows = torch.arange(len(labels), device=labels.device)
        logp = logits.float().log_softmax(1)
        picked, p = logp[rows, labels], logp.exp_().to(logits.dtype)
        p[rows, labels] = picked.expm1().to(p.dtype)                        # p - 1, exact near 0
        return -picked.sum(), p


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies of h W^T + b, some rows at a time, with their gradients."""
    @staticmethod
    def forward(ctx, h, weight, bias, labels, with_grad, loss_and_gradient):
        dtype = F.linear(h[:1], weight[:1]).dtype                           # autocast may be on
        h, w, total = h.to(dtype), weight.to(dtype), torch.zeros((), device=h.device)
        dh, dw, db = (torch.zeros_like(x) if with_grad else None for x in (h, weight, bias))
        n = max(1, GPU_LOGITS // len(w)) if h.is_cuda else 512              # memory: n * V numbers
        for i in range(0, len(h), n):
            rows = slice(i, i + n)
            loss, d = loss_and_gradient(F.linear(h[rows], w, bias.to(dtype)), labels[rows])
            total += loss
            if with_grad:
                db += d.sum(0)
                torch.mm(d, w, out=dh[rows])
                dw.addmm_(d.T, h[rows]) if dw.dtype == dtype else dw.add_(d.T @ h[rows])
        ctx.grads = dh, dw, db
        return total

    @staticmethod
    def backward(ctx, grad):
        dh, dw, db = (g.mul_(grad) for g in ctx.grads)      # autograd: to the inputs' dtypes
        ctx.grads = None
        return dh, dw, db, *[None] * 3
