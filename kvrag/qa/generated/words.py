"""Words of the training domains; the evaluation sets have their own, and share no name with these."""

from kvrag.qa.generated.drafting import Grammar

__all__ = ["WORDS"]

WORDS: Grammar = {
    "person": ("{first} {surname}",),
    "first": (
        *("Ada", "Bela", "Carlo", "Dina", "Emil", "Farah", "Gita", "Hugo", "Ines", "Jonas", "Karim", "Lena"),
        *("Mina", "Nils", "Olga", "Pavel", "Rosa", "Samir", "Tara", "Uwe", "Vera", "Wanda", "Yusuf", "Zoe"),
        *("Anton", "Bruno", "Chloe", "Dario", "Elif", "Felix", "Greta", "Hana", "Ivan", "Jana", "Kofi", "Luis"),
        *("Marta", "Nadia", "Oskar", "Petra", "Rafael", "Sofia", "Tomas", "Usha", "Viktor", "Wei", "Yara", "Zeno"),
    ),
    "surname": ("{surname_1}{surname_2}{surname_3}",),
    "surname_1": (
        *("Bran", "Cor", "Del", "Fen", "Gar", "Hol", "Jas", "Kel", "Lor", "Mar", "Nor", "Pel", "Quin", "Ros"),
        *("Sal", "Tor", "Ver", "Wes", "Yar", "Bel", "Cas", "Dor", "Fal", "Gil", "Har", "Kam", "Lan", "Mil"),
    ),
    "surname_2": ("a", "e", "i", "o", "an", "er", "in", "ow", "el", "os"),
    "surname_3": (
        *("by", "dal", "den", "field", "gate", "ham", "ler", "man", "mere", "ner", "rick", "sen", "son", "ster"),
        *("vale", "wick", "worth", "ski", "vic", "dez", "ton", "tta"),
    ),
    "place": ("{place_1}{place_2}", "{place_1}{place_2}", "{place_0} {place_1}{place_2}"),
    "place_0": ("Upper", "Lower", "New", "Old", "Port", "West", "East", "North", "South", "Great", "Little", "Mount"),
    "place_1": (
        *("Alder", "Amber", "Barrow", "Birch", "Black", "Bram", "Briar", "Caster", "Clay", "Cope", "Crane", "Dun"),
        *("Elm", "Fern", "Flint", "Glen", "Green", "Hazel", "Heron", "Iron", "Juniper", "Kings", "Lark", "Lime"),
        *("Maple", "Marsh", "Mill", "Oak", "Otter", "Pine", "Quarry", "Raven", "Reed", "Salt", "Stone", "Swan"),
        *("Thorn", "Vine", "Walnut", "Willow", "Winter", "Wolf", "Wren", "Yarrow"),
    ),
    "place_2": (
        *("bank", "borough", "bridge", "burgh", "bury", "cliff", "combe", "cross", "dale", "end", "fall", "ferry"),
        *("ford", "grove", "haven", "hill", "hurst", "lake", "ley", "market", "moor", "mouth", "pool", "ridge"),
        *("shore", "side", "stead", "stoke", "ville", "wall", "water", "wood"),
    ),
    "street": ("{place_1} {Street|Lane|Road|Avenue|Row|Square}", "{surname} {Street|Lane|Road|Way|Court}"),
    "brand": ("{brand_1}{brand_2}{brand_3}", "{brand_1}{brand_3}"),
    "brand_1": (
        *("Bre", "Cla", "Dro", "Fli", "Gra", "Kro", "Lu", "Me", "Nu", "Pra", "Qua", "Ri", "Sto", "Tre", "Vi", "Zo"),
        *("Ka", "Ply", "Sno", "Twi", "Gli", "Fro", "Chi", "Bo"),
    ),
    "brand_2": ("ba", "do", "fi", "ga", "la", "mi", "no", "pe", "ra", "si", "ta", "vo", "xi", "zu"),
    "brand_3": (
        *("bex", "cor", "dax", "fin", "gon", "kel", "lin", "max", "nor", "pix", "ron", "sol", "tek", "vel", "xon"),
        *("lux", "mar", "tra", "nix", "del"),
    ),
    "company": (
        "{brand} {Supplies|Trading|Works|Partners|Brothers|Industries|Logistics|Systems|Services|Group}",
        "{surname} {and Sons|& Co.|Ltd|Holdings|Traders|Engineering}",
    ),
    "letter": tuple("ABCDEFGHJKLMNPRSTUVWXY"),
    "code": ("{letter}{letter}{letter}-{1000-9999}", "{letter}{10-99}-{100-999}", "{letter}{letter}{10000-99999}"),
    "month": (
        *("January", "February", "March", "April", "May", "June", "July"),
        *("August", "September", "October", "November", "December"),
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "year": ("{2019-2039}",),
    "date": ("{iso_date}", "{weekday} {1-28} {month}", "{month} {1-28}, {year}", "{1-28} {month} {year}"),
    "iso_date": ("{year}-{01-12}-{01-28}",),
    "day": ("{weekday} {1-28} {month}", "{month} {1-28}", "the {11-20}th of {month}", "{1-28} {month}"),
    "time": ("{7-19}:{10-59}", "{07-21}.{10-59}", "{7-11} o'clock", "half past {eight|nine|ten|two|three|four}"),
    "colour": (
        *("black", "white", "red", "green", "blue", "yellow", "grey", "brown", "orange", "purple", "turquoise"),
        *("beige", "silver", "olive", "navy", "maroon", "ivory", "pink", "teal", "bronze", "cream", "charcoal"),
    ),
    "material": (
        *("oak", "beech", "steel", "brass", "copper", "aluminium", "nylon", "rubber", "cork", "glass", "slate"),
        *("linen", "wool", "leather", "ceramic", "bamboo", "zinc", "granite", "felt", "acrylic", "titanium"),
    ),
}
"""Slots of names, places, dates, numbers and materials."""
