"""Metrics of reports: wording (BLEU, ROUGE-L) and which findings are said.

Findings are found by words and negation cues in English: a lexical labeller, not CheXbert. Its numbers do not compare with F1-CheXbert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from medtame.errors import MedtameError
from medtame.metrics.statistic import F1, CorpusBleu, Mean, Ratio, Statistic
from medtame.types import Array

SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+\.\s|[A-Z]))")
SCOPE_END = re.compile(r";|\b(?:but|however|although|though|except|other than|apart from|aside from)\b")
NOT_A_NEGATION = re.compile(
    r"\b(?:no|without)\s+(?:(?:significant|interval|definite|acute)\s+)*(?:change|increase|decrease|improvement)\b|\bnot only\b"
)
BEFORE = re.compile(
    r"\b(?:no|without|absent|negative for|free of|clear of|denies|rules? out|ruled out|lack of|absence of|not (?:see|show|demonstrate))\b"
)
AFTER = re.compile(
    r"\b(?:absent|ruled out|excluded|(?:not|never) (?:\w+ )?"
    r"(?:seen|present|identified|demonstrated|visible|visualized|noted|found|evident))\b"
)


def findings_in(text: str, vocabulary: Mapping[str, Sequence[str]]) -> set[str]:
    """The findings that a report affirms. `vocabulary`: finding -> its wordings, matched as whole words, a plural s allowed.

    A finding is denied by a cue before it (no, without, absent, negative for, no evidence of ...) or after it (absent, not seen, ruled
    out ...) in the same sentence, up to "but", "however", "except" or a semicolon. A finding affirmed anywhere counts. Of overlapping
    wordings the longest counts: in "pericardial effusion", "effusion" is not found. Not understood: uncertainty ("possible"), history,
    clauses parted by a comma alone, and a cue after two findings of which it denies one.
    """
    owners: dict[str, set[str]] = {}
    for finding, wordings in vocabulary.items():
        for wording in wordings:
            owners.setdefault(" ".join(wording.lower().split()), set()).add(finding)
    if not owners or "" in owners:
        raise MedtameError("a vocabulary without wordings, or with an empty one: give each finding at least one word")
    longest_first = sorted(owners, key=lambda wording: (-len(wording), wording))
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?:s|es)?(?!\w)")
    found: set[str] = set()
    for sentence in SENTENCE_END.split(text):
        for clause in SCOPE_END.split(" ".join(sentence.lower().split())):
            found |= {finding for wording in _affirmed(clause, pattern) for finding in owners[wording]}
    return found


def _affirmed(clause: str, pattern: re.Pattern[str]) -> list[str]:
    """The wordings in a clause that no cue denies."""
    clause = NOT_A_NEGATION.sub(lambda cue: "_" * len(cue[0]), clause)
    first, last = BEFORE.search(clause), [cue.start() for cue in AFTER.finditer(clause)][-1:]
    start, end = first.end() if first else len(clause), last[0] if last else 0
    return [match[1] for match in pattern.finditer(clause) if match.end() <= start and match.start() >= end]


def bleu4(said: Sequence[str], true: Sequence[str]) -> CorpusBleu:
    """Corpus BLEU with n-grams up to 4 by sacrebleu (13a tokens, case counts, exp smoothing), on its scale of 0 to 100."""
    _same_length(said, true)
    scorer = BLEU(force=True)
    scores = [scorer.corpus_score([a], [[b]]) for a, b in zip(said, true, strict=True)]
    correct, total = (
        np.array([getattr(one, name) for one in scores], dtype=float).reshape(len(scores), 4) for name in ("counts", "totals")
    )
    return CorpusBleu(correct, total, _floats([one.sys_len for one in scores]), _floats([one.ref_len for one in scores]))


def rouge_l(said: Sequence[str], true: Sequence[str]) -> Mean:
    """Mean F1 of the longest common subsequence by rouge-score (Lin 2004), no stemming; a true text without a Latin word is left out."""
    _same_length(said, true)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    values = [
        scorer.score(b, a)["rougeL"].fmeasure if re.search("[a-z0-9]", b.lower()) else np.nan for a, b in zip(said, true, strict=True)
    ]
    return Mean(_floats(values))


def finding_f1(said: Sequence[AbstractSet[str]], true: Sequence[AbstractSet[str]]) -> F1:
    """F1 of the findings said, counts pooled over rows and findings (micro)."""
    _same_length(said, true)
    pairs = list(zip(said, true, strict=True))
    return F1(_floats([len(a & b) for a, b in pairs]), _floats([len(a - b) for a, b in pairs]), _floats([len(b - a) for a, b in pairs]))


def hallucination_rate(said: Sequence[AbstractSet[str]], true: Sequence[AbstractSet[str]]) -> Ratio:
    """Share of the findings said that are not true; NaN where nothing is said."""
    _same_length(said, true)
    return Ratio(_floats([len(a - b) for a, b in zip(said, true, strict=True)]), _floats([len(a) for a in said]))


def omission_rate(said: Sequence[AbstractSet[str]], true: Sequence[AbstractSet[str]]) -> Ratio:
    """Share of the true findings that are not said; NaN where there is none."""
    _same_length(said, true)
    return Ratio(_floats([len(b - a) for a, b in zip(said, true, strict=True)]), _floats([len(b) for b in true]))


def reports(said: Sequence[str], true: Sequence[str], vocabulary: Mapping[str, Sequence[str]]) -> dict[str, Statistic]:
    """finding_f1, hallucination_rate, omission_rate (lexical), bleu4, rouge_l of N reports."""
    findings_said, findings_true = ([findings_in(text, vocabulary) for text in texts] for texts in (said, true))
    return {
        "finding_f1": finding_f1(findings_said, findings_true),
        "hallucination_rate": hallucination_rate(findings_said, findings_true),
        "omission_rate": omission_rate(findings_said, findings_true),
        "bleu4": bleu4(said, true),
        "rouge_l": rouge_l(said, true),
    }


def _floats(values: Sequence[float]) -> Array:
    return np.array(values, dtype=float)


def _same_length(said: Sequence[object], true: Sequence[object]) -> None:
    if len(said) != len(true):
        raise MedtameError(f"{len(said)} texts said but {len(true)} true ones: give one of each a row")
