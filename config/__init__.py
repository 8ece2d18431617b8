"""Settings: defaults here, then a config file, then --key=value on the command line.

A config file is Python with one assignment a line. It is executed: run only files that you trust.
"""
import ast
import ctypes
import difflib
import inspect
import os
import platform
import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Run:
    """What every training run has."""
    # the model above the encoder
    share: str = 'copy'              # decoder weights: copy (of the encoder's) | none | tie | alternate
    insert_every: int = 0            # a new layer after every so many custom layers (the paper's: 3); 0: none
    inserted: str = 'random'         # weights of the new layers: random | duplicate | quiet
    head: str = 'tied'               # output projection: tied (to the embeddings) | untied
    dropout: float = 0.1             # in encoder and decoder
    # batches
    batch_tokens: int = 4096         # source + target tokens of a micro-batch, on average, before padding
    accumulate: int = 1              # micro-batches of an optimizer step, over all processes
    alpha: float = 0.3               # languages are drawn with p ~ examples^alpha
    # optimisation
    max_steps: int = 500             # optimizer steps
    lr: float = 1e-3                 # peak learning rate of AdamW
    warmup: float = 0.1              # share of the steps in which the rate rises; then it falls to 0, linearly
    weight_decay: float = 0.01       # on matrices only
    beta1: float = 0.9               # AdamW
    beta2: float = 0.98              # AdamW; XLM-R's
    grad_clip: float = 1.0           # largest norm of the gradient
    seed: int = 1                    # of weights, data order, noise and dropout
    # the run
    out_dir: str = 'out/tibetan'     # gets last/, best/ and log.jsonl
    eval_interval: int = 100         # steps between evaluations; the best checkpoint is kept
    test_dataset: str = ''           # another corpus of pairs to translate, such as ntrex
    test_from: str = ''              # where it lies
    save_interval: int = 100         # steps between writes of last/
    resume: bool = True              # go on from out_dir/last if it is there; False: start over
    device: str = 'auto'             # auto | cpu | cuda | cuda:1 | mps
    dtype: str = 'auto'              # auto (bfloat16 on CUDA that has it, else float32) | float32 | bfloat16
    compile: bool = False            # torch.compile; for CUDA
    deterministic: bool = False      # on CUDA: operations that give the same bits each time; slower
    workers: int = 0                 # processes that prepare batches; 0: the training process itself


@dataclass
class Train(Run):
    # what to learn, from what
    objective: str = 'swcm'          # swcm: denoising and translation; mlm: the masked tokens of an encoder
    dataset: str = 'udhr'            # a corpus: data/NAME/prepare.py reads it
    data_from: str = ''              # where the corpus lies, for datasets that cannot fetch themselves
    languages: tuple = ('bo', 'ug', 'kk', 'mn', 'zh')  # what the model reads and writes
    encoder: str = 'data/nano'       # an XLM-R family folder; '': from scratch
    # an encoder from scratch (objective mlm, encoder '')
    vocab_size: int = 3000           # SentencePiece pieces, trained on the corpus
    character_coverage: float = 1.0  # share of the text whose characters must be in it
    n_layer: int = 4                 # layers
    n_head: int = 4                  # attention heads
    n_embd: int = 128                # channels
    n_ffn: int = 512                 # channels inside the FFN
    # examples
    block_size: int = 256            # longest sequence in tokens, with <s> <lang> </s>
    mt_fraction: float = 0.5            # share of examples that are translation; the rest is denoising
    val_fraction: float = 0.1        # documents held out
    mask_ratio: float = 0.35         # denoising: share of tokens that go
    span_length: float = 3.5         # denoising: mean of the Poisson length of spans
    permute_sentences: bool = True   # denoising: put sentences into a random order
    mlm_ratio: float = 0.15          # mlm: share of tokens to predict
    # evaluation
    eval_segments: int = 100         # held-out segments per task and language
    eval_translations: int = 0       # held-out pairs per direction that are translated at the end, for chrF++


