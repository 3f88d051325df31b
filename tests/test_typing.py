"""What an editor and mypy say of an application's code.

mypy checks this file with the others, and wants each `type: ignore` to be needed: a wrong hook that
it lets pass is an error of `make types`.
"""

import inspect

from flask import Response, jsonify

from hybrid import Hybrid, Identity

realtime = Hybrid()


def test_right_hooks_are_taken_as_they_are() -> None:
    """Sync or async, as a function or a lambda; a decorator leaves the hook what it is."""

    @realtime.identify
    def identify() -> Identity | None:
        return Identity("alice")

    @realtime.identify
    async def identify_later() -> Identity:
        return Identity("alice")

    @realtime.authorize
    async def authorize(identity: Identity, topic: str) -> bool:
        return topic == identity.user

    @realtime.can_monitor
    @realtime.can_operate
    def is_admin(identity: Identity) -> bool:
        return "admin" in identity.roles

    realtime.can_test(lambda identity: identity.user is not None)
    found: Identity | None = identify()
    assert found == Identity("alice")
    assert is_admin(Identity("ole", ["admin"]))


def test_wrong_hooks_are_errors_of_mypy() -> None:
    """Too many or too few arguments, another answer, sync or async."""

    def of_a_request(request: object) -> Identity:
        return Identity()

    def name() -> str:
        return "alice"

    async def name_later() -> str:
        return "alice"

    def one(identity: Identity) -> bool:
        return True

    async def answers_nothing(identity: Identity, topic: str) -> None:
        return None

    other = Hybrid()
    other.identify(of_a_request)  # type: ignore[type-var]
    other.identify(name)  # type: ignore[type-var]
    other.identify(name_later)  # type: ignore[type-var]
    other.authorize(one)  # type: ignore[type-var]
    other.authorize(answers_nothing)  # type: ignore[type-var]
    other.can_test(lambda: True)  # type: ignore[type-var]
    other.can_monitor(name)  # type: ignore[type-var]
    other.can_operate(answers_nothing)  # type: ignore[type-var]


@realtime.snapshot
def report(number: int, *, brief: bool = False) -> Response:
    """One report."""
    return jsonify(number=number, brief=brief)


@realtime.snapshot
async def report_later(number: int) -> dict[str, int]:
    return {"number": number}


def test_a_snapshot_keeps_the_parameters_of_its_view() -> None:
    """For mypy, which this is not run for, and for whoever looks at the function."""
    assert list(inspect.signature(report).parameters) == ["number", "brief"]
    assert report.__doc__ == "One report."

    def calls() -> list[Response]:
        wrong = [
            report("17"),  # type: ignore[arg-type]
            report(17, True),  # type: ignore[call-arg]
            report_later(),  # type: ignore[call-arg]
        ]
        return [report(17, brief=True), report_later(17), *wrong]

    assert callable(calls)
