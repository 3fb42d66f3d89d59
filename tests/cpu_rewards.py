"""Only for tests: a reward that random completions differ in, and one in which many groups of four do not."""


def length(completions, completion_ids, **_):
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def rare(completions, completion_ids, **_):
    return [float(sum(ids) % 7 == 0) for ids in completion_ids]
