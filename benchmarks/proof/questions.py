"""Short questions of many kinds, for duels: what is asked matters less than that both duellists are asked the same."""

SUBJECTS = (
    *("the moon", "a volcano", "bread", "the heart", "a river", "gravity", "an atom", "a bicycle", "the Roman Empire", "a library"),
    *("rain", "a bank", "the brain", "a vaccine", "chess", "a rainbow", "a computer", "democracy", "a whale", "the ocean"),
    *("glass", "an earthquake", "music", "a tree", "the internet", "salt", "a desert", "sleep", "a bridge", "the sun"),
    *("a bee", "electricity", "a novel", "a map", "friendship", "iron", "a train", "a market", "time", "cheese"),
)
FORMS = (
    "What is {}?",
    "Explain {} to a child in two sentences.",
    "Tell me one fact about {}.",
    "Why is {} important?",
    "Where does {} come from?",
)


def question(number: int) -> str:
    """Give the question of a number: the first len(SUBJECTS) * len(FORMS) are all different."""
    turn, place = divmod(number, len(SUBJECTS))
    return FORMS[turn % len(FORMS)].format(SUBJECTS[place])
