"""The texts that models are compared on when nobody names others: of many kinds, the same on every machine.

Written for this purpose, so no calibration has seen them: statements, questions, how-to and code documentation,
prose, talk, figures, other languages, and oddities. The odd ones matter: they are what a model of few bits gets
wrong first.
"""

from __future__ import annotations

_STATEMENTS = """
The ferry to the island leaves every morning at half past six.
Our neighbours have painted their fence bright green.
Rain is expected in the north, while the south stays dry.
The committee postponed its decision until the budget is known.
She plays the cello in a small orchestra on weekends.
Most of the bread we eat here is baked two streets away.
The bridge was closed to lorries after cracks were found.
A good knife is more useful in the kitchen than ten bad ones.
Prices of copper have fallen for the third week in a row.
The museum shows drawings that were never meant to be seen.
He forgot his umbrella on the train and ran home through the storm.
Bees find their way back to the hive by the position of the sun.
The patient should not eat anything for eight hours before the operation.
Glaciers in this valley have lost a third of their length since 1950.
The goalkeeper saved two penalties, and the home team won after all.
"""

_QUESTIONS = """
How do I get a red wine stain out of a cotton shirt?
What is the capital of Mongolia?
Why does the moon look larger near the horizon?
Which of these two routes is quicker by bicycle?
Can I return a pair of shoes that I have already worn?
How many people lived in Europe in the year 1500?
Is it safe to keep cooked rice in the fridge overnight?
Where did I save the tax documents of last year?
Who decides what is taught at schools in this country?
When is the best time to prune an apple tree?
What happens to my data when I close the account?
Does this medicine make you tired?
How can two processes share memory without copying it?
What is the difference between a virus and a bacterium?
Should a small company lease its printers or buy them?
"""

_CODE = """
Return the number of rows that match the predicate, or None if the table does not exist.
Raises TimeoutError if the lock cannot be acquired within the given number of seconds.
Reads a chunk of at most `size` bytes; an empty result means that the stream has ended.
The callback is invoked once per completed request, from the thread that submitted it.
Deprecated since version 2.3: use open_session() instead, which closes itself.
Parses an ISO 8601 date such as 2024-02-29T12:30:00Z and returns seconds since the epoch.
Splits the tensor along the given axis into parts that share its memory.
If recursive is true, subfolders are searched as well, but symbolic links are not followed.
Sorts the list in place by the key function; the order of equal elements is kept.
def mean(values): return sum(values) / len(values) if values else 0.0
SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC;
for (int i = 0; i < n; i++) { sum += a[i] * b[i]; }
git rebase --interactive HEAD~3
TypeError: unsupported operand type(s) for +: 'int' and 'str'
To build the package from source, install a compiler first and run make in the top folder.
"""

_PROSE = """
When the lamps along the harbour were lit, old Marten put away his nets and walked home, slower than in other
years, past the shuttered houses of people who had gone to the city and written twice.

The theory explains why large cities grow faster than small towns: whoever looks for work finds more employers
there, and whoever looks for workers finds more people with exactly the skills that are needed. It does not
explain why some of them stop.

Nobody in the village remembered who had planted the walnut tree. It had always stood there, and in its shade
contracts had been agreed, quarrels settled and marriages promised, so that cutting it down seemed like
tearing a page out of the register.

First soak the beans overnight in plenty of cold water. Drain them, cover them with fresh water, add a bay
leaf and half an onion, and let them simmer for an hour and a half. Salt them only at the end, or their skins
will stay tough.

The court held that a landlord who knows of a defect and does not repair it within a reasonable time cannot
demand the full rent. It left open what is reasonable in winter, when a broken boiler is not a nuisance but a
danger.

In the beginning the two companies shared a telephone line and a coat stand. Ten years later each of them
employed four hundred people, and they met only before judges, where they argued about a drawing on the back
of a menu.

Photosynthesis turns light into chemical energy. Pigments in the leaf absorb mostly red and blue light; the
energy splits water, sets oxygen free, and drives the reactions that build sugar out of carbon dioxide.

To restart the router, unplug it, wait for thirty seconds and plug it in again. If the lamp keeps blinking
orange after five minutes, hold the small button on the back with a pin until all lamps go out; this erases
your settings.

The economy of the region rested on salt, then on wool, then for a short and noisy century on coal, and now on
visitors who come to look at what salt, wool and coal have left behind.
"""

_TALK = """
Sorry, running 10 min late, start without me!!
lol that was not what I meant at all :)
Thanks a lot for your quick answer. Best regards, Ana
No.
ok
Could you please resend the invoice? The attachment was empty.
Nope, still broken after the update... any ideas?
Happy birthday, dear grandpa, and many more to come!
5 stars, would buy again. Arrived within two days and works as described.
DO NOT OPEN THE DOOR WHILE THE MACHINE IS RUNNING
"""

_FIGURES = """
3.14159 26535 89793
Tel. +49 30 1234567, Mon-Fri 9:00-17:30
2 eggs, 250 g flour, 1/2 l milk, a pinch of salt
E = m c^2
Invoice no. 2023-00471: 12 x 4.95 = 59.40 EUR, payable within 14 days
192.168.0.1 - - [10/Oct/2023:13:55:36 +0000] "GET /index.html HTTP/1.1" 200 2326
H2SO4 + 2 NaOH -> Na2SO4 + 2 H2O
Flight LH 1234, gate B17, boarding 06:45, seat 22F
"""

_LANGUAGES = """
Wo ist hier die nächste Haltestelle?
Le chat dort sur le canapé depuis ce matin.
Mañana salimos temprano porque el viaje es largo.
Il treno per Milano è in ritardo di venti minuti.
Jag skulle vilja boka ett bord för fyra personer.
Сегодня хорошая погода, пойдём гулять.
今日はとても寒いですね。
你好,请问图书馆在哪里?
"""

_ODDITIES = """
?
...
asdf qwer zxcv
the the the the the the the the
https://example.org/a/b?c=d&e=f#g
😀 🎉 🚀
x
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
_____-----=====+++++
Lorem ipsum dolor sit amet, consectetur adipiscing elit
"""


def _lines(block: str) -> list[str]:
    return block.strip().splitlines()


def _paragraphs(block: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in block.split("\n\n")]


PROBE_TEXTS: tuple[str, ...] = (
    *_lines(_STATEMENTS),
    *_lines(_QUESTIONS),
    *_lines(_CODE),
    *_paragraphs(_PROSE),
    *_lines(_TALK),
    *_lines(_FIGURES),
    *_lines(_LANGUAGES),
    *_lines(_ODDITIES),
    " ".join(_paragraphs(_PROSE)),  # longer than most models read
)
"""All texts, in a fixed order; changing one changes what `model validate` says."""
