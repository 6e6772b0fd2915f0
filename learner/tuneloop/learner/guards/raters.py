"""How reliable each rater is: the model of Dawid and Skene with one coin for each rater.

Dawid and Skene 1979, https://doi.org/10.2307/2346806; with one coin as in Ghosh, Kale and McAfee
2011, https://doi.org/10.1145/1993574.1993599. Votes on one thing are noisy readings of one truth:
rater r says it with probability p_r and the opposite else. EM, for votes v = ±1:

    E: log odds that t is "up" = logit π_t + Σ_r c_rt · v_rt · logit p_r
    M: p_r = (α + Σ_t P(truth_t = v_rt)) / (α + β + n_r)

p_r begins at its prior mean α/(α + β), which is above one half and so says which way is up. Where
it is known what a thing is like, π_t is what the truths of other raters' similar things lead one to
expect, computed again in each of the first rounds (Raykar et al. 2010; see `content`). Else it is
the share of "up" among the truths of a family (thumbs, or pairs), and things that one rater alone
judged are left out: they say nothing.

The model takes raters for independent, and a ring that judges the same things alike would be
believed for its number. So a vote counts c_rt = 1 / (1 + Σ_s E_rs) over the others s who say the
same of t. E_rs is the share of what r and s judged alike among what both judged, times how far both
meet more often than by chance: (m − e) / (max(n_r, n_s) − e), at least 0, of m meetings where
e = n_r · n_s / T are expected among all T things. Those who always come together and say the same
are one voice; a panel that judges everything is not suspect. (Ours; the papers have c = 1.)
If more than half of the people get less than half a weight, the model has taken liars for honest
raters, or there is no common truth: then every rater counts in full.

The weight of a rater is (2p − 1)/(2p₀ − 1), from 0 to 1, where p₀ is the prior mean: 2p − 1 is the
part of a vote of accuracy p that is not undone by its errors (Natarajan et al. 2013, lemma 1). A
rater who is always contradicted gets 0, never a negative weight: following the opposite of a liar
would let liars decide.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tuneloop.learner.guards.content import JudgedAnswers, predictability

ROUNDS = 50
TOLERANCE = 1e-4
CONTENT = 512
"""The latest things of a family whose content counts."""
CONTENT_ROUNDS = 6
"""Rounds in which what is expected is computed again: it changes little after."""
LEAST_RATERS = 3
"""Two raters can only contradict each other."""
MOST_ON_A_TOPIC = 32
"""The most votes on one thing that count: all pairs of them are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """The prior of a rater's accuracy: Beta(right, wrong)."""

    right: float = 4.0
    wrong: float = 1.0

    @property
    def mean(self) -> float:
        """Accuracy."""
        return self.right / (self.right + self.wrong)


