"""Texts that break tokenizers."""

import sys
import unicodedata

from hypothesis import strategies as st

PLAIN = [
    "a photo of a cat.",
    "A Photo of TWO dogs, isn't it?",
    "it's they'll don't I'M we'd you've we're",
    "12345 items at $9.99 (50% off!)",
    "a_low-resolution/photo #hashtag @user x@y.org https://example.org/?q=1",
    "the " * 100 + "end",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "...!!!???",
    "!",
    "!@",
]
"""Printable ASCII, which every convention cleans alike."""

NASTY = [
    *PLAIN,
    "",
    " ",
    " \t\r\n \u3000\u00a0 a \u2028 b \x0b\x0c\x1c c\x85d ",
    "&amp;amp; &lt;b&gt; &#39;x&#39; &nbsp;&copy; &unknown; &",
    "<b>bold &amp; ugly</b> &eacute;",
    "schÃ¶n, itâ€™s broken — l’Ã©tÃ©",
    "\x1b[31mred\x1b[0m \x00 \x07 \x7f",
    "“quoted” ‘single’ … ﬁne ﬆ",
    "e\u0301 é ñ n\u0303 ą̊",
    "İstanbul ΟΔΟΣ Σίσυφος straße ẞ",
    "'ſ 'S 'ʼs don’t",
    "🐈‍⬛ 👩‍👩‍👧‍👦 🇫🇷 ☃️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "中文字幕 日本語のキャプション 한국어 ไทย हिन्दी العربية עברית",
    "١٢٣ Ⅷ ½ ² ①",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "</w> a</w>b <|endoftext|> <pad> [SEP] \ufffd \ufeffbom",
    "\u200bzero\u200dwidth\u00adsoft",
    "x" * 3000,
    "ab" * 700 + " " + "é" * 500,
    "\U0010ffff \ue000",
]

_ASSIGNED = "".join(
    c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs")
)
assigned = st.text(st.one_of(st.characters(codec="ascii"), st.sampled_from(_ASSIGNED)), max_size=60)
"""Strings of characters that every library's Unicode tables know."""


def known(text: str) -> bool:
    """Whether every library's Unicode tables know all of ``text``; what mends encodings can turn known into unknown."""
    return all(c.isascii() or unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs") for c in text)


anything = st.text(st.characters(), max_size=60) | st.text(st.characters(categories=["Cs", "Ll"]), max_size=8)
"""Every string Python can make, lone surrogates included."""
