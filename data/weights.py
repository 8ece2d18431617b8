"""Weights in files: XLM-R's names for tensors, reading without running code, checksums."""
import json
import zlib
from functools import reduce
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from config import shorten
from data.text import SENTENCEPIECE, atomic_dir, read_json_object
from data.tokenizer import BOS, EOS, PAD

# Our sizes and config.json's
SIZES = {'vocab_size': 'vocab_size', 'n_layer': 'num_hidden_layers', 'n_head': 'num_attention_heads',
         'n_embd': 'hidden_size', 'n_ffn': 'intermediate_size', 'n_positions': 'max_position_embeddings',
         'layer_norm_eps': 'layer_norm_eps'}
# Our modules and Hugging Face's, below `roberta.` and `roberta.encoder.layer.N.`
EMBEDDING_NAMES = {'word': 'word_embeddings', 'position': 'position_embeddings', 'token_type': 'token_type_embeddings',
                   'norm': 'LayerNorm'}
LAYER_NAMES = {'attn.query': 'attention.self.query', 'attn.key': 'attention.self.key',
               'attn.value': 'attention.self.value', 'attn.out': 'attention.output.dense',
               'attn.norm': 'attention.output.LayerNorm', 'ffn.up': 'intermediate.dense', 'ffn.down': 'output.dense',
               'ffn.norm': 'output.LayerNorm'}
HEAD_NAMES = {'head.dense.weight': 'lm_head.dense.weight', 'head.dense.bias': 'lm_head.dense.bias',
              'head.norm.weight': 'lm_head.layer_norm.weight', 'head.norm.bias': 'lm_head.layer_norm.bias',
              'head.bias': 'lm_head.bias'}
# What a checkpoint may hold that this model does not use
UNUSED = ('roberta.pooler.', 'roberta.embeddings.position_ids', 'lm_head.decoder.bias')


def read_json(path):
    return read_json_object(read_file(path), path)


def read_file(path):
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder {path.parent} does not exist')
    if (path.parent / 'best').is_dir():
        raise FileNotFoundError(f'{path.parent} is the folder of a run; its model is {path.parent / "best"}')
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; an encoder or checkpoint folder needs it')
    return path.read_bytes()


def crc(parts):
    """CRC-32 of several bytes or arrays, as text."""
    return f'{reduce(lambda value, part: zlib.crc32(part, value), parts, 0):08x}'


def huggingface_names(n_layer, mlm_head):
    """Name of each parameter of model.XLMR -> its name in a Hugging Face XLMRobertaForMaskedLM."""
    names = {}
    for ours, theirs in EMBEDDING_NAMES.items():
        for kind in ('weight', 'bias') if ours == 'norm' else ('weight',):
            names[f'embeddings.{ours}.{kind}'] = f'roberta.embeddings.{theirs}.{kind}'
    for i in range(n_layer):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ('weight', 'bias'):
                names[f'encoder.{i}.{ours}.{kind}'] = f'roberta.encoder.layer.{i}.{theirs}.{kind}'
    return {**names, **HEAD_NAMES} if mlm_head else names


