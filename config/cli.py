"""The command line: [CONFIG.py] [--key=value ...] into the settings of config/__init__.py.

A config file is Python, one assignment per line. It is executed: run only files that you trust.
"""
import ast
import difflib
import inspect
import os
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a string',
         tuple: 'a list like bo,zh'}


def load(cls, argv):
    return cls(**parse(cls, argv))


def parse(cls, argv):
    """{key: value} from argv. --help prints every key with its value, and exits.

    Raises ValueError for a wrong key or value, and FileNotFoundError for a missing file."""
    values, rest = {}, list(argv)
    if rest and not rest[0].startswith('-'):
        values.update(read_config(cls, rest.pop(0)))
    if '--help' in rest or '-h' in rest:
        print(help_text(cls, values))
        sys.exit()
    for arg in rest:
        name, equals, text = arg.removeprefix('--').partition('=')
        if not arg.startswith('--') or not equals:
            raise ValueError(f'{arg!r}: expected a config file, if any, then --key=value ...')
        values[name] = convert(cls, name, text, '--')
    return values


def read_config(cls, path):
    """The assignments of a config file, as {key: value}."""
    path = find(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f'config file {path} does not exist; see config/')
    values = {}
    try:
        exec(compile(Path(path).read_text(encoding='utf-8'), path, 'exec'), {}, values)
    except Exception as e:
        raise ValueError(f'{path}: {type(e).__name__}: {e}') from e
    return from_dict(cls, values, path)


def from_dict(cls, values, where):
    """{key: value}, checked and converted to the key's type. Raises ValueError with `where`."""
    return {name: convert(cls, name, value, f'{where}: ') for name, value in values.items()}


def find(path):
    """The path or, if it does not exist, the same path in the repository, as for data/nano."""
    return path if Path(path).exists() or not (ROOT / path).exists() else str(ROOT / path)


def convert(cls, name, value, where):
    """A value, or its text on the command line, as the type of its key and within its range."""
    known, wanted = {f.name: f for f in fields(cls)}, value
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f'did you mean {near[0]}?' if near else '--help lists them all'
        raise ValueError(f'{where}{name}: unknown key; {hint}')
    kind, limits = known[name].type, known[name].metadata
    if isinstance(value, str) and kind is tuple:
        value = tuple(value.replace(',', ' ').split())
    elif isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval(value)
        except Exception:                               # also TypeError, as of {[]}
            pass                                        # the next check says what is wrong
    allowed = {float: (float, int), tuple: (tuple, list)}.get(kind, (kind,))
    if type(value) not in allowed or kind is tuple and not all(type(x) is str for x in value):
        raise ValueError(f'{where}{name}={wanted!r}: expected {KINDS[kind]}')
    if not value and name in ('out_dir', 'encoder', 'languages'):
        raise ValueError(f'{where}{name} is empty')
    if kind in (int, float) and not limits['low'] <= value <= limits['high']:   # also nan
        bound = f'most {limits["high"]}' if value > limits['high'] else f'least {limits["low"]}'
        raise ValueError(f'{where}{name}={wanted}: expected a number of at {bound}')
    return kind(value)


def help_text(cls, values):
    """Every key with its meaning and its value, from the config file or else the default."""
    lines = [inspect.getdoc(sys.modules['__main__']) or '', '',
             f'usage: {Path(sys.argv[0]).name} [CONFIG.py] [--key=value ...]', '']
    for f in fields(cls):
        value = values.get(f.name, f.default)
        value = ','.join(value) if f.type is tuple else value
        lines.append(f'  --{f"{f.name}={value}":32} {f.metadata["help"]}')
    return '\n'.join(lines)


def run(main):
    """Calls main(argv); a user's mistake or a failing disk becomes one line and exit status 1."""
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):    # None: closed
        errors = 'strict' if stream is sys.stdin else 'backslashreplace'
        stream.reconfigure(encoding='utf-8', errors=errors)
    try:
        try:
            main(sys.argv[1:])
        finally:
            print(end='', flush=True)                   # so that a closed pipe is noticed here
    except BrokenPipeError:                             # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as e:
        sys.exit(f'error: {e.filename}: {e.strerror}' if e.filename else f'error: {e}')
    except ValueError as e:
        sys.exit(f'error: {e}')
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)
