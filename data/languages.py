"""Languages: the scripts that they are written in."""
import re
import unicodedata
from collections import Counter
from functools import cache

# Scripts, by the first word of Unicode's letter names
SCRIPTS = {
    'am': {'ETHIOPIC'}, 'bo': {'TIBETAN'}, 'dz': {'TIBETAN'}, 'en': {'LATIN'},
    'ja': {'CJK', 'HIRAGANA', 'KATAKANA'}, 'kk': {'CYRILLIC', 'ARABIC', 'LATIN'}, 'km': {'KHMER'},
    'ko': {'HANGUL', 'CJK'}, 'lo': {'LAO'}, 'mn': {'CYRILLIC', 'MONGOLIAN'}, 'my': {'MYANMAR'},
    'ru': {'CYRILLIC'}, 'si': {'SINHALA'}, 'ta': {'TAMIL'}, 'th': {'THAI'}, 'ti': {'ETHIOPIC'},
    'ug': {'ARABIC', 'CYRILLIC'}, 'zh': {'CJK'}}
# Written without spaces, and without marks between syllables
BY_CHARACTER = 'zh', 'ja', 'th', 'lo', 'km', 'my'
SIGNS = ''.join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == 'M')
# A character with the signs on it and, in Khmer and Burmese, those stacked below it
CHARACTER = re.compile(f'\\S(?:[{SIGNS}]|(?<=[\u17d2\u1039])\\S)*')
MIN_FRACTION = 0.1                    # of letters in the language's scripts: texts quote others


@cache
def script(character):
    """A letter's script, the first word of its Unicode name, such as TIBETAN; None for all else."""
    if unicodedata.category(character)[0] not in 'LM':
        return None
    name = unicodedata.name(character, '').split(' ')[0]
    no_script = '', 'COMBINING', 'MODIFIER', 'VARIATION', 'FULLWIDTH', 'HALFWIDTH'
    name = {'KATAKANA-HIRAGANA': 'KATAKANA', 'IDEOGRAPHIC': 'CJK'}.get(name, name)      # ー 々
    return None if name in no_script else name


def main_script(text):
    """The script of most of a text's letters, or None where it has none."""
    found = Counter(filter(None, map(script, text)))
    return max(found, key=found.get, default=None)


def wrong_script(text, language):
    """The main script of a text with too few letters in its language's; None if not in SCRIPTS."""
    found = Counter(filter(None, map(script, text)))
    n_right = sum(found[name] for name in SCRIPTS.get(language, found))
    return main_script(text) if n_right < MIN_FRACTION * found.total() else None


def ids_outside_scripts(tokenizer, scripts):
    """The ids of pieces with a letter of another script than these, named as in SCRIPTS.

    Raises ValueError for a script of which the vocabulary has no letter."""
    found = [{*map(script, piece)} - {None} for piece in tokenizer.pieces[:tokenizer.mask]]
    known = set().union(*found)
    if lacking := {*scripts} - known:
        raise ValueError(f'the vocabulary has no letters of {" ".join(sorted(lacking))}; it '
                         f'has {" ".join(sorted(known))}')
    return [i for i, names in enumerate(found) if not names <= {*scripts}]


def check_script(texts, language, where):
    """Raises ValueError for texts in another script, except Latin transcriptions."""
    found = wrong_script(''.join(texts), language)
    if found not in (None, 'LATIN'):
        known = ' or '.join(sorted(SCRIPTS[language]))
        raise ValueError(f'{where}: {texts[0][:40]!r} and others are in {found}, and {language} is '
                         f'written in {known}; correct the order of the columns, or the name')
