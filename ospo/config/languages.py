"""Languages of data sets: what search does with words differs between them, and is said here once.

``data.NAME.language`` names one by its ISO 639-1 code.
"""

from dataclasses import dataclass
from typing import Literal

LanguageCode = Literal[
    "en", "da", "de", "es", "fr", "it", "ja", "ko", "nl", "no", "pt", "ru", "sv", "tr", "zh",
    "other",
]  # fmt: skip
MULTILINGUAL_MINILM = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""The dense encoder of languages other than English: MiniLM's size and width, 50 languages."""


@dataclass(frozen=True)
class Language:
    """How texts of a language are read.

    - ``snowball``: Snowball's stemmer, which also names the stop words of bm25s and tantivy; "" for
      a language without one.
    - ``bigrams``: its words are not told apart by spaces alone; retrievers read pairs of characters
      in its script.
    - ``head``: where the head noun of a product's title stands among the words before the first
      separator.
    - ``separators``: words that end that part (English has a pattern of its own), ``skipped``:
      words for whom a product is or how many it holds, which are never the head noun.
    """

    name: str
    snowball: str = ""
    bigrams: bool = False
    head: Literal["first", "last"] = "last"
    separators: str = ""
    skipped: str = ""


_ENGLISH = "for with by in from of and that"
LANGUAGES: dict[str, Language] = {
    "en": Language("English", "english"),
    "da": Language(
        "Danish", "danish", separators="til med af i fra og uden på", skipped="dame herre børn"
    ),
    "de": Language(
        "German",
        "german",
        separators="für mit aus von in im und zum zur ohne auf bei",
        skipped="damen herren kinder jungen mädchen baby unisex stück set",
    ),
    "es": Language(
        "Spanish",
        "spanish",
        head="first",
        separators="para con de del en y sin por a al",
        skipped="pack juego set lote par kit piezas pcs mujer hombre niño niña niños unisex el la "
        "los las un una",
    ),
    "fr": Language(
        "French",
        "french",
        head="first",
        separators="pour avec de du des en et sans à au aux par",
        skipped="lot pack paire set kit pièces femme homme enfant le la les un une",
    ),
    "it": Language(
        "Italian",
        "italian",
        head="first",
        separators="per con di del della da in e senza a al",
        skipped="set paio confezione kit pacco pezzi donna uomo bambino il lo la i gli le un una",
    ),
    "ja": Language(
        "Japanese",
        bigrams=True,
        skipped="メンズ レディース キッズ セット 男女兼用 用 付き 本体 ブラック "
        "ホワイト ピンク ブルー",
    ),
    "ko": Language("Korean", bigrams=True, skipped="남성 여성 아동 세트"),
    "nl": Language(
        "Dutch",
        "dutch",
        separators="voor met van uit in en zonder op",
        skipped="dames heren kinderen unisex set stuks",
    ),
    "no": Language(
        "Norwegian", "norwegian", separators="til med av i fra og uten på", skipped="dame herre"
    ),
    "pt": Language(
        "Portuguese",
        "portuguese",
        head="first",
        separators="para com de do da em e sem por",
        skipped="kit conjunto pack par jogo peças feminino masculino o a os as um uma",
    ),
    "ru": Language(
        "Russian",
        "russian",
        separators="для с со из в и без на от",
        skipped="женский мужской женская мужская комплект набор",
    ),
    "sv": Language(
        "Swedish", "swedish", separators="till för med av i från och utan på", skipped="dam herr"
    ),
    "tr": Language("Turkish", "turkish", separators="için ile ve", skipped="kadın erkek çocuk"),
    "zh": Language("Chinese", bigrams=True, skipped="男 女 男士 女士 儿童"),
    "other": Language("another language", separators=_ENGLISH),
}
OF_LOCALE: dict[str, LanguageCode] = {"us": "en", "es": "es", "jp": "ja"}
"""Locale of ESCI → the language of its texts."""
