"""Whether a server answers over HTTP. As a script it asks until it does: from inside a container's own network.

It imports the standard library only: where it runs as a script there is no package around it.
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.parse

_ONE_REQUEST_SECONDS = 1.0
_PAUSE_SECONDS = 0.02


def ask(url: str, status: int | None) -> str | None:
    """Send one GET, follow nothing; None where the answer will do, else why it does not.

    *status*: the one that is wanted; None for any below 400. A certificate is not looked at.
    """
    parts = urllib.parse.urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        import ssl

        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.netloc, timeout=_ONE_REQUEST_SECONDS, context=unverified)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=_ONE_REQUEST_SECONDS)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        found = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if (found < 400 if status is None else found == status) else f"it answers with status {found}"


def main() -> None:
    """``URL STATUS`` (0 for none in particular): return once it answers; failures are told on stdout, a line each."""
    url, status = sys.argv[1], int(sys.argv[2]) or None
    said = None
    while (why := ask(url, status)) is not None:
        if why != said:
            said = why
            sys.stdout.write(why + "\n")
            sys.stdout.flush()
        time.sleep(_PAUSE_SECONDS)  # nobody tells when a server begins to answer


if __name__ == "__main__":
    main()
