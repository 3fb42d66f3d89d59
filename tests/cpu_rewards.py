"""Only for tests: a reward that random completions differ in."""


def length(completions, completion_ids, **_):
    return [sum(ids) % 7 / 7 for ids in completion_ids]
