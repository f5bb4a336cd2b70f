"""The words of the planted market: plain headlines whose wording carries what ``feeds.planted`` says, and no more.

A detail's phrase carries its direction, a breaking headline's phrase says that something has happened to its topic and
not which way, and a headline of the noise is about something else altogether.
"""

from __future__ import annotations

# Each stands on its own: what is said of one says nothing of another.
TOPICS = (
    *("shipping", "airline", "wheat", "copper", "housing", "banking", "microchip", "insurance", "railway", "hotel"),
    *("natural gas", "car", "telephone", "timber", "medicine", "coffee", "clothing", "dairy", "gold", "solar power"),
)
NAMES = ("the {topic} industry", "{topic} firms", "the {topic} business")

UP = (
    "orders run ahead of plan",
    "the order book lengthens",
    "buyers come forward early",
    "inventories are drawn down",
    "delivery queues grow",
    "contracts are renewed",
)
DOWN = (
    "orders run behind plan",
    "the order book shortens",
    "buyers stay away",
    "inventories pile up",
    "delivery queues vanish",
    "contracts are left to lapse",
)
DETAIL_FRAMES = ("In {name}, {phrase}", "{name}: {phrase}", "{name} survey: {phrase}", "{name} note that {phrase}")

MARKERS = ("Breaking:", "Breaking news:", "News alert:", "Just in:")
EVENTS = (
    "sudden review of {name}",
    "emergency meeting over {name}",
    "surprise ruling on {name}",
    "new law on {name} takes effect at once",
)

NOISE_SUBJECTS = (
    *("Local football club", "City orchestra", "Village school", "Film festival", "Chess champion", "Art museum"),
    *("National theatre", "Weather service", "Cycling team", "University choir", "Zoo", "Public library"),
    *("Tennis star", "Cookery show", "Botanical garden", "Marathon runner", "Rock band", "History society"),
    *("Town council", "Novelist", "Star gazer", "Swimming team", "Puppet theatre", "Bird watcher"),
    *("Mountain guide", "Radio drama", "Fashion week", "Opera house", "Rowing crew", "Crossword club"),
)
NOISE_PHRASES = (
    *("wins a prize", "loses its last match", "opens a new season", "celebrates an anniversary", "mourns its founder"),
    *("looks for volunteers", "delights a large crowd", "disappoints its followers", "moves to another building"),
    *("publishes a calendar", "cancels a performance after a storm", "thanks its supporters", "changes its director"),
    *("receives a visit from schoolchildren", "plans a trip abroad", "is shown on television", "repaints its entrance"),
    *("invites guests to a summer party", "finds an old photograph", "records an album"),
)


def detail(name: str, up: bool, phrase: int, frame: int) -> str:
    """Write a detail of a topic by one of its names; phrase and frame count into the tables, from 0."""
    text = DETAIL_FRAMES[frame].format(name=name, phrase=(UP if up else DOWN)[phrase])
    return text[0].upper() + text[1:]


def breaking(name: str, marker: int, event: int) -> str:
    """Write that something has happened to a topic, not which way it goes."""
    return f"{MARKERS[marker]} {EVENTS[event].format(name=name)}"


def noise(subject: int, phrase: int) -> str:
    """Write of something else altogether."""
    return f"{NOISE_SUBJECTS[subject]} {NOISE_PHRASES[phrase]}"
