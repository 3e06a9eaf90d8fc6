"""Runs the program of a job in its container: lays out its folders, runs it to its end, and brings what came of it home.

Usage: python -m myelin.job -- PROGRAM ARGS…, in an environment that the engine gives:

- MYELIN_JOB_INPUTS: a folder with `data/`, `model/`, `earlier/<task>/` and `event.json`, each only where there is one.
- MYELIN_JOB_WORK: an empty folder that may be written to. The program finds copies of the inputs there.
- MYELIN_JOB_KEEPS: which of `model` and `data` are brought home when the program succeeded, `model,data`; may be empty.
- MYELIN_JOB_RESULT_URL: where to.
- MYELIN_JOB_EVENT: the event that the job is due to, as JSON, where there is one and it is short enough.
- MYELIN_JOB_PAUSE_SECONDS, MYELIN_JOB_GRACE_SECONDS: how long the first pause between two tries is, 1 s, which all other
  waiting grows with; and how long a program may take to end that was asked to, 5 s.

The program sees none of these; besides, it sees what it sees on one machine. This exits with the program's code, or 128+n
when signal n killed it, and with 0 only when the result is safe; with 127 when the program could not be started; and with
70, and words on standard error, when something else went wrong. A program is never run twice. Standard library only.
"""