PEOPLE = Prior()
MACHINE = Prior(right=3.0, wrong=2.0)
"""The reward model as one more rater: it counts little until people agree with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one rater says about one thing."""

    topic: str
    """A completion, or two of them in a fixed order."""
    rater: str
    up: bool
    """It is good; or the first of the two is better."""
    family: str = "thumb"
    """Topics whose truths are "up" about as often."""
    features: tuple[float, ...] = ()
    """What the completion is like, or how the first of the two differs; () where not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """What the votes say about a rater."""

    accuracy: float
    """Posterior mean of p."""
    overlapping: int
    """Their votes on things that others judged too, or whose content is known."""

    @property
    def weight(self) -> float:
        """The weight of each of their judgements, 0 to 1."""
        return max(0.0, min(1.0, (2 * self.accuracy - 1) / (2 * PEOPLE.mean - 1)))


def reliabilities(votes: Sequence[Vote], machines: Collection[str] = ()) -> dict[str, Reliability]:
    """Return the reliability of each rater who can be compared with others; others have the prior.

    A rater's last vote on a thing counts. Nobody is judged before there are `LEAST_RATERS` people.
    """
    everything = _by_topic(votes)
    contents = _contents(everything)
    known = {topic for topics, _ in contents for topic in topics}
    by_topic = {t: cast for t, cast in everything.items() if len(cast) > 1 or t in known}
    judged = Counter(rater for cast in by_topic.values() for rater in cast)
    if len(judged.keys() - set(machines)) < LEAST_RATERS:
        return {}
    voices = _voices(by_topic, judged, len(everything))
    prior_of = {rater: MACHINE if rater in machines else PEOPLE for rater in judged}
    accuracies = {rater: prior.mean for rater, prior in prior_of.items()}
    expected: dict[str, float] = {}
    for number in range(ROUNDS):
        up = _truths(by_topic, voices, accuracies, expected)
        if contents and number < CONTENT_ROUNDS:
            for topics, answers in contents:
                log_odds = answers.expected(np.array([up[topic] for topic in topics]))
                expected |= zip(topics, log_odds.tolist(), strict=True)
            up = _truths(by_topic, voices, accuracies, expected)
        right = _right(by_topic, up)
        before, accuracies = accuracies, {}
        for rater, prior in prior_of.items():
            total = prior.right + prior.wrong + judged[rater]
            accuracies[rater] = (prior.right + right[rater]) / total
        if max(abs(accuracies[rater] - before[rater]) for rater in before) < TOLERANCE:
            break
    found = {
        rater: Reliability(accuracy=accuracy, overlapping=judged[rater])
        for rater, accuracy in accuracies.items()
    }
    people = [found[rater].weight for rater in found.keys() - set(machines)]
    return {} if 2 * sum(weight < 0.5 for weight in people) > len(people) else found


def _by_topic(votes: Sequence[Vote]) -> dict[str, dict[str, Vote]]:
    by_topic: defaultdict[str, dict[str, Vote]] = defaultdict(dict)
    for vote in votes:
        by_topic[vote.topic][vote.rater] = vote
    return {topic: dict(list(cast.items())[-MOST_ON_A_TOPIC:]) for topic, cast in by_topic.items()}


def _voices(
    by_topic: Mapping[str, Mapping[str, Vote]], judged: Mapping[str, int], topics: int
) -> dict[str, dict[str, float]]:
    """Return how much each vote counts, c: less for raters who always appear and agree together."""
    both: Counter[tuple[str, str]] = Counter()
    alike: Counter[tuple[str, str]] = Counter()
    for cast in by_topic.values():
        for pair in combinations(sorted(cast), 2):
            both[pair] += 1
            alike[pair] += cast[pair[0]].up == cast[pair[1]].up
    echo: dict[tuple[str, str], float] = {}
    for pair, met in both.items():
        counts = [judged[rater] for rater in pair]
        expected = math.prod(counts) / topics
        room = max(counts) - expected
        beyond = max(0.0, met - expected) / room if room > 0 else 0.0
        echo[pair] = beyond * alike[pair] / met
    voices: dict[str, dict[str, float]] = {}
    for topic, cast in by_topic.items():
        echoes = dict.fromkeys(cast, 1.0)
        for pair in combinations(sorted(cast), 2):
            if cast[pair[0]].up == cast[pair[1]].up:
                for rater in pair:
                    echoes[rater] += echo[pair]
        voices[topic] = {rater: 1 / total for rater, total in echoes.items()}
    return voices


def _contents(by_topic: Mapping[str, Mapping[str, Vote]]) -> list[tuple[list[str], JudgedAnswers]]:
    """Return the latest topics of each family whose content is known, and that content."""
    families: defaultdict[str, dict[str, tuple[str, tuple[float, ...]]]] = defaultdict(dict)
    for topic, cast in by_topic.items():
        people = [vote for vote in cast.values() if vote.features]
        if people:
            whose = people[0].rater if len(people) == 1 else topic
            families[people[0].family][topic] = whose, people[0].features
    contents = []
    for family, of_topics in families.items():
        topics = list(of_topics)[-CONTENT:]
        raters, features = zip(*(of_topics[topic] for topic in topics), strict=True)
        answers = JudgedAnswers.of(features, raters, has_base_rate=family == "thumb")
        contents.append((topics, answers))
    return contents


def _truths(
    by_topic: Mapping[str, Mapping[str, Vote]],
    voices: Mapping[str, Mapping[str, float]],
    accuracies: Mapping[str, float],
    expected: Mapping[str, float],
) -> dict[str, float]:
    """Return the probability that each topic is "up": from its votes, and what is expected of it.

    Where nothing is expected, it is as likely as in the family.
    """
    said = {
        topic: math.fsum(
            math.copysign(voices[topic][rater], vote.up - 0.5) * _logit(accuracies[rater])
            for rater, vote in cast.items()
        )
        for topic, cast in by_topic.items()
    }
    families: defaultdict[str, list[str]] = defaultdict(list)
    for topic, cast in by_topic.items():
        families[next(iter(cast.values())).family].append(topic)
    up: dict[str, float] = {}
    for topics in families.values():
        ups = math.fsum(_probability(said[topic]) for topic in topics)
        base = _logit((1 + ups) / (2 + len(topics)))
        up |= {topic: _probability(expected.get(topic, base) + said[topic]) for topic in topics}
    return up


def _right(
    by_topic: Mapping[str, Mapping[str, Vote]], up: Mapping[str, float]
) -> defaultdict[str, float]:
    """Return how many votes of each rater are expected to be right."""
    right: defaultdict[str, float] = defaultdict(float)
    for topic, cast in by_topic.items():
        for rater, vote in cast.items():
            right[rater] += up[topic] if vote.up else 1 - up[topic]
    return right


def predictabilities(
    votes: Sequence[Vote], raters: Mapping[str, Reliability]
) -> dict[str, float | None]:
    """Return how surely votes of each family are what others' votes lead one to expect."""
    found: dict[str, float | None] = {}
    families: defaultdict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.features:
            families[vote.family].append(vote)
    for family, cast in families.items():
        latest = cast[-CONTENT:]
        answers = JudgedAnswers.of(
            [vote.features for vote in latest],
            [vote.rater for vote in latest],
            has_base_rate=family == "thumb",
        )
        said = np.array([vote.up for vote in latest])
        weights = [raters[v.rater].weight if v.rater in raters else 1.0 for v in latest]
        trust = np.array(weights)
        expected = answers.expected(said.astype(np.float64), trust)
        found[family] = predictability(expected, said, trust)
    return found


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _probability(log_odds: float) -> float:
    if log_odds < 0:
        return 1 - _probability(-log_odds)
    return 1 / (1 + math.exp(-log_odds))
