"""Words of structure names: folding, splitting, sides, and words that say nothing about the anatomy."""

import re
import unicodedata

LEFT, RIGHT = "L", "R"


def word_set(words: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(words.split())


STRONG_SIDES = {
    LEFT: "left lt lft links linke linker linkes linken li lks izquierdo izquierda izq izqda izqdo gauche "
    "gche gau sinistra sinistro sin sx sinister sinistri lfet letf esq",
    RIGHT: "right rt rgt rechts rechte rechter rechtes rechten re rts derecho derecha der dch dcha dcho dda "
    "droit droite drt dte destra destro dx dex dext dexter rigth rihgt rght",
}
LETTER_SIDES = {"l": LEFT, "r": RIGHT}
ROMANCE_SIDES = {"g": LEFT, "d": RIGHT}
"""French gauche and droite; D is right in Spanish and Italian as well."""
WEAK_SIDES = {"i": LEFT, "s": LEFT}
"""Spanish izquierdo, Italian sinistro; also inferior and superior, so never sure."""

SIDE_OF = {word: side for side, words in STRONG_SIDES.items() for word in words.split()}
BOTH = word_set(
    """
    both bilat bilateral beide bds bilateraux bilaterales l+r
    """
)

STOP_WORDS = word_set(
    """
    of the de del della dell du des d' der die das la le el il les los las von van het y e et und and
    """
) - {"der"}
NOISE = word_set(
    """
    z zz zzz x xx oar oars roi rois struct structure organ organe vol volume contour kontur final finale
    fin new neu nouveau nuevo old alt copy kopie edit edited edt sp ps sld sjj auto ai dlc mbs atlas
    limbus mim rs ct mr mri mrt planning plan approved ok check checked manual manuell total all whole
    gland galnd glnd gl glandula glande ghiandola organ risk risiko hn hnc h&n thorax abdomen abd gyn
    cns orl hno sbrt srs vmat imrt a_ tps eclipse raystation pinnacle obj std ref v b ts cf
    """
)
HELPERS = word_set(
    """
    ring rings avoid aviod avoidance opt opti optim block shell buffer inner outer dummy help helper
    hilf hilfs hilfe hilfsstruktur isodose iso isodosis dose minus ohne sans without outside crop
    cropped clipped artefact artifact artefacts artifacts filling fillings density override air hotspot
    hot cold spot wall overlap uber margin in teaching marker seed seeds icru point pt norm expand
    evaldose push
    """
)


def fold(text: str) -> str:
    """Lower case without accents, umlauts and ligatures: ``"Hüftkopf"`` and ``"Hueftkopf"`` become one."""
    for letter, plain in (("ß", "ss"), ("œ", "oe"), ("Œ", "OE"), ("æ", "ae"), ("ø", "oe")):
        text = text.replace(letter, plain)
    plain_text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"([aou])e", r"\1", plain_text.lower())


def split_words(text: str) -> list[str]:
    """Folded words: split at separators, between letters and digits, at humps (``ParotidL``)."""
    text = re.sub(r"(?<=[a-zà-ÿ])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-zà-ÿ]{2})", " ", text)
    text = re.sub(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", text)
    return [word for word in re.split(r"[^a-z0-9]+", fold(text)) if word]
