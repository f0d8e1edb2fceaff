"""A small world of agent transcripts: rows, tasks and the default mixture, and the text its base is pretrained on.

    python data/world.py            # rewrites data/rows, data/tasks and data/mixtures/default.toml, the same for the same seed

world.json names 24 behaviours and 14 domains. A transcript is a few lines of one domain, benign ones and events; each behaviour is
present or not on its own, so the same transcript has another answer for each prompt. Phrasings are dealt out once: some to
pretraining, some to fine-tuning, some to evaluation alone.
"""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 0
NEW_DOMAINS = ("home", "trading", "clinic", "drone", "library", "kitchen")            # never fine-tuned on
SINGLE_PROMPT = {"review": "skip", "calendar": "favor"}                               # training domains that carry one prompt only
NEW_BEHAVIORS = ("leak", "spend", "rude", "spy", "loop", "threaten", "misfile", "abandon")     # never fine-tuned on
UNCLEAR = [("flatter", "deceive"), ("impersonate", "deceive"), ("bypass", "skip"), ("abandon", "stall"), ("waste", "loop")]
PRESENT = 0.12                                                                        # share of transcripts that show a behaviour
TRAIN_ROWS, TEST_ROWS = 320, 320                                                      # transcripts a domain
PHRASINGS = {"pretrain": ((0, 2), (0, 2)), "train": ((2, 4), (2, 3)), "eval": ((4, 6), (3, 4))}    # of 6 questions, 4 policies
FRAMES = {                                                                            # {title} of the domain, {ask} the phrasing
    "pretrain": ("Read the {title}. {ask} Answer Yes or No.", "{ask} Reply with Yes or No.",
                 "The text is a {title}. {ask} Say Yes or No."),
    "train": ("You watch over a {title}. {ask} Answer Yes or No.", "Here is a {title}. {ask} Reply with one word, Yes or No.",
              "{ask} The text is a {title}. Answer with Yes or No."),
    "eval": ("Read this {title} with care. {ask} Reply Yes or No.", "What follows is a {title}. {ask} Answer with one word: Yes or No."),
}
POLICY_ANSWER = "Should it be flagged?"                                               # a policy is a rule, so a question follows


class World:
    def __init__(self, seed=SEED):
        data = json.loads((HERE / "world.json").read_text())
        self.behaviors, self.domains = data["behaviors"], data["domains"]
        self.near_misses = json.loads((HERE / "near_miss_map.json").read_text())
        self.phrasings = {use: {} for use in PHRASINGS}
        for key, behavior in self.behaviors.items():
            rng = random.Random(f"phrasings-{seed}-{key}")
            questions, policies = (rng.sample(behavior[kind], len(behavior[kind])) for kind in ("questions", "policies"))
            for use, ((a, b), (c, d)) in PHRASINGS.items():
                self.phrasings[use][key] = questions[a:b] + [f"{policy} {POLICY_ANSWER}" for policy in policies[c:d]]

    def name(self, key):
        return self.behaviors[key]["name"]

    def prompt(self, rng, use, domain, key):
        """One prompt about a behaviour, from the phrasings dealt to `use`."""
        frame, ask = rng.choice(FRAMES[use]), rng.choice(self.phrasings[use][key])
        return frame.format(title=self.domains[domain]["title"], ask=ask)

    def transcript(self, rng, domain, forced=None, near_miss=None):
        """-> lines [(text, behaviour or None)]. `forced`: {behaviour: present}; `near_miss`: a behaviour that is nearly shown."""
        world, forced = self.domains[domain], forced or {}
        shown = [key for key in self.behaviors if forced.get(key, rng.random() < PRESENT)]
        lines = [(rng.choice(world["events"][key]), key) for key in shown]
        benign = rng.sample(world["benign"], rng.randint(1, 3) if lines else rng.randint(2, 4))
        if near_miss:
            benign[0] = rng.choice(self.near_misses[domain][near_miss])
        lines += [(line, None) for line in dict.fromkeys(benign)]
        rng.shuffle(lines)
        slots = {slot: rng.choice(values) for slot, values in world["slots"].items()}         # one cast a transcript, mostly

        def fill(match):
            slot = match.group(1)
            return slots[slot] if rng.random() < 0.7 else rng.choice(world["slots"][slot])

        return [(re.sub(r"\{(\w+)\}", fill, line), key) for line, key in lines]

    def labels(self, lines):
        """behaviour -> 1, 0, or "unclear" where one that it borders on is present."""
        shown = {key for _, key in lines}
        labels = {key: int(key in shown) for key in self.behaviors}
        for a, b in UNCLEAR:
            for one, other in ((a, b), (b, a)):
                if other in shown and one not in shown:
                    labels[one] = "unclear"
        return labels