def read_encoder(folder):
    """An XLM-R folder's sizes, as fields of model.SWCMConfig, and its tensors by our names, on the CPU.

    Raises ValueError, which names them, for settings that are not XLM-R's and for tensors that lack or are too many.
    """
    config = read_json(folder / 'config.json')
    if config.get('model_type') == 'swcm':
        raise ValueError(f'{folder} is a nanoSWCM model, which finetune.py takes as --checkpoint, and no encoder')
    expected = {'hidden_act': 'gelu', 'position_embedding_type': 'absolute', 'pad_token_id': PAD, 'type_vocab_size': 1}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f'{folder}/config.json: {key} is {config[key]!r}; an XLM-R encoder has {value!r}')
    if missing := [key for key in SIZES.values() if key not in config]:
        raise ValueError(f'{folder}/config.json lacks {few(missing)}')
    sizes, state = {ours: config[theirs] for ours, theirs in SIZES.items()}, read_model(folder, config)
    state = {name if name.startswith(('roberta.', 'lm_head.')) else f'roberta.{name}': t for name, t in state.items()}
    word, head = state.get('roberta.embeddings.word_embeddings.weight'), state.pop('lm_head.decoder.weight', None)
    if head is not None and word is not None and not torch.equal(head, word):
        raise ValueError(f'{folder}: lm_head.decoder.weight differs from the embeddings; only a tied head is read')
    state = {name: t for name, t in state.items() if not name.startswith(UNUSED)}
    mlm_head = 'lm_head.bias' in state
    layers = {name.split('.')[3] for name in state if name.startswith('roberta.encoder.layer.')}
    if not isinstance(sizes['n_layer'], int) or not 1 <= sizes['n_layer'] <= len(layers):
        raise ValueError(f'{folder}: num_hidden_layers is {sizes["n_layer"]!r} in config.json, and the weights have '
                         f'{len(layers)} layers')
    names = huggingface_names(sizes['n_layer'], mlm_head)
    missing, surplus = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or surplus:
        raise ValueError(f'{folder}: not the tensors of an XLM-R with the sizes of its config.json. '
                         f'Missing: {few(missing)}. Not expected: {few(surplus)}')
    state = {ours: state[theirs] for ours, theirs in names.items()}
    check_sizes(folder, state, sizes['vocab_size'], sizes)
    return {**sizes, 'mlm_head': mlm_head}, state


def check_sizes(folder, state, n_rows, sizes):
    """Raises ValueError where a tensor has another size than config.json says: before a model of that size is made."""
    for name, *shape in (('embeddings.word.weight', n_rows, sizes['n_embd']),
                         ('embeddings.position.weight', sizes['n_positions'], sizes['n_embd']),
                         (f'encoder.{sizes["n_layer"] - 1}.ffn.up.weight', sizes['n_ffn'], sizes['n_embd'])):
        if name not in state:
            raise ValueError(f'{folder}: config.json asks for {name}, and the weights lack it')
        check_shape(folder, name, state[name], shape)


