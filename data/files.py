"""Files of a model: read without running their code, and written so that each is whole at any time."""
import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SENTENCEPIECE = 'sentencepiece.bpe.model'             # the name that the XLM-R family uses


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
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; an encoder or checkpoint folder needs it')
    return path.read_bytes()


def write_model(folder, state, sentencepiece, config):
    """Writes a model's folder: all of it, or on an error, which is an OSError, nothing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:                        # the files take their places only when all are written
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