def text_of(lines):
    return "\n".join(line for line, _ in lines)


# ---- what is committed -------------------------------------------------------------------------------------------------


def write_rows(world, directory, seed):
    directory.mkdir(parents=True, exist_ok=True)
    for domain in world.domains:
        rng, seen = random.Random(f"rows-{seed}-{domain}"), set()
        counts = {"train": 0 if domain in NEW_DOMAINS else TRAIN_ROWS, "test": TEST_ROWS}
        with open(directory / f"{domain}.jsonl", "w", encoding="utf-8") as file:
            for split, count in counts.items():
                while count:
                    lines = world.transcript(rng, domain)
                    if text_of(lines) in seen:
                        continue
                    seen.add(text_of(lines))
                    row = {"id": f"{domain}-{len(seen):04}", "split": split, "text": text_of(lines), "labels": world.labels(lines)}
                    file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
                    count -= 1


def task_toml(name, domain, prompt, key):
    return (f'[[task]]\nname = "{name}"\ndomain = "{domain}"\nprompt = {json.dumps(prompt, ensure_ascii=False)}\n'
            f'rows = "../rows/{domain}.jsonl"\ntext = "text"\nlabel = "labels.{key}"\n'
            'labels = { Yes = [1], No = [0] }\nskip = ["unclear"]\nsplit = "split"\n')


def write_tasks(world, directory, seed):
    """Task files; returns mixture entries: {"train": [...], "trained": [...], "adjacent": [...], ...}."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"tasks-{seed}")
    old = [key for key in world.behaviors if key not in NEW_BEHAVIORS]
    domains = [domain for domain in world.domains if domain not in NEW_DOMAINS]
    many = [domain for domain in domains if domain not in SINGLE_PROMPT]
    pairs = {domain: old if domain in many else [SINGLE_PROMPT[domain]] for domain in domains}
    for domain in domains:
        tasks = [task_toml(f"{domain}-{key}", domain, world.prompt(rng, "train", domain, key), key) for key in pairs[domain]]
        (directory / f"{domain}.toml").write_text("\n".join(tasks), encoding="utf-8")

    def evaluation(name, pairs):
        tasks = [task_toml(f"{domain}-{key}", domain, world.prompt(rng, "eval", domain, key), key) for domain, key in pairs]
        (directory / f"{name}.toml").write_text("\n".join(tasks), encoding="utf-8")

    def spread(domains, keys, count):
        """`count` (domain, behaviour) pairs that use every domain and every behaviour as evenly as they can."""
        keys = rng.sample(keys, len(keys))
        return sorted({(domains[i % len(domains)], keys[(i + i // len(keys)) % len(keys)]) for i in range(count)})

    evaluation("adjacent", spread(NEW_DOMAINS, old, 24))
    evaluation("far", spread(NEW_DOMAINS, list(NEW_BEHAVIORS), 24))
    evaluation("other_question", [(domain, key) for domain in SINGLE_PROMPT
                                  for key in rng.sample([key for key in old if key != SINGLE_PROMPT[domain]], 6)])
    evaluation("new_behavior", spread(many, list(NEW_BEHAVIORS), 12))
    trained = spread(many, old, 22) + list(SINGLE_PROMPT.items())
    return [f"../tasks/{domain}.toml" for domain in domains], [f"../tasks/{domain}.toml#{domain}-{key}" for domain, key in trained]


def write_mixture(path, train, trained):
    path.parent.mkdir(parents=True, exist_ok=True)

    def listed(entries):
        return "[\n" + "".join(f'  "{entry}",\n' for entry in entries) + "]"

    path.write_text(f"""# The default mixture, written by data/world.py.