@dataclass
class FineTune(Run):
    # what to learn, from what
    task: str = 'translate'          # translate | summarise | answer: says which score is the task's
    data: str = ''                   # files of examples, separated by commas
    learn: tuple = ('zh-bo',)        # source-target languages; bo alone is bo-bo
    transfer: tuple = ()             # further ones, of which only `shots` examples are learned
    shots: int = 50                  # 0: none, they are only tested; those held out to choose the best come besides
    checkpoint: str = ''             # a model that train.py wrote; '': made from the encoder
    encoder: str = 'data/nano'       # an XLM-R family folder
    max_source_len: int = 256        # tokens, with <s> <lang> </s>; longer sources are cut
    max_target_len: int = 128        # tokens; examples with longer targets are left out
    val_fraction: float = 0.01       # examples held out to choose the best checkpoint; 0: chosen on those learned
    test_fraction: float = 0.01      # examples held out for the scores
    test: str = ''                   # further files of examples, all for the scores
    # evaluation
    out_dir: str = 'out/translate'   # gets last/, best/ with metrics.json and predictions.jsonl, and log.jsonl
    eval_examples: int = 100         # examples per direction on which the best checkpoint is chosen
    test_examples: int = 0           # examples per direction that are scored in the end; 0: all
    eval_only: bool = False          # score the best checkpoint of out_dir or, where there is none, `checkpoint`
    beams: int = 4                   # beam search; 1: greedy
    length_penalty: float = 1.0      # a score is divided by length ** this
    no_repeat_ngram: int = 0         # no sequence of so many tokens twice; 0: may
    force_script: tuple = ()         # scripts that outputs may have letters of, as bo:TIBETAN; '': any


def load(cls, argv):
    return cls(**parse(cls, argv))


def parse(cls, argv):
    """{key: value} of what argv gives: [FILE.py] [--key=value ...]; --key value works too.

    Raises ValueError for an unknown or mistyped key and FileNotFoundError for a missing file. --help prints every
    key, with the file's values, and exits.
    """
    values, rest = {}, list(argv)
    if rest and not rest[0].startswith('-'):
        values.update(read_config(cls, rest.pop(0)))
    if '--help' in argv or '-h' in argv:
        print(help_text(cls, values))
        sys.exit()
    while rest:
        arg = rest.pop(0)
        if not arg.startswith('--'):
            raise ValueError(f'{arg!r}: one config file comes first, then --key=value')
        key, equals, text = arg[2:].partition('=')
        field = check_key(cls, key, f'--{key}')
        flag = field.type is bool and (not rest or rest[0] not in ('True', 'False'))
        if not equals and not rest and not flag:
            raise ValueError(f'--{key}: write --{key}=VALUE')
        values[key] = convert(field, text if equals else 'True' if flag else rest.pop(0), f'--{key}')
    for key, value in values.items():
        check_range(key, value)
    return values


def find(path):
    """The path or, where nothing is there, the same one in the repository, as for data/nano and config/."""
    return path if Path(path).exists() or not (ROOT / path).exists() else str(ROOT / path)


def read_config(cls, path):
    """The assignments of a config file, checked against the fields of cls."""
    path = find(path)
    if not Path(path).is_file():
        known = sorted(f'config/{p.name}' for p in (ROOT / 'config').glob('*.py') if p.stem != '__init__')
        raise FileNotFoundError(f'config file {path} does not exist; there are {", ".join(known)}')
    values = {}
    try:
        exec(compile(Path(path).read_text(encoding='utf-8'), path, 'exec'), {}, values)
    except Exception as e:
        raise ValueError(f'{path}: {type(e).__name__}: {e}') from e
    return {key: convert(check_key(cls, key, f'{path}: {key}'), value, f'{path}: {key}')
            for key, value in values.items() if not key.startswith('_')}


def check_key(cls, key, where):
    known = {f.name: f for f in fields(cls)}
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f'did you mean {near[0]}?' if near else '--help lists them all'
        raise ValueError(f'{where}: unknown key; {hint}')
    return known[key]


# Numbers have to be positive, but for these
MAY_BE_ZERO = {'insert_every', 'eval_translations', 'test_examples', 'shots', 'workers', 'seed', 'no_repeat_ngram',
               'top_k', 'temperature', 'gather', 'max_new_tokens', 'length_penalty', 'dropout', 'mt_fraction', 'alpha',
               'val_fraction', 'test_fraction', 'mask_ratio', 'warmup', 'weight_decay', 'beta1', 'beta2'}
# ... and these at most 1
SHARES = {'dropout', 'mt_fraction', 'alpha', 'val_fraction', 'test_fraction', 'mask_ratio', 'mlm_ratio', 'warmup', 'beta1',
          'beta2', 'top_p', 'character_coverage'}


def check_range(key, value):
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        most = 1 if key in SHARES else 2**32 - 1 if key == 'seed' else 10**15
        if value < 0 or value == 0 and key not in MAY_BE_ZERO or not value <= most:                   # nan, too
            least = 'of at least' if key in MAY_BE_ZERO else 'above'
            raise ValueError(f'{key}={shorten(str(value))}: give a number {least} 0 and at most {most}')
    if key in ('languages', 'learn', 'out_dir') and not value:
        raise ValueError(f'{key} is empty')
    if key == 'span_length' and value < 1:
        raise ValueError(f'{key}={value}: give at least 1 token')
    if key in ('block_size', 'max_source_len', 'max_target_len') and value < 8:
        raise ValueError(f'{key}={value}: give at least 8 tokens, of which <s> <lang> </s> are three')


