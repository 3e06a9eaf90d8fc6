import pytest

from policies.cron import parse_cron


def test_fields_are_the_values_that_they_name() -> None:
    schedule = parse_cron("*/20 9-17/4 1,15 jan-mar mon-fri")
    assert sorted(schedule.minutes) == [0, 20, 40]
    assert sorted(schedule.hours) == [9, 13, 17]
    assert sorted(schedule.days) == [1, 15]
    assert sorted(schedule.months) == [1, 2, 3]
    assert sorted(schedule.weekdays) == [1, 2, 3, 4, 5]
    assert (schedule.any_day, schedule.any_weekday) == (False, False)


def test_seven_is_sunday_too() -> None:
    assert parse_cron("0 0 * * 7").weekdays == parse_cron("0 0 * * sun").weekdays == frozenset({0})


def test_a_start_with_a_step_runs_to_the_end() -> None:
    assert sorted(parse_cron("50/5 * * * *").minutes) == [50, 55]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected five fields"),
        ("@daily", "expected five fields"),
        ("* * * * * *", "got 6"),
        ("60 * * * *", "expected a minute from 0 to 59, got 60"),
        ("* 24 * * *", "expected a hour from 0 to 23, got 24"),
        ("* * 0 * *", "expected a day from 1 to 31, got 0"),
        ("* * * 13 *", "expected a month from 1 to 12"),
        ("* * * * 8", "expected a weekday from 0 to 7"),
        ("*/0 * * * *", "got 0"),
        ("5-1 * * * *", "goes up"),
        ("1, * * * *", "got nothing"),
        ("٣ * * * *", "got ٣"),
        ("0 0 30 feb *", "a day that one of the months has"),
    ],
)
def test_what_is_no_schedule_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_cron(text)
    assert words in str(caught.value)
