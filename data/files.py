"""Files of a model: XLM-R's names, reading without running code, writing so that a file is always whole."""
import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data import BOS, EOS, PAD

SENTENCEPIECE = 'sentencepiece.bpe.model'             # the name that the XLM-R family uses


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
    config, state = read_json(folder / 'config.json'), read_tensors(folder)
    if config.get('model_type') == 'swcm':
        raise ValueError(f'{folder} is a nanoSWCM model; an encoder is asked for')
    expected = {'hidden_act': 'gelu', 'position_embedding_type': 'absolute', 'pad_token_id': PAD, 'type_vocab_size': 1}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f'{folder}/config.json: {key} is {config[key]!r}; an XLM-R encoder has {value!r}')
    if missing := [key for key in SIZES.values() if key not in config]:
        raise ValueError(f'{folder}/config.json lacks {few(missing)}')
    sizes = {ours: config[theirs] for ours, theirs in SIZES.items()}
    state = {name if name.startswith(('roberta.', 'lm_head.')) else f'roberta.{name}': t for name, t in state.items()}
    word, head = state.get('roberta.embeddings.word_embeddings.weight'), state.pop('lm_head.decoder.weight', None)
    if head is not None and word is not None and not torch.equal(head, word):
        raise ValueError(f'{folder}: lm_head.decoder.weight differs from the embeddings; only a tied head is read')
    state = {name: t for name, t in state.items() if not name.startswith(UNUSED)}
    mlm_head = 'lm_head.bias' in state
    names = huggingface_names(sizes['n_layer'], mlm_head)
    missing, surplus = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or surplus:
        raise ValueError(f'{folder}: not the tensors of an XLM-R with the sizes of its config.json. '
                         f'Missing: {few(missing)}. Not expected: {few(surplus)}')
    return {**sizes, 'mlm_head': mlm_head}, {ours: state[theirs] for ours, theirs in names.items()}


def write_encoder(folder, config, state, sentencepiece):
    """Writes tensors by our names and the sizes of a model.SWCMConfig as a folder that transformers reads too."""
    names = huggingface_names(config['n_layer'], config['mlm_head'])
    write_model(folder, {names[name]: t.contiguous() for name, t in state.items()}, sentencepiece, {
        'model_type': 'xlm-roberta', 'architectures': ['XLMRobertaForMaskedLM'],
        **{theirs: config[ours] for ours, theirs in SIZES.items()}, 'hidden_act': 'gelu',
        'hidden_dropout_prob': config['dropout'], 'attention_probs_dropout_prob': config['dropout'],
        'type_vocab_size': 1, 'bos_token_id': BOS, 'pad_token_id': PAD, 'eos_token_id': EOS,
        'tie_word_embeddings': True})


def read_tensors(folder):
    """Tensors by name, from model.safetensors or else pytorch_model.bin, which is read without running its code."""
    path = folder / 'model.safetensors'
    try:
        if path.exists():
            return load_file(path)
        path = folder / 'pytorch_model.bin'
        if path.exists():
            return torch.load(path, map_location='cpu', weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, UnpicklingError) as e:
        raise ValueError(f'{path} is damaged or no weight file ({str(e).splitlines()[0]}); copy or download it again')
    raise FileNotFoundError(f'{folder} has neither model.safetensors nor pytorch_model.bin')


def read_json(path):
    try:
        return json.loads(read_file(path))
    except ValueError as e:
        raise ValueError(f'{path} is not JSON: {e}')


def read_file(path):
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder {path.parent} does not exist')
    if (path.parent / 'best').is_dir():
        raise FileNotFoundError(f'{path.parent} is the folder of a run; its model is {path.parent / "best"}')
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; an encoder or checkpoint folder needs it')
    return path.read_bytes()


def write_model(folder, state, sentencepiece, config):
    """Writes a model's folder: all of it, or on an error, which is an OSError, nothing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:                        # the files take their places only when all are written
        stack.callback(lambda: any(folder.iterdir()) or folder.rmdir())
        new = [stack.enter_context(replacing(folder / name)) for name in ('model.safetensors', 'config.json')]
        write_tensors(new[0], state, {'format': 'pt'})
        new[1].write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        if sentencepiece is not None:
            stack.enter_context(replacing(folder / SENTENCEPIECE)).write_bytes(sentencepiece)


def write_tensors(path, tensors, metadata):
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as e:
        raise OSError(f'{path} cannot be written: {e}') from e


@contextmanager
def replacing(path):
    """Gives a temporary path beside `path`; what was written there takes its place at once, or not at all."""
    temporary = path.with_name(path.name + '.tmp')
    try:
        temporary.touch()
        mode = temporary.stat().st_mode               # the user's; safetensors makes files that others cannot read
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def few(names):
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '') if names else 'none'
