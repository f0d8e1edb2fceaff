"""Texts on both sides of a split that differ in little, which the check for equal texts cannot see."""

from collections import Counter

from minimon.tasks import Conversation, Mixture, words

LETTERS = ("L", "M")  # Unicode categories: letters, and the marks that belong to them


def near_duplicates(mixture: Mixture, conversations: list[Conversation] = ()) -> dict[str, dict[str, int]]:
    """split -> {"rows", "near_duplicates"}: test rows whose letters are those of a training row (see `bare`).

    Equal texts are refused before. "instruct" counts the conversations that hold a test row."""
    train_texts = {row.text for task in mixture.train for row in task.rows if row.side == "train"}
    trained, tested, found = {bare(text) for text in train_texts}, set(), {}
    for split in mixture.splits:
        tasks = mixture.split_tasks(split)
        texts = Counter(row.text for task in tasks for row in mixture.test_rows(task, split))
        letters = {text: bare(text) for text in texts}
        near = [count for text, count in texts.items() if letters[text] in trained]
        found[split] = {"rows": texts.total(), "near_duplicates": sum(near)}
        tested.update(letters.values())
    if conversations:
        near = [conversation for conversation in conversations if holds(conversation, tested)]
        found["instruct"] = {"rows": len(conversations), "near_duplicates": len(near)}
    return found


def holds(conversation: Conversation, texts: set[str]) -> bool:
    return any(bare(message["content"]) in texts for message in conversation.messages)


def bare(text: str) -> str:
    """The letters of a text, without case, spacing, punctuation and digits; all of it where it has none."""
    return words(text, LETTERS) or text.strip()
