"""X-Spam fields, and actions by a score, for filters that compute one."""

from collections.abc import Sequence

from minismtp import Message, Reject

_TESTS = 100  # named in a field


def remove_marks(message: Message) -> None:
    """Remove all X-Spam-* fields of the sender."""
    headers = message.headers
    marks = {raw for name in headers.names("x-spam-") for raw in headers.raw_all(name)}
    if marks:
        message.edit([raw for raw in headers.raw_all() if raw not in marks])


def mark(
    message: Message, *, spam: bool, score: float, required: float, tests: Sequence[str]
) -> None:
    """Put X-Spam-Status and X-Spam-Score on top, and X-Spam-Flag if it is spam."""
    named = ", ".join(tests[:_TESTS]) or "none"
    word = "Yes" if spam else "No"
    status = f"{word}, score={score:.1f} required={required:.1f} tests={named}"
    message.prepend("X-Spam-Status", status)
    message.prepend("X-Spam-Score", f"{score:.1f}")
    if spam:
        message.prepend("X-Spam-Flag", "YES")


def act_on_score(
    message: Message, score: float, text: str, *, quarantine: float | None, reject: float | None
) -> None:
    """Refuse a message from the score `reject` on, or quarantine it from `quarantine` on."""
    if reject is not None and score >= reject:
        raise Reject(text)
    if quarantine is not None and score >= quarantine:
        message.quarantine(f"spam, score {score:.1f}")
