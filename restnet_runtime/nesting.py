"""Nesting: how many arrays and objects a JSON body may have. Each takes twenty times its text once it is read."""

from restnet_runtime.errors import InputError

MOST_PARTS = 500_000


def check_nesting(body: bytes) -> None:
    """Raise `InputError` where `body`, JSON that is not read yet, would become too many lists and dicts.

    Brackets within strings count too. A batch of 64 of 3x1024x1024, as nested numbers, has 200,000 lists.
    """
    parts = body.count(b"[") + body.count(b"{")
    if parts > MOST_PARTS:
        raise InputError(f"the JSON has {parts} arrays and objects; the limit is {MOST_PARTS}: nest less, or send numbers in binary form")
