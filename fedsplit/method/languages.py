"""Families of languages: which clients have enough in common to share an adapter, known before any of them trains.

Codes are those of ISO 639 (two letters or three), also with a script or a region behind: ``de``, ``deu``, ``deu_Latn``,
``de-AT``. The families are those of FedLFC's idea, genera rather than phyla: Germanic and Slavic apart, although both
are Indo-European.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {
    "germanic": "en eng de deu nl nld sv swe da dan no nor nb nob nn nno is isl af afr lb ltz yi ydd fo fao",
    "romance": "fr fra es spa pt por it ita ro ron ca cat gl glg oc oci ast sc srd scn fur",
    "slavic": "ru rus uk ukr bg bul pl pol cs ces sk slk sl slv hr hrv sr srp bs bos mk mkd be bel",
    "baltic": "lt lit lv lav lvs ltg",
    "celtic": "ga gle cy cym gd gla br bre",
    "turkic": "tr tur az aze azj azb uz uzb uzn kk kaz ky kir tk tuk tt tat ug uig ba bak crh",
    "indo-aryan": "hi hin mr mar bn ben ur urd gu guj pa pan or ory ne npi as asm sd snd si sin bho mai mag",
    "iranian": "fa pes prs tg tgk ps pbt ku kmr ckb",
    "dravidian": "ta tam te tel kn kan ml mal",
    "bantu": "sw swh zu zul xh xho rw kin rn run sn sna ny nya st sot tn tsn ts tso ss ssw lg lug ln lin ki kik bem",
    "austronesian": "id ind ms zsm jv jav tl tgl su sun mg plt mi mri sm smo fj fij ceb ilo war pag min ace ban",
    "uralic": "fi fin et est ekk hu hun",
    "semitic": "ar arb ary arz apc ajp ars acm aeb he heb am amh ti tir mt mlt",
    "east-asian": "zh zho cmn yue ja jpn ko kor",
}
"""Codes by family. Chinese, Japanese and Korean are no family; they share writing and words, and are put together as
multilingual benchmarks do."""

_FAMILY = {code: family for family, codes in FAMILIES.items() for code in codes.split()}


def family_of(tag: str) -> str:
    """The family of a language's code; of a family's own name, itself; empty where neither is known."""
    plain = tag.strip().lower()
    return plain if plain in FAMILIES else _FAMILY.get(re.split(r"[_-]", plain)[0], "")
