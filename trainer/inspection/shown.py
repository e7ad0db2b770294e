"""A report as lines for a terminal. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.data.tokenizer import Tokenizer
from trainer.inspection.inspected import IdUse, Report, Vocabulary
from trainer.inspection.near_duplicates import RESEMBLES, found_with, resemblance_error
from trainer.inspection.seen import Ids, SeenDocument

WIDTH = 100
_BAR = 40
_HEAD = 16
_SHOWN_HEAD, _SHOWN_TAIL = 480, 120
"""Characters of a document that are shown, of its beginning and of its end."""
_SHOWN_IDS = 24
_MOST_SPECIAL = 12


def lines(report: Report, tokenizer: Tokenizer | None, unicode: bool) -> Iterator[str]:
    """Yield the lines of a report.

    Args:
        report: what was found.
        tokenizer: reads the ids of the documents that are shown, or None.
        unicode: true if the terminal shows more than ASCII.
    """
    yield from _facts(report)
    yield from _lengths(report, "█" if unicode else "#")
    yield from _ratio(report)
    if report.vocabulary is not None:
        yield from _vocabulary(report.vocabulary, tokenizer is not None)
    yield from _duplicates(report)
    yield from _shares(report, "█" if unicode else "#")
    for sample in report.samples:
        yield from _sample(sample, tokenizer)


def _row(name: str, text: str) -> str:
    return f"{name:<{_HEAD}}{text}"


def _facts(report: Report) -> Iterator[str]:
    facts = report.facts
    yield _row(facts.kind, facts.place)
    for name, text in facts.details.items():
        yield _row(name, text)
    for part in facts.parts:
        yield _row(
            part.name,
            f"{part.tokens:,} tokens, {_known(part.documents)} documents, {part.files} "
            f"file{'s' * (part.files != 1)} of {part.dtype}",
        )
    yield _row("tokenizer", facts.tokenizer)
    yield _row("documents", _documents(report))
    if facts.counts is not None:
        counts = facts.counts
        yield _row(
            "left out",
            f"of {counts.read:,} read: {counts.empty:,} empty, {counts.skipped:,} skipped, {counts.duplicates:,} "
            "duplicates",
        )
    if report.empty:
        yield _row("empty", f"{report.empty:,} record{'s' * (report.empty != 1)}, left out")
    if report.fault_count:
        yield _row(
            "cannot be read",
            f"{report.fault_count:,} record{'s' * (report.fault_count != 1)}: errors, unless data.on_bad_record=skip",
        )
        for fault in report.faults:
            yield _row("", fault)


def _known(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _documents(report: Report) -> str:
    whole = f"{report.documents:,} whole" + f" and pieces of {report.pieces:,} longer ones" * bool(report.pieces)
    if not report.is_sampled:
        return whole + ", all that there are"
    known = report.facts.documents
    if known is not None:
        total = f"of {known:,}"
    else:
        about = report.estimated_documents
        total = "of an unknown number" if about is None else f"of about {about:,}"
    return f"{whole} {total}: a random sample (seed {report.seed}); --all looks at everything"


def _lengths(report: Report, block: str) -> Iterator[str]:
    found = report.lengths
    yield ""
    yield _row(
        "length",
        f"median {found.median:,}, mean {found.mean:,.1f}, p90 {found.p90:,}, p99 {found.p99:,}, longest "
        f"{found.longest:,} {found.unit}",
    )
    most = max((documents for _, _, documents in found.histogram), default=1)
    for low, high, documents in found.histogram:
        label = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        yield f"{label:>{_HEAD + 12}}  {_bar(documents / max(1, most), block):<{_BAR}} {documents:,}"


def _bar(share: float, block: str) -> str:
    return block * (max(1, round(share * _BAR)) if share else 0)


def _ratio(report: Report) -> Iterator[str]:
    ratio = report.bytes_per_token
    yield ""
    if ratio is None:
        yield _row(
            "bytes a token", "not known without a tokenizer; name one with tokenizer=pretrained tokenizer.path=..."
        )
    else:
        yield _row("bytes a token", f"{ratio:.3f} ({1 / ratio:.3f} tokens a byte)")


def _vocabulary(found: Vocabulary, has_tokenizer: bool) -> Iterator[str]:
    of = "" if found.size is None else f" of {found.size:,}"
    yield _row("ids", f"{found.seen:,}{of} were seen in {found.tokens:,} tokens; the largest is {found.largest:,}")
    if found.outside:
        yield _row("", f"{found.outside:,} are outside of the vocabulary: these tokens are of another tokenizer")
    if found.unseen:
        yield _row("never seen", f"{found.unseen:,}, for example {_uses(found.unseen_first, has_tokenizer)}")
    if found.special:
        shown = [one for one in found.special if one.count] + [one for one in found.special if not one.count]
        more = f", and {len(shown) - _MOST_SPECIAL} more" * (len(shown) > _MOST_SPECIAL)
        yield _row("special tokens", ", ".join(f"{one.token} {one.count:,}" for one in shown[:_MOST_SPECIAL]) + more)
    shares = [f"{_named(one, has_tokenizer)} {one.count / max(1, found.tokens):.1%}" for one in found.frequent]
    yield _row("most frequent", ", ".join(shares))


def _uses(uses: Sequence[IdUse], has_tokenizer: bool) -> str:
    return ", ".join(_named(one, has_tokenizer) for one in uses)


def _named(one: IdUse, has_tokenizer: bool) -> str:
    return f"{one.id}" if not has_tokenizer or one.token is None else f"{one.id} {escaped(one.token)}"


def _duplicates(report: Report) -> Iterator[str]:
    copies, near = report.copies, report.near
    yield _row(
        "the same",
        f"{copies.copies:,} of {copies.documents:,} documents are copies of an earlier one ({copies.share:.2%})",
    )
    if report.is_sampled:
        yield _row("", _in_the_whole(copies.pairs, copies.groups, copies.documents, report))
    yield _row(
        "nearly the same",
        f"{near.resembling:,} of {near.documents:,} different documents resemble another by {RESEMBLES} or more "
        f"({near.share:.2%}, standard error {near.sampling_error:.2%})",
    )
    yield _row(
        "",
        f"a resemblance is known to {resemblance_error():.3f}; {found_with():.2%} of the pairs at {RESEMBLES} are "
        "looked at",
    )
    if report.is_sampled or near.documents < copies.documents - copies.copies:
        yield _row("", _in_the_whole(len(near.pairs), near.resembling // 2, near.documents, report))


def _in_the_whole(pairs: int, groups: int, compared: int, report: Report) -> str:
    """Return what pairs within a sample say of the whole: a document's copy is seldom in the sample too.

    Args:
        pairs: pairs in the sample.
        groups: groups of documents that they are of: pairs of one group say the same thing several times.
        compared: documents that were compared.
        report: what was found.
    """
    total = report.whole_documents
    if total is None or compared < 2:
        return "copies of which only one is in the sample are not seen: there may be more"
    scale = total * (total - 1) / (compared * (compared - 1))
    if not pairs:
        # Three expected pairs would have shown none with a probability of 5 %.
        return f"no pair in the sample: fewer than about {3 * scale:,.0f} pairs in the whole"
    error = f", to {groups**-0.5:.0%} (standard error)" if report.facts.documents is not None else ""
    return f"{pairs:,} pairs in the sample: about {pairs * scale:,.0f} in the whole{error}"


def _shares(report: Report, block: str) -> Iterator[str]:
    if len(report.shares) < 2:
        return
    yield ""
    for name, share in report.shares:
        yield f"{name[-_HEAD - 12 :]:>{_HEAD + 12}}  {_bar(share, block):<{_BAR}} {share:.1%} of {report.lengths.unit}"


def _sample(sample: SeenDocument, tokenizer: Tokenizer | None) -> Iterator[str]:
    yield ""
    sizes = [] if sample.tokens is None else [f"{sample.tokens:,} tokens"]
    sizes += [] if sample.text_bytes is None else [f"{sample.text_bytes:,} bytes"]
    begins = "a document" if sample.is_whole else "a piece of a document"
    head = f"--- {begins} of {sample.group}, {', '.join(sizes)} "
    yield head + "-" * max(3, WIDTH - len(head))
    yield shown_text(sample, tokenizer).rstrip("\n")
    yield "--- its end " + "-" * (WIDTH - 12)


def shown_text(sample: SeenDocument, tokenizer: Tokenizer | None) -> str:
    """Return the beginning of a document, control characters escaped and special tokens by their names."""
    if sample.text is not None:
        size = len(sample.text.encode("utf-8", "replace"))
        return _cut(escaped(sample.text), is_open=size < (sample.text_bytes or 0))
    assert sample.ids is not None, "a document has a text or ids"
    is_open = sample.end_ids is not None
    if tokenizer is None:
        end = sample.ids if sample.end_ids is None else sample.end_ids
        if not is_open and len(end) <= 2 * _SHOWN_IDS:
            return f"ids {_numbers(end)}"
        return f"ids {_numbers(sample.ids[:_SHOWN_IDS])} ... {_numbers(end[-_SHOWN_IDS // 2 :])}"
    text = _cut(_decoded(sample.ids, tokenizer), is_open)
    return text if sample.end_ids is None else f"{text} {_decoded(sample.end_ids, tokenizer)[-_SHOWN_TAIL:]}"


def _numbers(ids: Ids) -> str:
    return " ".join(map(str, ids.tolist()))


def _decoded(ids: Ids, tokenizer: Tokenizer) -> str:
    text, run = "", []
    for id_ in ids.tolist():
        if 0 <= id_ < tokenizer.vocab_size and id_ not in tokenizer.special_ids:
            run.append(id_)
            continue
        text += escaped(tokenizer.decode(run)) + f"[{tokenizer.token(id_) or id_}]"
        run = []
    return text + escaped(tokenizer.decode(run))


def _cut(text: str, is_open: bool) -> str:
    if len(text) <= _SHOWN_HEAD + _SHOWN_TAIL and not is_open:
        return text
    if is_open:
        return f"{text[:_SHOWN_HEAD]} [...]"
    return f"{text[:_SHOWN_HEAD]} [{len(text) - _SHOWN_HEAD - _SHOWN_TAIL:,} characters] {text[-_SHOWN_TAIL:]}"


def escaped(text: str) -> str:
    """Return a text in which everything is visible: a control character as its escape, a line's end kept behind it."""
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter == "\n":
        return "\\n\n"
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
