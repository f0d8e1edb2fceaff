"""Texts on both sides of a split that differ in little, which the check for equal texts cannot see."""

from collections import Counter

from minimon.tasks import Conversation, Mixture, words

LETTERS = ("L", "M")  # Unicode categories: letters, and the marks that belong to them


def near_duplicates(mixture: Mixture, conversations: list[Conversation] = ()) -> dict[str, dict[str, int]]:
    """split -> {"rows", "near_duplicates"}: test rows whose letters are those of a training row (see `bare`).

    Equal texts are refused before. "instruct" counts the conversations that hold a test row."""
    texts = {row.text for task in mixture.train for row in task.rows if row.side == "train"}
    trained = {bare(text) for text in texts}
    tested, found = set(), {}
    for split in mixture.splits:
        counts = Counter()
        for task in mixture.split_tasks(split):
            counts.update(row.text for row in mixture.test_rows(task, split))
        near = 0
        for text, count in counts.items():
            letters = bare(text)
            tested.add(letters)
            if letters in trained:
                near += count
        found[split] = {"rows": counts.total(), "near_duplicates": near}
    if conversations:
        near = sum(holds(conversation, tested) for conversation in conversations)
        found["instruct"] = {"rows": len(conversations), "near_duplicates": near}
    return found


def holds(conversation: Conversation, texts: set[str]) -> bool:
    return any(bare(part) in texts for part in conversation.parts)


def bare(text: str) -> str:
    """The letters of a text, without case, spacing, punctuation and digits; all of it where it has none."""
    return words(text, LETTERS) or text.strip()
