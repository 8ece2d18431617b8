"""Languages: the scripts that they are written in, and the codes by which other people's files name them."""
import re
import unicodedata
from collections import Counter
from functools import cache

# Scripts as Unicode's names of letters begin. A language that is not here is not checked, but for BY_CHARACTER below.
SCRIPTS = {
    'bo': {'TIBETAN'}, 'dz': {'TIBETAN'}, 'en': {'LATIN'}, 'ja': {'CJK', 'HIRAGANA', 'KATAKANA'},
    'kk': {'CYRILLIC', 'ARABIC', 'LATIN'}, 'km': {'KHMER'}, 'ko': {'HANGUL', 'CJK'}, 'ky': {'CYRILLIC', 'ARABIC'},
    'lo': {'LAO'}, 'mn': {'CYRILLIC', 'MONGOLIAN'}, 'my': {'MYANMAR'}, 'ru': {'CYRILLIC'}, 'th': {'THAI'},
    'ug': {'ARABIC', 'CYRILLIC'}, 'yue': {'CJK'}, 'lzh': {'CJK'}, 'zh': {'CJK'}}
BY_CHARACTER = 'zh', 'ja', 'th', 'lo', 'km', 'my'     # written without spaces, and without marks between syllables
# ISO 639-2 and -3, as FLORES-200 (zho_Hans), OPUS and others have it
CODES = {'bod': 'bo', 'tib': 'bo', 'uig': 'ug', 'kaz': 'kk', 'mon': 'mn', 'khk': 'mn', 'mvf': 'mn', 'zho': 'zh',
         'chi': 'zh', 'cmn': 'zh', 'eng': 'en'}
CHINESE = '\u3400-\u9fff\uf900-\ufaff。”’》」』】）'      # characters, and what closes something said in them
FULL_WIDTH = str.maketrans(',!?:;', '，！？：；')
ENOUGH = 0.1                                          # share of letters in a language's scripts: texts quote others


def language_code(name):
    """Our code of a language that others call by `name`: zh of zh-CN, zh_CN, zho_Hans; other names in lower case."""
    match = re.fullmatch('([A-Za-z]{2,3})([-_]([A-Z]{2}|[A-Z][a-z]{3}))*', name)
    code = (match[1] if match else name).lower()
    return CODES.get(code, code)


def full_width(text):
    """Chinese as it is printed: ，！？：；（） with Chinese characters, where nmt_nfkc has left ,!?:;()."""
    inner = fr'(?<=[{CHINESE}])\(([^()]*)\)|\(([^()]*[{CHINESE}][^()]*)\)'
    while (wide := re.sub(inner, r'（\1\2）', text)) != text:                # from the innermost
        text = wide
    return re.sub(f'(?<=[{CHINESE}])[,!?:;]+', lambda marks: marks[0].translate(FULL_WIDTH), text)


@cache
def script(character):
    """The script of a letter or its marks as Unicode's names begin, TIBETAN, CJK, CYRILLIC; None for all else."""
    if unicodedata.category(character)[0] not in 'LM':
        return None
    name = unicodedata.name(character, '').split(' ')[0]
    return None if name in ('', 'COMBINING', 'MODIFIER', 'VARIATION', 'FULLWIDTH', 'HALFWIDTH') else name


def main_script(text):
    """The script of most of a text's letters, or None where it has none."""
    found = Counter(filter(None, map(script, text)))
    return found.most_common(1)[0][0] if found else None


def wrong_script(text, language):
    """The main script of a text where it is not one of the language's, which have less than ENOUGH of its letters.

    None where it may be. Of a language that is not in SCRIPTS, those of BY_CHARACTER are wrong.
    """
    found = Counter(filter(None, map(script, text)))
    if language in SCRIPTS:
        right = sum(found[name] for name in SCRIPTS[language])
    else:
        right = found.total() - sum(found[name] for name in set().union(*map(SCRIPTS.get, BY_CHARACTER)))
    return max(found, key=found.get) if right < ENOUGH * found.total() else None


def check_script(texts, language, where):
    """Raises ValueError, which begins with `where`, for texts in the script of another language.

    Not for Latin: any language may be transcribed, or quote so much of it.
    """
    if (found := wrong_script(''.join(texts), language)) not in (None, 'LATIN'):
        raise ValueError(f'{where}: {texts[0][:40]!r} and others are in {found}, and {language} is written in '
                         f'{scripts_of(language)}; mend the order of the columns, or the language that a name says')


def scripts_of(language):
    """The scripts of a language as text for a message."""
    return ' or '.join(sorted(SCRIPTS[language])) if language in SCRIPTS else f'none of those of {" ".join(BY_CHARACTER)}'
