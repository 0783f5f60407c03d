"""What ``opd serve`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from opd.config.secrets import checked_variable, from_environment
from opd.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that this machine alone reaches."""


def serve(
    models: Sequence[str],
    *,
    host: str,
    port: int,
    dtype: str,
    device: str,
    max_tokens: int,
    api_key_env: str,
    say: Callable[[str], None],
) -> None:
    """Load models and serve them until the process is ended.

    Args:
        models: each a path or id, or ``NAME=`` and one; without a name it is the last part of its path.
        say: takes lines for the person at the terminal.

    Raises:
        OpdError: an option is wrong, a model cannot be loaded, or the port is taken.
    """
    sources = named(models)
    try:
        variable = checked_variable(api_key_env)
    except ValueError as error:
        raise ConfigError(f"--api-key-env: {error}") from None
    secret = from_environment(variable, key="--api-key-env", needed=False)
    if host not in LOOPBACK and secret is None:
        raise ConfigError(
            f"--host: '{host}' can be reached from other machines, and there is no key (--host {host}). Fix: set the "
            f"environment variable {variable} here and where the run is, or listen at 127.0.0.1"
        )
    try:
        import uvicorn

        from opd.servers.serve import application, listening
    except ImportError as error:
        raise ConfigError(f"opd serve needs the package '{error.name}'. Fix: pip install 'opd[serve]'") from None
    from opd.api import Dtype
    from opd.models.language import device_named, set_threads
    from opd.models.loading import load

    if dtype not in get_args(Dtype):
        raise ConfigError(f"--dtype: there is no '{dtype}'. Fix: choose {', '.join(get_args(Dtype))}")
    with listening(host, port) as open_socket:
        place = device_named(device)
        loaded = {name: load(source, key=name, dtype=dtype, device=place) for name, source in sources.items()}
        for model in loaded.values():
            set_threads(None, model.model)
        app = application(loaded, secret=secret, max_tokens=max_tokens)
        where = f"http://{host}:{open_socket.getsockname()[1]}"
        for name, source in sources.items():
            say(f"serves '{source}' as '{name}' at {where}")
        say(f"key: {'of ' + variable if secret else 'none, reachable from this machine alone'}; Ctrl-C ends it")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[open_socket])


def named(models: Sequence[str]) -> dict[str, str]:
    """Sources by the names that clients ask for.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, source = given.partition("=")
        if not equals:
            name, source = Path(given.rstrip("/")).name, given
        if not name or not source or name in found:
            raise ConfigError(f"'{given}': two models have the name '{name}', or one has none. Fix: write NAME=MODEL")
        found[name] = source
    return found