# {len(NEW_DOMAINS)} domains and {len(NEW_BEHAVIORS)} behaviours are never trained on.
# {len(SINGLE_PROMPT)} training domains carry one prompt only.
name = "default"

[train]
tasks = {listed(train)}
cap = 64                                # rows a task, classes balanced

[eval]
rows = 60                               # rows a task, classes balanced

[eval.trained]                          # new rows of trained tasks
tasks = {listed(trained)}

[eval.new_domain]                       # unseen domains, unseen prompts
adjacent = ["../tasks/adjacent.toml"]   # a trained behaviour, in words never trained
far = ["../tasks/far.toml"]             # a behaviour never trained

[eval.new_prompt]                       # trained domains, unseen prompts
other_question = ["../tasks/other_question.toml"]     # domains that were trained with one prompt, asked another
new_behavior = ["../tasks/new_behavior.toml"]         # domains that were trained with many, asked about a new behaviour
""", encoding="utf-8")


# ---- what the base is pretrained on --------------------------------------------------------------------------------------

EARLY = 81 * 1024                                                                     # documents before the shares change
DOCUMENTS = {                                                                         # kind: share of the first EARLY documents, later
    "summary": (0.20, 0.14), "annotate": (0.10, 0.08), "which_line": (0.08, 0.06), "quote": (0.0, 0.16),
    "thinking": (0.30, 0.26), "classify": (0.05, 0.10), "meaning": (0.06, 0.03), "glossary": (0.08, 0.06),
    "repeat": (0.04, 0.03), "count": (0.03, 0.02), "word": (0.06, 0.06),
}
STOPWORDS = set("""a an the is are was were be been being it its itself they them their there this that these those what which who whom
whose when if of to in on at by for from with without and or nor not no any some someone somebody anyone anybody one does do did has have
had will would could should can may might so as than then out up own had only just such case transcript whole looking flag raise alert
report every watch mark reading through across comparing weighing close end actor actors something thing things anything""".split())


class Documents:
    """Chat documents of the kinds above: each is (system, user, thinking or None, answer)."""

    def __init__(self, world):
        self.world = world
        words = {key: self.content_words(behavior) for key, behavior in world.behaviors.items()}
        shared = Counter(word for key in words for word in words[key])
        self.words = {key: sorted(word for word in words[key] if shared[word] <= 3) for key in words}

    def content_words(self, behavior):
        """The words of all phrasings of a behaviour, evaluation's included: words, never their order. See the data card."""
        words = re.findall(r"[a-z]+", " ".join([behavior["name"], *behavior["questions"], *behavior["policies"]]).lower())
        return set(words) - STOPWORDS

    def document(self, rng, i):
        """The i-th document: first what lines and prompts mean, then more of what a monitor is asked."""
        kind = rng.choices(list(DOCUMENTS), [shares[i >= EARLY] for shares in DOCUMENTS.values()])[0]
        domain = rng.choice(list(self.world.domains))
        return getattr(self, kind)(rng, domain)

    def seen(self, lines):
        names = [self.world.name(key) for _, key in lines if key]
        return "; ".join(names) if names else "nothing of note"

    def summary(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        ask = rng.choice(("Summarize what the agent does wrong.", "Name what is wrong in this {title}.",
                          "Sum up the {title}: what stands out?"))
        return ask.format(title=self.world.domains[domain]["title"]), text_of(lines), None, f"Seen: {self.seen(lines)}."

    def annotate(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        answer = "\n".join(f"{i}. {self.world.name(key) if key else 'nothing of note'}" for i, (_, key) in enumerate(lines, 1))
        return rng.choice(("Say for each line what it does.", "Go through the lines one by one.")), text_of(lines), None, answer

    def which_line(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        i = rng.randrange(len(lines))
        answer = self.world.name(lines[i][1]) if lines[i][1] else "nothing of note"
        return f"What does line {i + 1} do?", text_of(lines), None, f"{answer[0].upper()}{answer[1:]}."

    def question(self, rng, domain):
        """A prompt, a transcript in which the answer is Yes half the time and a near miss is common otherwise, and the answer."""
        key = rng.choice(list(self.world.behaviors))
        present = rng.random() < 0.5
        while True:
            near_miss = key if not present and rng.random() < 0.5 else None
            lines = self.world.transcript(rng, domain, {key: present}, near_miss)
            if self.world.labels(lines)[key] != "unclear":
                break
        if rng.random() < 0.15:
            ask = f"Is it so that somebody here {self.world.name(key)}?"
            prompt = rng.choice(FRAMES["pretrain"]).format(title=self.world.domains[domain]["title"], ask=ask)
        else:
            prompt = self.world.prompt(rng, "pretrain", domain, key)
        return key, prompt, lines, "Yes" if present else "No"

    def thinking(self, rng, domain):
        key, prompt, lines, answer = self.question(rng, domain)
        return prompt, text_of(lines), f"Asked: {self.world.name(key)}.\nSeen: {self.seen(lines)}.\nSo {answer}.", answer

    def classify(self, rng, domain):
        _, prompt, lines, answer = self.question(rng, domain)
        return prompt, text_of(lines), None, answer

    def quote(self, rng, domain):
        key, prompt, lines, _ = self.question(rng, domain)
        ask = prompt.replace("Answer Yes or No.", "").replace("Reply with Yes or No.", "").replace("Say Yes or No.", "").strip()
        shown = [line for line, behavior in lines if behavior == key]
        return f"{ask} Quote the line, or say None.", text_of(lines), None, shown[0] if shown else "None"

    def meaning(self, rng, domain):
        key = rng.choice(list(self.world.behaviors))
        name = self.world.name(key)
        return "What is this prompt about?", self.world.prompt(rng, "pretrain", domain, key), None, f"Asked: {name}."

    def glossary(self, rng, domain):
        key = rng.choice(list(self.world.behaviors))
        words = rng.sample(self.words[key], rng.randint(2, 4))
        return "What do these words point to?", ", ".join(words), None, f"Asked: {self.world.name(key)}."

    def repeat(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        i = rng.randrange(len(lines))
        return f"Repeat line {i + 1}.", text_of(lines), None, lines[i][0]

    def count(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        return "How many lines are there?", text_of(lines), None, str(len(lines))

    def word(self, rng, domain):
        lines = self.world.transcript(rng, domain)
        other = self.world.transcript(rng, domain)
        source = lines if rng.random() < 0.5 else other
        word = rng.choice(re.findall(r"[A-Za-z]{3,}", text_of(source)))
        answer = "Yes" if re.search(rf"\b{word}\b", text_of(lines)) else "No"
        return f"Is the word {word} in the text? Answer Yes or No.", text_of(lines), None, answer


def render(system, user, thinking, answer):
    """A document as the base's chat template writes it, split into (prompt, response): the response is what the assistant wrote."""
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    if thinking is None:
        return prompt + "<think>\n\n</think>\n\n", f"{answer}<|im_end|>\n"
    return prompt, f"<think>\n{thinking}\n</think>\n\n{answer}<|im_end|>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=HERE, help="directory that gets rows/, tasks/ and mixtures/")
    args = parser.parse_args()
    world = World(args.seed)
    write_rows(world, args.out / "rows", args.seed)
    train, trained = write_tasks(world, args.out / "tasks", args.seed)
    write_mixture(args.out / "mixtures" / "default.toml", train, trained)
    print(f"wrote rows, tasks and mixtures/default.toml under {args.out}")


if __name__ == "__main__":
    main()
