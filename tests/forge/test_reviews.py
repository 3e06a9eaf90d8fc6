"""Laws of approvals: each person's last word counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.forge.reviews import Review, approvals_in

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
OPINIONS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from(["approved", "withdrawn"])), max_size=12
)


def reviews(opinions: list[tuple[str, str, str]]) -> list[Review]:
    return [
        Review(by=by, commit=commit * 40, at=START + timedelta(minutes=at), verdict=verdict)  # type: ignore[arg-type]
        for at, (by, commit, verdict) in enumerate(opinions)
    ]


@given(OPINIONS)
def test_nobody_approves_whose_last_word_is_no_approval(opinions: list[tuple[str, str, str]]) -> None:
    last = {by: (commit * 40, verdict) for by, commit, verdict in opinions}
    found = approvals_in(reviews(opinions))
    assert {item.by: item.commit for item in found} == {
        by: commit for by, (commit, verdict) in last.items() if verdict == "approved"
    }
    assert [item.at for item in found] == sorted(item.at for item in found)


@given(OPINIONS, OPINIONS)
def test_what_one_person_thinks_takes_nothing_from_another(
    mine: list[tuple[str, str, str]], theirs: list[tuple[str, str, str]]
) -> None:
    others = [(by.upper(), commit, verdict) for by, commit, verdict in theirs]
    alone = {(item.by, item.commit) for item in approvals_in(reviews(mine))}
    together = {(item.by, item.commit) for item in approvals_in(reviews(mine + others))}
    assert {item for item in together if item[0].islower()} == alone
