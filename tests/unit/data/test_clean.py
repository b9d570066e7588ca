"""Each rule removes what it is made to remove, for the reason it says, and leaves good text and code alone."""

import pytest

from bessemer.core.registry import find, names
from bessemer.data.clean.language import tell
from bessemer.data.clean.unicode import mend_mojibake, unicode
from bessemer.data.document import Document

GOOD = """The old mill at the end of the valley had not turned its wheel for thirty years.
Nobody in the village could say with certainty who owned it, and few of them seemed to care.
When the river rose that spring, water came in through the broken door and carried off the last sacks.
My grandfather used to tell us that flour from this place was the finest to be had for miles.
He would have been glad to see the carpenters at work there, measuring beams and arguing about nails.
By autumn the stones were turning again, and bread from the bakery tasted better than anyone remembered."""
CODE = "x = {1: '#'}\n" * 60


def apply(name, text, domain="prose", **options):
    return find("data/clean", name)(Document(text, domain=domain), **options)


@pytest.mark.parametrize("name", names("data/clean"))
def test_good_prose_and_code_pass(name):
    assert apply(name, GOOD).text == GOOD
    assert apply(name, CODE, "code").text == CODE


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gopher_quality", "too short", "too few words"),
        ("gopher_quality", "a " * 100, "words too short"),
        ("gopher_quality", "incomprehensibilities " * 60, "words too long"),
        ("gopher_quality", "word # " * 100, "too many symbols"),
        ("gopher_quality", "- the word that and\n" * 30, "too many bullets"),
        ("gopher_quality", GOOD.replace("\n", "\n") + "\n" + "and so on it was...\n" * 5, "too many ellipses"),
        ("gopher_quality", "1234 word " * 60, "too few words with letters"),
        ("gopher_quality", "Wort steht neben Wort " * 20, "too few stop words"),
        ("gopher_repetition", "the same line\n" * 20, "repeated lines"),
        ("gopher_repetition", "\n\n".join(["one\nand two"] * 9 + [f"{i} {i + 1}" for i in range(40)]), "repeated lines, by characters"),
        ("gopher_repetition", " ".join(f"{i} and so" for i in range(60)), "one 2-gram too often"),
        ("gopher_repetition", " ".join([f"w{i}x{i * i}" for i in range(40)] * 2), "repeated 5-grams"),
        ("c4", GOOD + "\nlorem ipsum", "lorem ipsum"),
        ("c4", GOOD + "\nif (x) { y }", "curly brace"),
        ("c4", "Only one sentence here.", "too few sentences"),
        ("fineweb", "no end\nin these lines of text here\n" * 4, "too few lines end a sentence"),
        ("fineweb", "\n".join(f"Short {i}." for i in range(30)), "too many short lines"),
        ("fineweb", "This line is rather long, and comes again.\n" * 5, "repeated lines"),
        ("language", "Der Hund und die Katze sind nicht in dem Haus, und das ist auch gut für die Maus.", "language de"),
        ("language", "xyzzy plugh quux frobnicate blorb fnord", "language unknown"),
        ("unicode", "abc�def", "mis-encoded"),
        ("unicode", "\x00\x01 \n", "empty"),
    ],
)
def test_removed_for_its_reason(name, text, reason):
    found = apply(name, text)
    assert found == reason, found if isinstance(found, str) else "kept"


def test_c4_drops_lines():
    text = (
        GOOD
        + "\nHome | About | Contact\nPlease enable JavaScript to see this.\nRead our privacy policy here please.\nHe was born[1] in a town.[citation needed]"
    )
    assert apply("c4", text).text == GOOD + "\nHe was born in a town."


@pytest.mark.parametrize("read_as", ["latin-1", "cp1252"])
@pytest.mark.parametrize(
    "good",
    [
        "Déjà vu à Genève, où l'été fut très chaud",
        "naïve façade – “quoted” … €5",
        "Übergrößenträger über Öl",
        "日本語のテキスト",
        "Привет, мир",
        "emoji 😀 here",
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_mojibake_is_mended(good, read_as, times):
    broken = good
    for _ in range(times):
        broken = "".join(
            bytes([b]).decode(read_as) if read_as == "latin-1" or b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(b) for b in broken.encode()
        )
    assert broken != good
    assert mend_mojibake(broken) == good


@pytest.mark.parametrize(
    "good", ["Ça va, CAFÉ» dit-il", "São João, ÃO NÃO", "Größe: ÄÖÜ äöü ß", "“ÀÉÎÕÜ”", "10 °C ± 2 µm, ½ × ¾", "Ångström ©2020 ® Ñandú", "naïve"]
)
def test_good_text_is_not_mended(good):
    assert mend_mojibake(good) == good


def test_unicode_form_controls_and_line_ends():
    assert unicode(Document("e\u0301\r\na\rb\u2028c\x00\ufeff\td\x1b")).text == "é\na\nb\nc\td"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and it was happy with that.", "en"),
        ("Le chat est sur la table et il ne veut pas descendre pour le moment.", "fr"),
        ("El gato está en la mesa y no quiere bajar por ahora, pero es lo que hay.", "es"),
        ("O gato está na mesa e não quer descer por causa do cão que está em casa.", "pt"),
        ("De kat zit op de tafel en het is niet de bedoeling dat hij er van af gaat.", "nl"),
        ("Katten sitter på bordet och det är inte bra för den som har att städa.", "sv"),
        ("Кошка сидит на столе и не хочет уходить", "ru"),
        ("猫がテーブルの上に座っています", "ja"),
        ("猫坐在桌子上不想下来", "zh"),
        ("고양이가 탁자 위에 앉아 있다", "ko"),
        ("12345 67890", None),
    ],
)
def test_languages_are_told(text, language):
    assert tell(text) == language
