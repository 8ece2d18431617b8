"""The shape of the code: what imports what, lengths of lines and functions, links."""
import ast
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from conftest import ROOT

# What a file may import besides the standard library. The first pattern that fits counts.
SCRIPT = 'torch numpy tqdm safetensors model data config'
DATA = 'numpy sentencepiece data config.cli'
MAY_IMPORT = {
    'model.py': 'torch safetensors',
    'sample.py': SCRIPT,
    'train.py': f'{SCRIPT} sample',
    'finetune.py': f'{SCRIPT} sample train',
    'config/runtime.py': 'torch tqdm config',
    'config/cpu.py': 'torch',
    'config/cuda.py': 'torch',
    'config/*': 'config',
    'data/vocabulary.py': f'{DATA} torch model',
    'data/files.py': f'{DATA} safetensors',
    'data/hub.py': f'{DATA} tqdm',
    'data/small/distil.py': f'{SCRIPT} train',
    'data/*': DATA,
}


def tracked(pattern):
    """The paths under version control that fit the pattern."""
    listed = subprocess.run(['git', 'ls-files', pattern], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('this is no git checkout')
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def read(path):
    return (ROOT / path).read_text(encoding='utf-8')


def imported(path):
    """The modules that a file imports, wherever it does; those of `from a import b` as a.b."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_imports():
    wrong = []
    for path in tracked('*.py'):
        rules = [MAY_IMPORT[pattern] for pattern in MAY_IMPORT if fnmatch(path, pattern)]
        allowed = {*rules[0].split(), *sys.stdlib_module_names} if rules else ()
        wrong += [f'{path}: {name}' for name in imported(path) if rules
                  and not any(f'{name}.'.startswith(f'{module}.') for module in allowed)]
    assert not wrong


def test_lines_have_at_most_100_columns():
    assert not [f'{path}:{n}' for path in tracked('*.py')
                for n, line in enumerate(read(path).splitlines(), 1) if len(line) > 100]


def test_functions_have_at_most_60_lines():
    functions = [(path, node) for path in tracked('*.py') if not path.startswith('tests/')
                 for node in ast.walk(ast.parse(read(path))) if isinstance(node, ast.FunctionDef)]
    assert functions
    assert not [f'{path}: {node.name}' for path, node in functions
                if node.end_lineno - node.lineno >= 60]


def test_model_stands_alone(tmp_path):
    """model.py can be carried off in one file."""
    shutil.copy(ROOT / 'model.py', tmp_path)
    done = subprocess.run([sys.executable, '-c', 'import model'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    """Those in Markdown files to other files; and nothing names docs/, which is gone."""
    for path in tracked('*.md'):
        for target in re.findall(r'\]\(([^)#\s]+)', read(path)):
            is_local = not re.match(r'\w+:', target)
            assert not is_local or ((ROOT / path).parent / target).exists(), f'{path}: {target}'
    for path in tracked('*.md') + tracked('*.py'):
        names_docs = re.search(r'(?<![\w./-])docs/', read(path))
        assert path == 'tests/test_layout.py' or not names_docs, f'{path} names docs/'


def end_of(path, name):
    """The last line of a class or function, such as SWCM.load."""
    node = ast.parse(read(path))
    for part in name.split('.'):
        node = next(child for child in node.body if getattr(child, 'name', '') == part)
    return node.end_lineno


def test_readme_has_the_counts_of_lines():
    """Of whole files or, where it says "to `NAME`", up to there; and their sum, at most 1,500."""
    row = re.compile(r'^\| \[(.*?)\].* \| (\d+) \| (?:to `(.*?)`)?', re.MULTILINE)
    rows = row.findall(read('README.md'))
    assert len(rows) == 8
    for path, n, name in rows:
        assert int(n) == (end_of(path, name) if name else len(read(path).split('\n')) - 1), path
    total = sum(int(n) for _, n, _ in rows)
    assert f'in {total:,} lines' in read('README.md') and total <= 1500
