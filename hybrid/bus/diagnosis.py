"""What an error of Redis means, in plain words, and what to do about it: the one place for that.

Goes by the names of redis-py's classes and by the codes in the texts, since the same refusal comes
in three forms: from a command, from a script of Redis 6 and from one of Redis 7. Loads no redis-py:
the storage of the limits may be another.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`what` is wrong, without a word that is not for everybody; `where` exactly, for operators;
    and how to `fix` it."""

    what: str
    fix: str
    where: str = ""
    answers: bool = True
    """Whether Redis is there at all."""
    elsewhere: bool = False
    """Whether the server is not, or no longer, the one that the address should lead to: new
    connections may lead to the right one."""

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.what}{where}. Fix: {self.fix}"


DIAGNOSES = {
    "OOM": Diagnosis(
        "Redis refuses writes: it is out of memory",
        "raise its maxmemory, or delete what else is in it; HYBRID_HISTORY_BYTES bounds the log",
    ),
    "READONLY": Diagnosis(
        "Redis refuses writes: it is a read-only replica",
        "let HYBRID_URL lead to the primary; after a failover new connections are tried until it"
        " does",
        elsewhere=True,
    ),
    "MOVED": Diagnosis(
        "Redis is a node of a cluster, and not the one that has the keys",
        "let HYBRID_URL lead to the node of the slot, or to a Redis without cluster mode",
        elsewhere=True,
    ),
    "CLUSTERDOWN": Diagnosis(
        "Redis is a node of a cluster that does not serve the keys",
        "repair the cluster (redis-cli --cluster check), or use a Redis without cluster mode",
        elsewhere=True,
    ),
    "LOADING": Diagnosis(
        "Redis is loading its data from disk",
        "wait: it is used as soon as it has loaded",
        elsewhere=True,
    ),
    "MASTERDOWN": Diagnosis(
        "Redis is a replica that has lost its primary",
        "let HYBRID_URL lead to the primary",
        elsewhere=True,
    ),
    "WRONGTYPE": Diagnosis(
        "a key of HYBRID_NAMESPACE has a wrong type: another program wrote it",
        "give each program a HYBRID_NAMESPACE of its own, and delete that key",
    ),
    "NOPERM": Diagnosis(
        "Redis' ACL refuses the user a command, a key or a channel",
        "run `flask hybrid doctor`, which prints the ACL SETUSER that is needed",
    ),
    "NOAUTH": Diagnosis(
        "Redis refuses the login",
        "put the right user:password@ into HYBRID_URL, with special characters percent-encoded",
    ),
    "MISCONF": Diagnosis(
        "Redis refuses writes: it cannot save to its disk",
        "free disk space where Redis runs; its own log says more",
    ),
    "NOREPLICAS": Diagnosis(
        "Redis refuses writes: it has fewer replicas than it wants",
        "start its replicas, or lower min-replicas-to-write",
    ),
    "MAXCLIENTS": Diagnosis(
        "Redis takes no more connections",
        "raise its maxclients, or find out who holds so many (CLIENT LIST)",
        answers=False,
    ),
    "CERTIFICATE": Diagnosis(
        "the TLS certificate of Redis is not trusted",
        "add ?ssl_ca_certs=/path/to/ca.pem of the CA that signed it to HYBRID_URL",
        answers=False,
    ),
    "FOREIGN": Diagnosis(
        "the log in Redis has an epoch or an id that no cursor can have: another program wrote it",
        "delete the keys {…}:log, {…}:meta and {…}:ids of HYBRID_NAMESPACE, and let nobody else"
        " write them (docs/redis.md)",
    ),
    "DEAF": Diagnosis(
        "Redis answers, but what is published does not arrive here",
        "allow the user the channel (ACL SETUSER … &…); a proxy in between has to pass SUBSCRIBE",
        elsewhere=True,
    ),
}
"""By a code that Redis itself uses, or that is ours."""

_CODE_OF_CLASS = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "AskError": "MOVED",
    "TryAgainError": "CLUSTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "MaxConnectionsError": "",
    "Deaf": "DEAF",
    "Foreign": "FOREIGN",
}
_CODE_IN_TEXT = re.compile(
    r"\b(OOM|READONLY|MOVED|CLUSTERDOWN|LOADING|MASTERDOWN|WRONGTYPE|NOPERM|NOAUTH|MISCONF"
    r"|NOREPLICAS|FOREIGN)\b"
)
_PHRASES = (
    ("ACL failure in script", "NOPERM"),
    ("The user executing the script can't", "NOPERM"),
    ("WRONGPASS", "NOAUTH"),
    ("invalid username-password", "NOAUTH"),
    ("max number of clients", "MAXCLIENTS"),
    ("CERTIFICATE_VERIFY_FAILED", "CERTIFICATE"),
)
_SCRIPT = re.compile(
    r"Error running script \(call to \S+\): |@user_script: ?\d+: |,? ?script: ?[0-9a-f]{40}.*$"
)


def is_known(error: BaseException) -> bool:
    """Whether it is one of those with a cause of its own, whatever was asked."""
    return bool(_code(error, str(error)))


def diagnose(error: BaseException) -> Diagnosis:
    """What an error of Redis, or of the way to it, means."""
    text = _SCRIPT.sub("", str(error)).strip()
    code = _code(error, text)
    if not code:
        if _is(error, "ResponseError"):
            return Diagnosis(
                "Redis refuses a command", "run `flask hybrid doctor`; Redis' own log", text
            )
        return Diagnosis(
            "Redis is out of reach",
            "start it, or correct HYBRID_URL",
            text or type(error).__name__,
            answers=False,
        )
    found = DIAGNOSES[code]
    where = ""
    if code == "MOVED":
        slot, _, node = text.removeprefix("MOVED ").partition(" ")
        where = f"slot {slot} is at {node}"
    elif code in ("NOPERM", "CERTIFICATE"):
        where = text
    return Diagnosis(found.what, found.fix, where, found.answers, found.elsewhere)


def is_crowded(error: Exception) -> bool:
    """Whether all connections of a pool were in use: that says nothing about the storage.

    redis-py has a class for it in one kind of pool, and in the other a text alone.
    """
    name = type(error).__name__
    return name == "MaxConnectionsError" or (
        name == "ConnectionError" and str(error) == "No connection available."
    )


def _code(error: BaseException, text: str) -> str:
    for each in type(error).__mro__:
        if each.__name__ in _CODE_OF_CLASS:
            return _CODE_OF_CLASS[each.__name__]
    for phrase, code in _PHRASES:
        if phrase in text:
            return code
    named = _CODE_IN_TEXT.search(text) if _is(error, "ResponseError", "ConnectionError") else None
    return named[1] if named else ""


def _is(error: BaseException, *names: str) -> bool:
    return any(each.__name__ in names for each in type(error).__mro__)