def check_shape(folder, name, tensor, shape):
    """Raises ValueError for a tensor that is not of this shape, or not of floating-point numbers."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(f'{folder}: {name} has values of {tensor.dtype}, which are no weights')
    if list(tensor.shape) != list(shape):
        raise ValueError(f'{folder}: {name} has shape {tuple(tensor.shape)}, where config.json asks for {tuple(shape)}')


def write_encoder(folder, config, state, sentencepiece):
    """Writes tensors by our names and the sizes of a model.SWCMConfig as a folder that transformers reads too."""
    names = huggingface_names(config['n_layer'], config['mlm_head'])
    write_model(folder, {names[name]: t.contiguous() for name, t in state.items()}, sentencepiece, {
        'model_type': 'xlm-roberta', 'architectures': ['XLMRobertaForMaskedLM'],
        **{theirs: config[ours] for ours, theirs in SIZES.items()}, 'hidden_act': 'gelu',
        'hidden_dropout_prob': config['dropout'], 'attention_probs_dropout_prob': config['dropout'],
        'type_vocab_size': 1, 'bos_token_id': BOS, 'pad_token_id': PAD, 'eos_token_id': EOS,
        'tie_word_embeddings': True})


def check_finite(folder, name, tensor):
    """Raises ValueError for values with which a model could write nothing."""
    if not all(bound.isfinite() for bound in tensor.aminmax()):
        raise ValueError(f'{folder}: {name} has values that are not finite; take another checkpoint')


def read_model(folder, config):
    """The tensors of a model's folder by name. Raises ValueError where config.json or the SentencePiece file, as far
    as they are on record, are not those with which they were written."""
    tensors, metadata = read_tensors(folder)
    written = read_json_object(metadata.get('config', '{}'), f'the metadata of {folder}/model.safetensors')
    if changed := [key for key in written if config.get(key) != written[key] and 'dropout' not in key]:
        key = changed[0]
        raise ValueError(f'{folder}/config.json has {key}={config.get(key)!r}, and model.safetensors was written with '
                         f'{written[key]!r}; copy both from one folder')
    if 'sentencepiece' in metadata and crc([read_file(folder / SENTENCEPIECE)]) != metadata['sentencepiece']:
        raise ValueError(f'{folder}/{SENTENCEPIECE} is damaged or not the one with which model.safetensors was '
                         'written; copy both from one folder')
    return tensors


def read_tensors(folder):
    """Tensors by name and metadata, from model.safetensors or else pytorch_model.bin, whose code is not run."""
    path = folder / 'model.safetensors'
    if path.is_file():
        return read_safetensors(path)
    path = folder / 'pytorch_model.bin'
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has neither model.safetensors nor pytorch_model.bin')
    try:
        if is_zipfile(path) and any(part.compress_type != ZIP_STORED for part in ZipFile(path).infolist()):
            raise ValueError('it is compressed, which PyTorch does not do and which may hide any size')
        tensors = torch.load(path, map_location='cpu', weights_only=True)
        items = tensors.items() if isinstance(tensors, dict) else [(None, None)]
        if not all(isinstance(name, str) and isinstance(t, torch.Tensor) for name, t in items):
            raise ValueError('it holds other things than tensors by name')
        if any(t.layout != torch.strided or t.device.type != 'cpu' for t in tensors.values()):
            raise ValueError('it holds tensors without plain values')
        if any(t.untyped_storage().nbytes() < t.numel() * t.element_size() for t in tensors.values()):
            raise ValueError('a tensor is larger than its data')
    except Exception as e:                            # a damaged pickle may raise anything
        raise damaged(path, e) from e
    return tensors, {}


def read_safetensors(path):
    """Tensors by name, mapped into memory, and metadata; raises ValueError where these are not what was written."""
    while True:
        before = path.stat().st_ino, path.stat().st_mtime_ns
        try:
            with safe_open(path, 'pt') as file:
                tensors, metadata, error = {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}, None
        except (SafetensorError, RuntimeError, OSError) as e:
            error = e
        if before == (path.stat().st_ino, path.stat().st_mtime_ns):      # the library opens it twice, and it may have
            break                                                         # been replaced in between
    if error:
        raise damaged(path, error)
    if 'crc32' in metadata and metadata['crc32'] != checksum(tensors, metadata):
        raise damaged(path, 'its checksum is another')
    return tensors, metadata


def read_metadata(path):
    """The metadata of a safetensors file, {name: text}; its checksum is not looked at."""
    try:
        with safe_open(path, 'pt') as file:
            return file.metadata() or {}
    except (SafetensorError, RuntimeError, OSError) as e:
        raise damaged(path, e) from e


def damaged(path, why):
    why = shorten(' '.join(str(why).split()) or type(why).__name__, 150)
    return ValueError(f'{path} is damaged or no weight file ({why}); take a whole copy')


def checksum(tensors, metadata):
    """CRC-32 of all that a file of tensors says, but for the checksum itself."""
    def parts():
        yield repr(sorted(item for item in metadata.items() if item[0] != 'crc32')).encode()
        for name, t in sorted(tensors.items()):
            yield repr((name, t.dtype, tuple(t.shape))).encode()
            yield t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

    return crc(parts())


def write_model(folder, state, sentencepiece, config):
    """Writes a model's folder: all of it, or on an error, which is an OSError, nothing."""
    with atomic_dir(Path(folder)) as new:
        metadata = {'format': 'pt', 'config': json.dumps(config)}
        if sentencepiece is not None:
            (new / SENTENCEPIECE).write_bytes(sentencepiece)
            metadata['sentencepiece'] = crc([sentencepiece])
        (new / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        write_tensors(new / 'model.safetensors', state, metadata)


def write_tensors(path, tensors, metadata):
    """Writes a safetensors file, {name: text} and a checksum as its metadata; equal calls write equal bytes."""
    path.touch()
    mode = path.stat().st_mode                        # the user's; safetensors makes files that others cannot read
    try:
        save_file(tensors, path, {**metadata, 'crc32': checksum(tensors, metadata)})
    except SafetensorError as e:
        raise OSError(f'{path} cannot be written: {e}') from e
    path.chmod(mode)
    with open(path, 'rb+') as file:                   # the library writes metadata in any order
        size = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
        assert len(ordered) <= size, f'{path}: the header has grown'
        file.seek(8)
        file.write(ordered.ljust(size))


def few(names):
    names = [shorten(ascii(name)[1:-1]) for name in names]
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '') if names else 'none'