def convert(field, value, where):
    """A value, or its text from the command line, as the type of its field."""
    if isinstance(value, str) and not is_text(value):
        raise ValueError(f'{where}={ascii(value)}: it is not UTF-8')
    try:
        if field.type is str and isinstance(value, str):
            return value
        if field.type is tuple:
            value = tuple(value.replace(',', ' ').split() if isinstance(value, str) else value)
            if all(isinstance(item, str) for item in value):
                return value
        if isinstance(value, str):
            value = ast.literal_eval(value)
        if field.type is float and type(value) is int:
            value = float(value)
        if type(value) is field.type:
            return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise ValueError(f'{where}={shorten(repr(value))}: the value must be {KINDS[field.type]}')


def is_text(value):
    """Whether a str is whole characters: no halves, which stand for bytes that are not UTF-8, or come from JSON."""
    return not any('\ud800' <= c <= '\udfff' for c in value)


def shorten(text, length=60):
    return text if len(text) <= length else text[:length] + ' ...'


def of_dict(cls, settings, where):
    """The settings of a run that has written them as JSON. Raises ValueError, which names `where`, for others."""
    values = {key: convert(check_key(cls, key, f'{where}: {key}'), value, f'{where}: {key}')
              for key, value in settings.items()}
    for key, value in values.items():
        check_range(key, value)
    return cls(**values)


KINDS = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a text', tuple: 'a list like bo,zh'}


def find_device(device, dtype):
    """The torch device and dtype for the settings' words; `auto` takes the fastest there is."""
    import torch  # late, so that --help and a wrong key answer at once

    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if device == 'cuda' and 'LOCAL_RANK' in os.environ:
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
    if dtype == 'auto':
        fast = device.startswith('cuda') and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if fast else 'float32'
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f'dtype={dtype!r}: choose auto, float32 or bfloat16')
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f'device={device!r} is not there: {str(e).splitlines()[0]}') from e
    return torch.device(device), getattr(torch, dtype)


def help_text(cls, values):
    """Every key with its value, if there is one, or else its default, and the comment behind it in the class."""
    about = dict.fromkeys(inspect.getdoc(sys.modules[name]) or '' for name in ('__main__', cls.__module__))
    lines = ['\n\n'.join(about), '', f'usage: {Path(sys.argv[0]).name} [CONFIG.py] [--key=value ...]', '']
    shown, own = set(), [c for c in cls.__mro__ if '__dataclass_fields__' in vars(c)]
    for line in '\n'.join(map(inspect.getsource, own)).splitlines():
        code, _, comment = line.strip().partition('#')
        if ':' in code and '=' in code:
            name, default = code.split(':')[0], code.split('=', 1)[1].strip()
            if name in shown:                         # a default of Run that cls replaces
                continue
            shown.add(name)
            value = values.get(name, ast.literal_eval(default))
            if isinstance(value, tuple):              # as it is written on the command line
                value = ','.join(value)
            lines.append(f'  --{f"{name}={value!r}":38} {comment.strip()}')
        elif comment:
            lines.append(f'{comment.strip()}:')
    return '\n'.join(lines)


def keep_memory():
    """Has glibc keep what is freed, for the next step to use.

    Else the kernel takes large blocks back and fills new ones with zeros, in every training step: with
    XLM-R base's sizes that took about a quarter of its time on a CPU.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == 'glibc' else None
    if libc:
        libc.mallopt(-4, 0)                           # M_MMAP_MAX: no blocks of their own
        libc.mallopt(-1, -1)                          # M_TRIM_THRESHOLD: none


def start(cls):
    """Checks a script's command line before it imports torch, which takes seconds; Ctrl-C meanwhile ends it.

    An exception would not do: numpy's import loses it, or turns it into an ImportError.
    """
    run(lambda argv: parse(cls, argv))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:     # else `command &` ignores it
        signal.signal(signal.SIGINT, stop_at_once)


def stop_at_once(number, frame):
    os.write(2, b'stopped\n')
    os._exit(130)


def run(main):
    """Calls main(argv); a user's mistake or a failing disk becomes one line and exit 1."""
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):                 # None: closed
        # whatever the console's own is; names of files may have bytes that are no text
        stream.reconfigure(encoding='utf-8', errors='strict' if stream is sys.stdin else 'backslashreplace')
    keep_memory()
    try:
        if signal.getsignal(signal.SIGINT) is stop_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(sys.argv[1:])
        finally:
            print(end='', flush=True)                 # what is buffered, so that an error is met here
    except BrokenPipeError:                           # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as e:
        sys.exit(f'error: {e.filename}: {e.strerror}' if e.filename else f'error: {e}')
    except ValueError as e:
        sys.exit(f'error: {e}')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
