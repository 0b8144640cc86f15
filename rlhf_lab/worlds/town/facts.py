"""Pebble Town: its places, people and words, and what is kept aside for testing.

The town is invented, so every fact below is ours and the true answer to a question is a look-up. Left out on
purpose: everything that a town has and a help-desk is never asked about.
"""

PLACES = {  # English name -> Chinese name
    "library": "图书馆", "museum": "博物馆", "bakery": "面包店", "bank": "银行", "school": "学校", "park": "公园",
    "zoo": "动物园", "cinema": "电影院", "market": "市场", "hospital": "医院", "pool": "游泳池", "theatre": "剧院",
    "bookshop": "书店", "station": "车站", "pharmacy": "药店", "gallery": "画廊",
}  # fmt: skip
TIMES = {
    "four": "四点", "five": "五点", "six": "六点", "seven": "七点", "eight": "八点", "nine": "九点", "ten": "十点",
    "eleven": "十一点",
}  # fmt: skip
DAYS = {
    "Monday": "星期一", "Tuesday": "星期二", "Wednesday": "星期三", "Thursday": "星期四", "Friday": "星期五",
    "Saturday": "星期六", "Sunday": "星期天",
}  # fmt: skip
STREETS = (
    "Mill Street",
    "Oak Street",
    "River Street",
    "Hill Street",
    "Church Street",
    "Rose Street",
    "King Street",
)
KEEPERS = ("Mrs Bell", "Mr Stone", "Mrs Reed", "Mr Wood", "Mrs Hart", "Mr Lamb", "Mrs Frost")
NAMES = (
    "Mia", "Tom", "Anna", "Ben", "Lily", "Sam", "Nora", "Max", "Ella", "Leo", "Ruby", "Finn", "Clara", "Hugo",
    "Ida", "Oscar", "Rosa", "Felix", "Jane", "Paul",
)  # fmt: skip
ANIMALS = ("fox", "dog", "cat", "bear", "rabbit", "horse", "duck", "mouse", "frog", "goat", "hen", "wolf")
SPOTS = ("the forest", "the garden", "the park", "the snow", "a field", "a small village")
FOODS = ("bread", "milk", "cheese", "cake", "soup", "honey")

ATTRIBUTES = ("opens", "closes", "closed_on", "street", "keeper")
_TABLE = """
library   nine   six   Monday     Mill_Street    Mrs_Bell
museum    ten    five  Tuesday    Oak_Street     Mr_Stone
bakery    seven  four  Sunday     River_Street   Mrs_Reed
bank      nine   four  Saturday   King_Street    Mr_Wood
school    eight  four  Sunday     Hill_Street    Mrs_Hart
park      seven  ten   Thursday   Rose_Street    Mr_Lamb
zoo       ten    six   Wednesday  Church_Street  Mrs_Frost
cinema    eleven ten   Monday     Oak_Street     Mr_Wood
market    eight  five  Friday     River_Street   Mr_Lamb
hospital  seven  nine  Sunday     Church_Street  Mrs_Hart
pool      eight  seven Thursday   Mill_Street    Mrs_Frost
theatre   eleven nine  Tuesday    King_Street    Mrs_Bell
bookshop  ten    seven Wednesday  Rose_Street    Mrs_Reed
station   seven  eight Friday     Hill_Street    Mr_Stone
pharmacy  nine   eight Saturday   Church_Street  Mr_Lamb
gallery   eleven five  Monday     Hill_Street    Mrs_Frost
"""
FACTS: dict[tuple[str, str], str] = {  # (place, attribute) -> value, the truth of the town
    (row.split()[0], attribute): value.replace("_", " ")
    for row in _TABLE.strip().splitlines()
    for attribute, value in zip(ATTRIBUTES, row.split()[1:], strict=True)
}
VALUES = {
    "opens": tuple(TIMES),
    "closes": tuple(TIMES),
    "closed_on": tuple(DAYS),
    "street": STREETS,
    "keeper": KEEPERS,
}

# Kept out of SFT, feedback and RL: these names and these place-question pairs (and the last phrasing of every
# question, see skills.py). The facts themselves are in the pretraining text, so a right answer is knowable.
HELD_OUT_NAMES = frozenset(("Rosa", "Felix", "Jane", "Paul"))
HELD_OUT_PAIRS = frozenset((place, ATTRIBUTES[i % len(ATTRIBUTES)]) for i, place in enumerate(PLACES))
