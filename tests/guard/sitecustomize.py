"""Imported by every Python that starts with this folder on PYTHONPATH: in tests, the lessons' kernels and children.

1. Outgoing connections raise, except to this machine. Each attempt is also written to the file ``COURSE_GUARD_LOG``,
   so that an attempt whose error somebody swallows is noticed too.
2. A deprecation that transformers, datasets, accelerate, evaluate or peft announces, by warning or in its log, raises.

Only Python's own sockets are seen: gloo and ZeroMQ connect in C++, on loopback.
"""

import ipaddress
import logging
import os
import socket
import sys
import warnings

LIBRARIES = ("transformers", "datasets", "accelerate", "evaluate", "peft")
ANNOUNCEMENTS = ("deprecated", "will be removed in")


class OutgoingConnection(RuntimeError):
    """Not an OSError: code that takes every network error for "offline" must not hide it."""


def is_this_machine(host):
    """True for loopback addresses and names, and for "any address"."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost", "<broadcast>") or host == socket.gethostname():
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _is_numeric(host):
    try:
        ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return True


def block_outgoing(event, arguments):
    """Audit hook (PEP 578): an exception raised here stops the call."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments[0], arguments[1]
        if not isinstance(address, tuple) or is_this_machine(address[0]):
            return  # a path (Unix socket), no address (already connected), or this machine
        if event == "socket.connect" and connection.type == socket.SOCK_DGRAM:
            # How libraries ask for this machine's address: nothing is sent, and they expect an OSError when offline.
            raise OSError(101, "Network is unreachable (the course's tests run without a network)")
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
        if is_this_machine(host) or _is_numeric(host):  # an address is not looked up
            return
    else:
        return
    _record(f"{event} {host!r}")
    raise OutgoingConnection(f"{event} to {host!r}: the lessons must run without a network; use source='local'")


def _record(line):
    log = os.environ.get("COURSE_GUARD_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{line} in process {os.getpid()}\n")


def _announces(name, text):
    return name.split(".")[0] in LIBRARIES and any(word in text for word in ANNOUNCEMENTS)


def _importing(frame):
    """True while a module is being imported: what libraries do at import is not the lesson's doing."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


_warn = warnings.warn


def warn(message, category=None, stacklevel=1, source=None, **options):
    """``warnings.warn``, except that a deprecation announced by one of LIBRARIES raises, whoever gets the blame."""
    kind = type(message) if isinstance(message, Warning) else category or UserWarning
    frame = sys._getframe(1)
    if (
        issubclass(kind, (DeprecationWarning, FutureWarning, PendingDeprecationWarning))
        and str(frame.f_globals.get("__name__")).split(".")[0] in LIBRARIES
        and not _importing(frame)
    ):
        raise message if isinstance(message, Warning) else kind(message)
    _warn(message, category, stacklevel + 1, source, **options)


_log_warning = logging.Logger.warning


def log_warning(self, message, *arguments, **options):
    """``Logger.warning``, except that one of LIBRARIES raises when it logs that something is deprecated."""
    if _announces(self.name, str(message)) and not _importing(sys._getframe(1)):
        raise FutureWarning(f"{self.name}: {message}")
    options["stacklevel"] = options.get("stacklevel", 1) + 1
    _log_warning(self, message, *arguments, **options)


sys.addaudithook(block_outgoing)
warnings.warn = warn
logging.Logger.warning = log_warning
